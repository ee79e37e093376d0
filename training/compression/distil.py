"""Knowledge distillation: train a small network on a large network's outputs."""

from __future__ import annotations

from torch import Tensor, nn, no_grad
from torch.nn import functional

from training.fitting.losses import IGNORED, Loss, by_row


def objective(
    teacher: nn.Module,
    hard: Loss,
    *,
    temperature: float = 4.0,
    weight: float = 0.7,
    weighted: bool = False,
) -> Loss:
    """Return a distillation loss that teaches a student network its teacher's outputs.

    The teacher's share is `weight`, that of the own loss `hard` is the rest. Both networks return
    logits (..., classes) or, if the target is no class number, values of its shape; then the
    teacher's share is squared error. With `weighted`, the last input are weights of rows (batch,),
    which count in both shares.
    """
    teacher.eval().requires_grad_(False)

    def loss(student: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        own, weights = (inputs[:-1], inputs[-1]) if weighted else (inputs, None)
        outputs = student(*own)
        with no_grad():
            taught = teacher.to(inputs[0].device)(*own)
        if target.is_floating_point():
            followed = by_row(functional.mse_loss(outputs, taught, reduction="none"))
        else:
            real = (target != IGNORED).flatten()
            followed = soft(outputs.flatten(0, -2)[real], taught.flatten(0, -2)[real], temperature)
            weights = None if weights is None else weights[real]
        shares = followed if weights is None else followed * weights
        # A batch of padding alone has no row.
        taught_loss = shares.sum() / max(len(shares), 1)
        return weight * taught_loss + (1 - weight) * hard(_Constant(outputs), inputs, target)

    return loss


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute each row's KL divergence of softened logits (n, classes).

    The square of the temperature keeps its gradients as large as those of the labels (Hinton et
    al. 2015, arXiv:1503.02531, section 2).
    """
    student_log = functional.log_softmax(student / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
    return divergence.sum(-1) * temperature**2


class _Constant(nn.Module):
    """Stand-in network with precomputed outputs, for losses that call a network."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: Tensor) -> Tensor:
        return self.outputs
