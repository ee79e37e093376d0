"""Distillation losses: learning from a teacher, padding, values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from torch import nn
from torch.nn import functional

from tests.unit.training.compression.small_networks import Network, fit, perceptron, right
from training.compression import distil, select
from training.data import Dataset, Examples
from training.errors import CompressionFailed
from training.fitting import losses, trainer
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore"),  # the converters' own
]


def test_a_student_learns_more_from_its_teacher_than_from_few_labels() -> None:
    """Both students see 60 labels; one also sees the teacher's outputs for all images."""
    teacher = fit(perceptron(128), 200)
    before = [parameter.clone() for parameter in teacher.parameters()]
    few, alone, taught = slice(0, 60), perceptron(12), perceptron(12)

    def with_labels_of_few(network: Network, inputs: Any, target: Any) -> Any:
        return functional.cross_entropy(network(*inputs)[few], target[few])

    fit(alone, 200, rows=few)
    fit(taught, 200, distil.objective(teacher, with_labels_of_few, temperature=3.0, weight=0.7))

    assert right(taught) > right(alone) + 0.05
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))


def test_padding_and_an_equal_student_cost_nothing() -> None:
    logits = torch.randn(2, 3, 5)
    teacher, student = distil._Constant(logits), distil._Constant(logits.clone())
    target = torch.tensor([[1, 2, losses.IGNORED], [0, losses.IGNORED, losses.IGNORED]])
    student.outputs[0, 2] = 100.0
    loss = distil.objective(teacher, losses.next_token, weight=1.0)

    assert float(loss(student, (logits,), target)) == pytest.approx(0, abs=1e-5)
    assert float(distil.soft(torch.zeros(1, 2), torch.tensor([[4.0, 0.0]]), 1.0)) > 0.5
    none = torch.full_like(target, losses.IGNORED)
    assert float(loss(student, (logits,), none)) == 0


def test_values_are_distilled_by_squared_error() -> None:
    loss = distil.objective(distil._Constant(torch.tensor([2.0])), losses.mse, weight=0.75)

    assert (
        float(loss(distil._Constant(torch.tensor([0.0])), (torch.zeros(1),), torch.tensor([4.0])))
        == 0.75 * 4 + 0.25 * 16
    )


@pytest.mark.parametrize("target", [torch.tensor([0, 1, 1]), torch.tensor([0.0, 1.0, 2.0])])
def test_weighted_rows_count_in_both_shares_as_repeated_rows_do(target: Any) -> None:
    task = "regression" if target.is_floating_point() else "classification"
    outputs = torch.tensor([[0.3, 1.0], [2.0, -1.0], [0.5, 0.5]])
    if task == "regression":
        outputs = outputs[:, :1]
    repeated = torch.tensor([0, 1, 1, 1, 2, 2])
    taught = outputs.flip(0)

    def loss(rows: Any, hard: Any, *weights: Any) -> float:
        student, teacher = distil._Constant(outputs[rows]), distil._Constant(taught[rows])
        objective = distil.objective(teacher, hard, weighted=bool(weights))
        return float(objective(student, (torch.zeros(len(rows)), *weights), target[rows]))

    weighted = loss(torch.arange(3), losses.weighted(task, None), torch.tensor([1.0, 3.0, 2.0]) / 2)

    assert weighted == pytest.approx(loss(repeated, losses.choose(task, None)))


def cell(**more: Any) -> Recipe[Any]:
    """Return a recipe whose class "y" is one row in eight."""
    x = np.random.default_rng(1).normal(size=(400, 2)).astype(np.float32)
    noise = np.random.default_rng(2).normal(size=400)
    rows = Examples({"x": x}, (x[:, 0] + noise > 1.6).astype(np.int64))
    data = Dataset(rows, rows, rows, source="made", sha256="0", split={}, labels=("n", "y"))

    def network(hidden: int) -> Network:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    return Recipe(
        name="cell", description="", task="classification", data=lambda: data,
        hyperparameters=NetworkHyperparameters, model=lambda: network(32),
        student=lambda: network(8), **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["distil", "prune"])
def test_smaller_networks_keep_the_weights_of_classes(kind: str) -> None:
    def recall(**more: Any) -> float:
        recipe = cell(**more)
        settings = NetworkHyperparameters(epochs=30, lr=0.02, batch_size=400)
        data = recipe.load_data({}, settings)
        trained = trainer.fit(recipe, settings, data, device=torch.device("cpu"))
        # The larger network's own weights would reach the student through its answers.
        plain = replace(trained, model=recipe.make_model(settings, data))
        smaller = select.NETWORKS[kind](plain)
        answers = smaller.run({"x": data.train.inputs["x"][data.train.target == 1]})
        return float((answers["probabilities"].argmax(1) == 1).mean())

    assert recall(class_weights={"y": 50.0}) > recall() + 0.3


@pytest.mark.parametrize("task", ["multilabel", "segmentation"])
def test_distillation_is_refused_where_rows_have_several_classes(task: str) -> None:
    recipe = replace(cell(), task=task)

    with pytest.raises(CompressionFailed, match=f"one class a row, and the task is {task}"):
        select.kinds("distil", recipe)
    assert select.kinds("prune", recipe) == ["prune"]
