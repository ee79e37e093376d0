"""Data that needs no network: what scikit-learn and the interpreter carry. Each names its source, and its groups."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples, digest, split

PATCH = 32  # pixels
REGION = 4  # patches a side: neighbours are alike, so they stay together


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, scaled bilinearly from 8x8: `image` (n, 1, 28, 28) in [0, 1]. Not MNIST.

    Source: UCI Optical Recognition of Handwritten Digits, test part; 13 writers, who are not named in the data, so the
    split is by image and the same hand is in every part.
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    raw = hashlib.sha256(
        images.astype("<f8").tobytes() + target.astype("<i8").tobytes()
    ).hexdigest()
    pixels = resize(images.reshape(-1, 8, 8).astype(np.float32) / 16, 28)  # 16 is full ink
    examples = Examples({"image": pixels[:, None]}, target.astype(np.int64))
    return split(
        examples, source="sklearn:digits", sha256=raw, labels=[str(digit) for digit in range(10)]
    )


def iris() -> Dataset:
    """150 flowers of three species: `features` (n, 4), lengths and widths in cm (Fisher 1936)."""
    return _table("iris")


def wine() -> Dataset:
    """178 wines of three cultivars: `features` (n, 13) of chemical analysis, each in its own unit (UCI)."""
    return _table("wine")


def breast_cancer() -> Dataset:
    """569 tumours, malignant or benign: `features` (n, 30) of cell nuclei in images (UCI, Wisconsin)."""
    return _table("breast_cancer")


def diabetes() -> Dataset:
    """442 patients: `features` (n, 10) as measured, target the progression of the disease a year on (Efron 2004)."""
    return _table("diabetes", scaled=False)


def linnerud() -> Dataset:
    """20 men: `features` (n, 3) counts of exercises, target (n, 3) weight, waist and pulse (lb, inches, a minute)."""
    return _table("linnerud")


def feature_names(name: str) -> tuple[str, ...]:
    """What the columns of `features` are, e.g. of "wine"."""
    from sklearn import datasets

    return tuple(getattr(datasets, f"load_{name}")()["feature_names"])


def textures() -> Dataset:
    """520 patches of two photographs, a temple's roofs or a flower: `image` (n, 3, 32, 32) RGB in [0, 1].

    Groups are regions of 4x4 patches: neighbours are nearly the same picture, so that none is in two parts.
    """
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    patches, target, groups = [], [], []
    for number, image in enumerate(found["images"]):
        rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
        cut = image[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3)
        patches.append(cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, PATCH, PATCH))
        target += [number] * rows * columns
        groups += [
            f"{number}:{row // REGION},{column // REGION}"
            for row in range(rows)
            for column in range(columns)
        ]
    pixels = np.concatenate(patches)
    examples = Examples(
        {"image": pixels.astype(np.float32) / 255}, np.array(target), np.array(groups)
    )
    labels = [Path(name).stem for name in found["filenames"]]
    return split(
        examples, source="sklearn:sample-images", sha256=digest(pixels), by="region", labels=labels
    )


def _table(name: str, **options: bool) -> Dataset:
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")(**options)
    features, target = found["data"], found["target"]
    classes = target.dtype.kind == "i"
    examples = Examples(
        {"features": features.astype(np.float32)},
        target.astype(np.int64 if classes else np.float32),
    )
    labels = [str(label) for label in found["target_names"]] if classes else []
    columns = {"features": [str(column) for column in found["feature_names"]]}
    return split(
        examples,
        source=f"sklearn:{name}",
        sha256=digest(features, target),
        labels=labels,
        columns=columns,
    )


def resize(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Square images (n, from, from) to (n, side, side), bilinear between pixel centres, edges repeated."""
    size = images.shape[-1]
    centres = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)[None])).astype(
        np.float32
    )  # (side, from)
    scaled: NDArray[np.float32] = np.clip(weights @ images @ weights.T, 0, 1)
    return scaled
