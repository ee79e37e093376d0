"""Changes to training images that do not change what they show. On the device of the batch, from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def affine(images: Tensor, *, turn: float, zoom: float, shift: float) -> Tensor:
    """Each of (batch, channels, height, width) turned, scaled and moved at random.

    `turn` in radians, `zoom` as a share of the size, `shift` as a share of half the size; each drawn from ± its limit.
    """
    count = len(images)
    drawn = torch.rand(4, count, device=images.device) * 2 - 1
    angle, scale, x, y = (
        drawn[0] * turn,
        drawn[1] * zoom,
        drawn[2] * shift,
        drawn[3] * shift,
    )  # no copy from the host
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    maps = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(count, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
