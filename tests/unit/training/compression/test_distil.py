"""Distillation losses: learning from a teacher, padding, values."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from torch.nn import functional

from tests.unit.training.compression.small_networks import Network, fit, perceptron, right
from training.compression import distil
from training.fitting import losses

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


def test_values_are_distilled_by_squared_error() -> None:
    loss = distil.objective(distil._Constant(torch.tensor([2.0])), losses.mse, weight=0.75)

    assert (
        float(loss(distil._Constant(torch.tensor([0.0])), (torch.zeros(1),), torch.tensor([4.0])))
        == 0.75 * 4 + 0.25 * 16
    )
