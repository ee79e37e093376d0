"""Data that needs no network, as arrays split once. No torch here: clients use it for their test sets too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20  # fixed: a split that moves with the training seed would leak test rows into earlier models


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs (n, *shape) float32 and their class numbers (n,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set in three parts. `test` is touched once, after training."""

    train: Examples
    validation: Examples
    test: Examples
    source: str  # where it comes from, e.g. "sklearn:digits"
    sha256: str  # of the raw values, before any scaling
    split_seed: int


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, scaled bilinearly from 8x8 to (n, 1, 28, 28) in [0, 1]. Not MNIST.

    Source: UCI Optical Recognition of Handwritten Digits, test part; 13 writers, who are not named in the data, so the
    split is by image and the same hand is in every part.
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    raw = hashlib.sha256(images.astype("<f8").tobytes() + target.astype("<i8").tobytes()).hexdigest()
    pixels = resize(images.reshape(-1, 8, 8).astype(np.float32) / 16, 28)  # 16 is full ink
    return split(pixels[:, None], target.astype(np.int64), source="sklearn:digits", sha256=raw)


def resize(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Square images (n, from, from) to (n, side, side), bilinear between pixel centres, edges repeated."""
    size = images.shape[-1]
    centres = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)[None])).astype(np.float32)  # (side, from)
    scaled: NDArray[np.float32] = np.clip(weights @ images @ weights.T, 0, 1)
    return scaled


def split(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    source: str,
    sha256: str,
    validation: float = 0.1,
    test: float = 0.2,
) -> Dataset:
    """Rows in three parts with the same share of every class in each."""
    from sklearn.model_selection import train_test_split

    def parts(rows: NDArray[np.int64], size: int) -> Any:
        return train_test_split(rows, test_size=size, stratify=y[rows], random_state=SPLIT_SEED)

    rest, held_out = parts(np.arange(len(y)), round(len(y) * test))
    train, tuning = parts(rest, round(len(y) * validation))
    train_part, validation_part, test_part = (Examples(x[rows], y[rows]) for rows in (train, tuning, held_out))
    return Dataset(train_part, validation_part, test_part, source=source, sha256=sha256, split_seed=SPLIT_SEED)
