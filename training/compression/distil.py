"""Knowledge distillation: train a small network on a large network's outputs."""

from __future__ import annotations

from torch import Tensor, nn, no_grad
from torch.nn import functional

from training.fitting.losses import IGNORED, Loss


def objective(
    teacher: nn.Module, hard: Loss, *, temperature: float = 4.0, weight: float = 0.7
) -> Loss:
    """Return a distillation loss that teaches a student network its teacher's outputs.

    The teacher's share is `weight`, that of the own loss `hard` is the rest. Both networks return
    logits (..., classes) or, if the target is no class number, values of its shape; then the
    teacher's share is squared error.
    """
    teacher.eval().requires_grad_(False)

    def loss(student: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        outputs = student(*inputs)
        with no_grad():
            taught = teacher.to(inputs[0].device)(*inputs)
        own = hard(_Constant(outputs), inputs, target)
        if target.is_floating_point():
            return weight * functional.mse_loss(outputs, taught) + (1 - weight) * own
        real = (target != IGNORED).flatten()
        followed = soft(outputs.flatten(0, -2)[real], taught.flatten(0, -2)[real], temperature)
        return weight * followed + (1 - weight) * own

    return loss


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the KL divergence of softened student and teacher logits (n, classes).

    The square of the temperature keeps its gradients as large as those of the labels (Hinton et
    al. 2015, arXiv:1503.02531, section 2).
    """
    student_log = functional.log_softmax(student / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class _Constant(nn.Module):
    """Stand-in network with precomputed outputs, for losses that call a network."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: Tensor) -> Tensor:
        return self.outputs
