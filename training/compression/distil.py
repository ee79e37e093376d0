"""Distillation: a small network learns from a large one what the labels alone do not say."""

from __future__ import annotations

from torch import Tensor, nn, no_grad
from torch.nn import functional

from training.fitting.losses import IGNORED, Loss


def objective(
    teacher: nn.Module, hard: Loss, *, temperature: float = 4.0, weight: float = 0.7
) -> Loss:
    """A loss for the loop: `weight` parts of the teacher's opinion, the rest is `hard`, the student's own loss.

    Both networks answer logits (..., classes) or, where the target is no class number, values of its shape; from
    values the teacher is followed by squared error.
    """
    teacher.eval().requires_grad_(False)

    def loss(student: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        answer = student(*inputs)
        with no_grad():
            told = teacher.to(inputs[0].device)(*inputs)
        own = hard(_Said(answer), inputs, target)
        if target.is_floating_point():
            return weight * functional.mse_loss(answer, told) + (1 - weight) * own
        counted = (target != IGNORED).flatten()
        return (
            weight * soft(answer.flatten(0, -2)[counted], told.flatten(0, -2)[counted], temperature)
            + (1 - weight) * own
        )

    return loss


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's softened probabilities are from the teacher's, of logits (n, classes).

    The square of the temperature keeps its gradients as large as those of the labels (Hinton et al. 2015,
    arXiv:1503.02531, section 2).
    """
    said = functional.log_softmax(student / temperature, dim=-1)
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    return functional.kl_div(said, wanted, reduction="batchmean", log_target=True) * temperature**2


class _Said(nn.Module):
    """A network whose answer is known already, for losses that ask it themselves."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: Tensor) -> Tensor:
        return self.answer
