"""The loop: learns, says what it does, and goes on after SIGTERM as if nothing had been."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training import augment, checkpoint, loop  # noqa: E402
from training.checkpoint import Interrupted, Stop  # noqa: E402
from training.data import Dataset, Examples  # noqa: E402
from training.errors import InvalidCheckpoint  # noqa: E402
from training.recipe import Hyperparameters  # noqa: E402

pytestmark = pytest.mark.train
CPU = torch.device("cpu")
SETTINGS = Hyperparameters(epochs=3, lr=0.01, batch_size=16)


def make_data() -> Dataset:
    """A bright half of an 8x8 image, left or right, under noise."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 90)
    x = generator.random((90, 1, 8, 8), dtype=np.float32)
    for image, right in zip(x, y, strict=True):
        image[:, :, 4 * right : 4 * right + 4] += 1
    parts = [Examples({"image": x[rows]}, y[rows]) for rows in (slice(0, 50), slice(50, 70), slice(70, 90))]
    return Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]


def make_model() -> Any:
    """Dropout and augmentation draw random numbers in every step: resuming has to restore them."""
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Dropout(0.3)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4 * 36, 2))


def wobble(images: Any) -> Any:
    return augment.affine(images, turn=0.1, zoom=0.1, shift=0.1)


class StopAfter(Stop):
    """SIGTERM arrives during step `steps`, counted from the start."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


def train(model: Any, **more: Any) -> list[dict[str, float]]:
    return loop.fit(model, make_data(), SETTINGS, device=CPU, augment=wobble, **more)


def test_it_learns_and_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    history = train(make_model())
    lines = capsys.readouterr().out.splitlines()

    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < history[0]["loss"]
    assert lines[-1].startswith("epoch 3/3  loss=")
    for word in ("validation_accuracy=", "rate=", "left=0s"):
        assert word in lines[-1]


@pytest.mark.parametrize("steps", range(12))  # 3 inner steps and the end of each of 3 epochs
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, steps: int) -> None:
    whole = make_model()
    history = train(whole)
    first = make_model()
    with pytest.raises(Interrupted):
        train(first, checkpoints=tmp_path, stop=StopAfter(steps))
    second = make_model()
    resumed = train(second, checkpoints=tmp_path)

    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name
    assert [row["loss"] for row in resumed] == [row["loss"] for row in history]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = make_model(), make_model()
    train(first, checkpoints=tmp_path)
    train(second, checkpoints=tmp_path)

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(make_model(), checkpoints=tmp_path)
    other = Hyperparameters(epochs=3, lr=0.02, batch_size=16)

    with pytest.raises(InvalidCheckpoint, match="belongs to a run with other settings"):
        loop.fit(make_model(), make_data(), other, device=CPU, checkpoints=tmp_path)


def test_a_torn_checkpoint_is_refused_and_none_is_left_torn(tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(b"half")

    with pytest.raises(InvalidCheckpoint, match="cannot be read; remove it"):
        train(make_model(), checkpoints=tmp_path)

    (tmp_path / checkpoint.FILE).unlink()
    train(make_model(), checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [loop.schedule(step, 100) for step in range(100)]

    assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_waiting_threads_do_not_spin() -> None:
    """OpenMP tells at its start what it took from the environment, which had to be set before torch was loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}

    done = subprocess.run(
        [sys.executable, "-c", "import training.train"],
        env=environment | {"OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
