"""How near a run is to what its device can do: operations a second against the peak that its maker states."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.fitting.losses import Loss
from training.hyperparameters import NetworkHyperparameters

# Dense operations a second in bf16 and, of fp32 data, in TF32; from the makers' data sheets. The first name that is
# part of the device's own counts.
PEAKS: tuple[tuple[str, float, float], ...] = (
    ("H200", 989e12, 494e12),
    ("H100 PCIe", 756e12, 378e12),
    ("H100", 989e12, 494e12),
    ("A100", 312e12, 156e12),
    ("L40S", 362e12, 183e12),
    ("L4", 121e12, 60e12),
    ("A10G", 70e12, 35e12),
)
COUNTED = 8  # examples whose operations are counted


@dataclass(frozen=True, slots=True)
class Roof:
    """What one example costs, and what the devices together can do."""

    flops_per_example: float  # multiplications and additions of matrices, forward and backward
    peak_flops_per_s: float

    def share(self, examples_per_s: float) -> float:
        return self.flops_per_example * examples_per_s / self.peak_flops_per_s


def peak(name: str, bf16: bool) -> float | None:
    """Operations a second of the device called `name`, or None where no data sheet is known.

    >>> peak("NVIDIA H100 80GB HBM3", bf16=True), peak("a CPU", bf16=True)
    (989000000000000.0, None)
    """
    for part, half, single in PEAKS:
        if part in name:
            return half if bf16 else single
    return None


def flops_per_example(
    model: nn.Module, loss: Loss, inputs: tuple[Tensor, ...], target: Tensor
) -> float:
    """Operations of one example, forward and backward, counted on shapes alone; 0 where that cannot be done."""
    try:
        shape = copy.deepcopy(model).to("meta")
        rows = tuple(values[:COUNTED].to("meta") for values in inputs)
        with FlopCounterMode(display=False) as counter:
            loss(shape, rows, target[:COUNTED].to("meta")).backward()  # type: ignore[no-untyped-call]
    except (
        Exception
    ):  # a model may do what has no meaning without values; then nothing is said about its cost
        return 0.0
    return float(counter.get_total_flops()) / min(COUNTED, len(target))


def roof(
    model: nn.Module,
    loss: Loss,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    settings: NetworkHyperparameters,
    device: torch.device,
    processes: int,
) -> Roof | None:
    """The roof over a run, or None where it is not known."""
    if device.type != "cuda":
        return None
    top = peak(torch.cuda.get_device_name(device), bf16=settings.precision != "fp32")
    cost = flops_per_example(model, loss, inputs, target)
    return Roof(cost, top * processes) if top and cost else None
