"""Random rotation, scaling and shift of training images, on their device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def affine(images: Tensor, *, turn: float, zoom: float, shift: float) -> Tensor:
    """Rotate, scale and shift each image of a batch at random.

    `images` are (batch, channels, height, width). Limits: `turn` in radians, `zoom` as a share of
    the size, `shift` as a share of half the size. Each is drawn between minus and plus its limit,
    from torch's generator.
    """
    count = len(images)
    draws = torch.rand(4, count, device=images.device) * 2 - 1  # no copy from the host
    angle, scale, x, y = draws[0] * turn, draws[1] * zoom, draws[2] * shift, draws[3] * shift
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    maps = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(count, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
