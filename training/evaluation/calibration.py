"""Temperature scaling and reliability of classifiers (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
FEWEST = 50  # rows; a temperature fitted on fewer is mostly noise
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are searched
GAIN = 1e-3  # nats a row that a temperature has to save in cross-validation
TINY = 1e-7  # smallest probability; 0 would have an infinite cost

Array = NDArray[Any]


def temperature(logits: Array, target: Array, groups: Array | None = None) -> float:
    """Fit the softmax temperature that calibrates a classifier's logits (n, classes).

    The temperature divides the logits; it is 1.0 if no temperature helps. A temperature always fits
    the rows it was fitted on. So it is kept only if, in five-fold cross-validation, it lowers the
    negative log likelihood of the held-out rows. The rows of a group (n,) stay in one fold.
    """
    logits = logits.astype(np.float64)
    folds, before = _folds(target, groups), nats(logits, target)
    too_small = len(logits) < FEWEST or logits.shape[1] < 2 or len(folds) < 2
    if too_small or not np.isfinite(logits).all():
        return 1.0
    after = np.zeros(len(logits))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(logits)), fold)
        after[fold] = nats(logits[fold], target[fold], _fit(logits[rest], target[rest]))
    if before.mean() - after.mean() < GAIN:
        return 1.0
    return round(_fit(logits, target), 4)


def nats(logits: Array, target: Array, temperature: float = 1.0) -> Array:
    """Compute each row's negative log likelihood in nats from logits (n, classes)."""
    return _costs(logits, temperature)[np.arange(len(target)), target]


def logits(probabilities: Array) -> Array:
    """Convert probabilities (n, classes) to logits, clipping probabilities below `TINY`."""
    values: Array = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return values


def scaled(probabilities: Array, temperature: float) -> Array:
    """Rescale class probabilities (n, classes) to another softmax temperature.

    The dtype stays the same.
    """
    colder = logits(probabilities) / temperature
    powers = np.exp(colder - colder.max(axis=1, keepdims=True))
    shares: Array = (powers / powers.sum(axis=1, keepdims=True)).astype(probabilities.dtype)
    return shares


def reliability(probabilities: Array, target: Array, bins: int = 10) -> dict[str, Any]:
    """Compute a classifier's expected calibration error, and accuracy by confidence bin.

    The bins have equal width; empty ones are left out. A calibrated classifier is right in 80 % of
    the rows to which it gives a confidence of 0.8.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == target
    bin_of_row = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = [
        {
            "confidence": round(float(confidence[bin_of_row == number].mean()), 4),
            "accuracy": round(float(right[bin_of_row == number].mean()), 4),
            "rows": int((bin_of_row == number).sum()),
        }
        for number in np.unique(bin_of_row)
    ]
    gaps = sum(row["rows"] * abs(row["confidence"] - row["accuracy"]) for row in rows)
    return {"expected_error": round(gaps / len(target), 4), "bins": rows}


def _costs(logits: Array, temperature: float) -> Array:
    """Compute every class's negative log likelihood (n, classes) at a temperature."""
    colder = logits / temperature
    colder = colder - colder.max(axis=1, keepdims=True)
    costs: Array = np.log(np.exp(colder).sum(axis=1, keepdims=True)) - colder
    return costs


def _fit(logits: Array, target: Array) -> float:
    """Fit the temperature that minimizes the target's negative log likelihood.

    This cost is convex in 1 / temperature. The target is smoothed by one wrong row among n + 2
    (Platt 1999): with every row right, no finite temperature would be best.
    """
    from scipy.optimize import minimize_scalar

    smoothing = 1 / (len(target) + 2)

    def cost(log_temperature: float) -> float:
        costs = _costs(logits, float(np.exp(log_temperature)))
        right = costs[np.arange(len(target)), target]
        wrong = (costs.sum(axis=1) - right) / (costs.shape[1] - 1)
        return float(((1 - smoothing) * right + smoothing * wrong).mean())

    bounds = np.log(LOWEST), np.log(HIGHEST)
    return float(np.exp(minimize_scalar(cost, bounds=bounds, method="bounded").x))


def _folds(target: Array, groups: Array | None) -> list[Array]:
    """Split rows into five cross-validation folds of row numbers, keeping groups whole.

    The folds are the same on every call.
    """
    units = np.arange(len(target)) if groups is None else groups
    names, number = np.unique(units, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names)) % FOLDS
    parts = [np.flatnonzero(fold[number] == index) for index in range(FOLDS)]
    return [part for part in parts if len(part)]
