"""Loaders of scikit-learn's bundled data sets: digits, tumours, diabetes, photographs.

They need no network.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples, digest, split

PATCH = 32  # pixels a side
REGION = 4  # patches a side; neighbours look alike, so a region stays in one part


def digits() -> Dataset:
    """Load 1,797 labelled images of handwritten digits, 28x28 pixels each.

    The input is `image` (n, 1, 28, 28) in [0, 1]. The digits are scikit-learn's (not MNIST), scaled
    bilinearly from 8x8. Source: UCI Optical Recognition of Handwritten Digits, test part. The data
    do not name its 13 writers, so the split is by image and every part has digits of the same
    writers.
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    raw = images.astype("<f8").tobytes() + target.astype("<i8").tobytes()
    pixels = resize(images.reshape(-1, 8, 8).astype(np.float32) / 16, 28)  # 16 is full ink
    return split(
        Examples({"image": pixels[:, None]}, target.astype(np.int64)),
        source="sklearn:digits",
        sha256=hashlib.sha256(raw).hexdigest(),
        labels=[str(digit) for digit in range(10)],
    )


def breast_cancer() -> Dataset:
    """Load 569 tumours: 30 features each, with the class malignant or benign.

    The input is `features` (n, 30), which describe cell nuclei in images (UCI, Wisconsin).
    """
    return _table("breast_cancer")


def diabetes() -> Dataset:
    """Load 442 diabetes patients: ten unscaled features and the disease's progression.

    The input is `features` (n, 10). The target is the progression of the disease after a year
    (Efron 2004).
    """
    return _table("diabetes", scaled=False)


def feature_names(name: str) -> tuple[str, ...]:
    """Return the column names of a scikit-learn data set, e.g. "diabetes"."""
    from sklearn import datasets

    return tuple(getattr(datasets, f"load_{name}")()["feature_names"])


def textures() -> Dataset:
    """Load 520 image patches of two photographs; the class is the photograph.

    The input is `image` (n, 3, 32, 32), RGB in [0, 1]. One photograph shows a temple's roofs, the
    other a flower. Groups are regions of 4x4 patches: neighbouring patches are nearly the same
    picture, so they stay in one part.
    """
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images()
    patches, target, groups = [], [], []
    for number, image in enumerate(photographs["images"]):
        rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
        cut = image[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3)
        patches.append(cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, PATCH, PATCH))
        target += [number] * rows * columns
        groups += [f"{number}:{r // REGION},{c // REGION}" for r, c in np.ndindex(rows, columns)]
    pixels = np.concatenate(patches)
    inputs = {"image": pixels.astype(np.float32) / 255}
    return split(
        Examples(inputs, np.array(target), np.array(groups)),
        source="sklearn:sample-images",
        sha256=digest(pixels),
        by="region",
        labels=[Path(name).stem for name in photographs["filenames"]],
    )


def resize(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Resize square images (n, size, size) bilinearly to (n, side, side).

    Pixels are interpolated between their centres, and edges repeated.
    """
    size = images.shape[-1]
    centres = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    distances = np.abs(centres[:, None] - np.arange(size)[None])
    weights = np.maximum(0, 1 - distances).astype(np.float32)  # (side, size)
    scaled: NDArray[np.float32] = np.clip(weights @ images @ weights.T, 0, 1)
    return scaled


def _table(name: str, **options: bool) -> Dataset:
    """Load a scikit-learn table as a data set; integer targets are classes."""
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")(**options)
    features, target = table["data"], table["target"]
    classes = target.dtype.kind == "i"
    return split(
        Examples({"features": features.astype(np.float32)}, target),
        source=f"sklearn:{name}",
        sha256=digest(features, target),
        labels=[str(label) for label in table["target_names"]] if classes else [],
        columns={"features": [str(column) for column in table["feature_names"]]},
    )
