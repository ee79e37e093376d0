"""Optimizers: each ends at the minimum of loss and L1 penalty, which is known here."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training.data import Dataset, Examples
from training.errors import InvalidHyperparameter
from training.fitting import loop, losses
from training.fitting.steps import engines
from training.hyperparameters import NetworkHyperparameters

pytestmark = pytest.mark.train
CPU = torch.device("cpu")
WEIGHTS = np.array([2.0, -0.5, 0.05, 0.0])
L1 = 0.4


def orthonormal_data() -> Dataset:
    """Make 32 rows whose columns are orthonormal: each weight has its own minimum."""
    generator = np.random.default_rng(0)
    columns = np.linalg.qr(generator.normal(size=(32, 4)))[0] * np.sqrt(32)
    x = columns.astype(np.float32)
    rows = Examples({"x": x}, (x @ WEIGHTS).astype(np.float32))
    return Dataset(rows, rows, rows, source="made", sha256="0", split={})


@pytest.mark.parametrize(
    ("optimizer", "lr", "momentum"),
    [
        ("adamw", 0.02, 0.9),
        ("sgd", 0.02, 0.0),
        ("sgd", 0.02, 0.9),
        ("rmsprop", 0.02, 0.0),
        ("rmsprop", 0.01, 0.5),
        ("adagrad", 0.3, 0.9),
    ],
)
def test_every_optimizer_ends_at_the_minimum_with_l1(
    optimizer: Any, lr: float, momentum: float
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1, bias=False)
    settings = NetworkHyperparameters(
        epochs=600, lr=lr, batch_size=32, optimizer=optimizer, momentum=momentum, l1=L1,
        weight_decay=0.0,
    )  # fmt: skip

    loop.fit(model, orthonormal_data(), settings, device=CPU, loss=losses.mse)

    minimum = np.sign(WEIGHTS) * np.maximum(abs(WEIGHTS) - L1 / 2, 0)
    assert model.weight.detach().numpy()[0] == pytest.approx(minimum, abs=0.02)


def test_biases_are_not_decayed_by_any_optimizer() -> None:
    for name in ("adamw", "sgd", "rmsprop", "adagrad"):
        settings = NetworkHyperparameters(weight_decay=3.0, optimizer=name)
        groups = engines.optimizer(torch.nn.Linear(2, 2), settings, CPU).param_groups

        assert [group["weight_decay"] for group in groups] == [3.0, 0.0]


def test_a_momentum_of_one_is_refused() -> None:
    with pytest.raises(InvalidHyperparameter, match=r"momentum: 1\.0 is not below 1"):
        NetworkHyperparameters(momentum=1.0)
