"""Textures recipe: classify colour patches as temple or flower, by CNN.

Test accuracy 99.4 % on 104 patches of held-out regions, mean of 3 seeds; 98.1 % without
augmentation; nearest class mean 55.8 %. 12 s with import, export and proof on a shared 2-core CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training import networks
from training.data import bundled
from training.fitting import augment
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class Textures(NetworkHyperparameters):
    epochs: int = 30  # passes over the training rows
    lr: float = 2e-3
    batch_size: int = 32
    weight_decay: float = 0.1


def vary(images: Tensor) -> Tensor:
    """Mirror, rotate, zoom, shift and relight each training image at random.

    `images` are (batch, channels, height, width).
    """
    mirror, contrast, light = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = torch.where(mirror < 0.5, images.flip(3), images)
    images = augment.affine(images, turn=0.3, zoom=0.2, shift=0.2)
    changed: Tensor = images * (0.7 + 0.6 * contrast) + 0.3 * (light - 0.5)
    return changed.clamp(0, 1)


recipe = Recipe(
    name="textures",
    description="Whether a patch of a colour photograph shows a temple in China or a flower.",
    task="classification",
    preprocessing="RGB patch of 32x32 pixels, channels first, 0 to 1",
    hyperparameters=Textures,
    data=bundled.textures,
    model=lambda: networks.cnn(2, channels=3, side=32),
    augment=vary,
    search={"lr": Range(3e-4, 1e-2, log=True), "weight_decay": Range(1e-3, 1, log=True)},
)
