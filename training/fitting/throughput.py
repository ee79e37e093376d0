"""Model FLOPs utilization: operations a second over the GPU's peak."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.fitting.losses import Loss
from training.fitting.steps.feed import Rows
from training.hyperparameters import NetworkHyperparameters

# Part of a GPU's name → peak dense operations a second in bf16 and in TF32 (for fp32 data), from
# the makers' data sheets. The first entry that matches is used.
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
    """FLOPs of one training example, and peak FLOP/s of all devices."""

    flops_per_example: float  # matrix multiplications and additions, forward and backward
    peak_flops_per_s: float

    def share(self, examples_per_s: float) -> float:
        """Compute the share of peak FLOP/s used at a training rate."""
        return self.flops_per_example * examples_per_s / self.peak_flops_per_s


def peak(name: str, bf16: bool) -> float | None:
    """Return a GPU's peak FLOP/s by device name, None if unknown.

    >>> peak("NVIDIA H100 80GB HBM3", bf16=True), peak("a CPU", bf16=True)
    (989000000000000.0, None)
    """
    for part, in_bf16, in_tf32 in PEAKS:
        if part in name:
            return in_bf16 if bf16 else in_tf32
    return None


def flops_per_example(
    model: nn.Module, loss: Loss, inputs: tuple[Rows, ...], target: Rows
) -> float:
    """Count the FLOPs of one training example, forward and backward.

    They are counted on shapes alone, on torch's meta device; 0 where that fails.
    """
    try:
        shapes_only = copy.deepcopy(model).to("meta")
        rows = tuple(values[slice(COUNTED)].to("meta") for values in inputs)
        with FlopCounterMode(display=False) as counter:
            value = loss(shapes_only, rows, target[slice(COUNTED)].to("meta"))
            value.backward()  # type: ignore[no-untyped-call]
    except Exception:  # a user's model may need values, which a meta tensor does not have
        return 0.0
    return float(counter.get_total_flops()) / min(COUNTED, len(target))


def roof(
    model: nn.Module,
    loss: Loss,
    inputs: tuple[Rows, ...],
    target: Rows,
    settings: NetworkHyperparameters,
    device: torch.device,
    processes: int,
) -> Roof | None:
    """Return FLOPs per example and peak FLOP/s, None on unknown devices.

    It is None, too, where the operations of the model cannot be counted.
    """
    if device.type != "cuda":
        return None
    top = peak(torch.cuda.get_device_name(device), bf16=settings.precision != "fp32")
    cost = flops_per_example(model, loss, inputs, target)
    return Roof(cost, top * processes) if top and cost else None
