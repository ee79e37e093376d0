"""Data that needs no network: what scikit-learn and the interpreter carry."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples, split


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, scaled bilinearly from 8x8: `image` (n, 1, 28, 28) in [0, 1]. Not MNIST.

    Source: UCI Optical Recognition of Handwritten Digits, test part; 13 writers, who are not named in the data, so the
    split is by image and the same hand is in every part.
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    raw = hashlib.sha256(images.astype("<f8").tobytes() + target.astype("<i8").tobytes()).hexdigest()
    pixels = resize(images.reshape(-1, 8, 8).astype(np.float32) / 16, 28)  # 16 is full ink
    examples = Examples({"image": pixels[:, None]}, target.astype(np.int64))
    return split(examples, source="sklearn:digits", sha256=raw, labels=[str(digit) for digit in range(10)])


def resize(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Square images (n, from, from) to (n, side, side), bilinear between pixel centres, edges repeated."""
    size = images.shape[-1]
    centres = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)[None])).astype(np.float32)  # (side, from)
    scaled: NDArray[np.float32] = np.clip(weights @ images @ weights.T, 0, 1)
    return scaled
