"""How good a classifier is, beside what no effort at all and a simple model reach on the same test set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset

Metrics = dict[str, float]


def classification(predicted: NDArray[np.int64], expected: NDArray[np.int64]) -> Metrics:
    """Metrics of predicted class numbers (n,)."""
    return {"accuracy": round(float(np.mean(predicted == expected)), 6)}


def baselines(data: Dataset) -> dict[str, Metrics]:
    """The same metrics for the majority class (no effort) and for the nearest class mean (no network)."""
    x, y = next(iter(data.train.inputs.values())).reshape(len(data.train), -1), data.train.target
    test = next(iter(data.test.inputs.values())).reshape(len(data.test), -1)
    classes = np.unique(y)
    means = np.stack([x[y == label].mean(axis=0) for label in classes])
    nearest = classes[np.argmin(((test[:, None] - means[None]) ** 2).sum(axis=2), axis=1)]
    majority = np.full(len(test), np.bincount(y).argmax())
    return {
        "majority class": classification(majority, data.test.target),
        "nearest class mean": classification(nearest, data.test.target),
    }
