"""Temperature scaling: a classifier is made as sure as it is right (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
FEWEST = 50  # rows; from fewer, a temperature is luck
LOWEST, HIGHEST = 0.05, 20.0
GAIN = 1e-3  # nats a row; what gains less is left as it is
TINY = 1e-7  # a probability of 0 would cost infinitely much

Array = NDArray[Any]


def temperature(logits: Array, target: Array, groups: Array | None = None) -> float:
    """What to divide logits (n, classes) by, so that their softmax is as sure as it is right; 1.0: leave them.

    One number always fits the rows it was found on, so it counts only if numbers found on four fifths of the rows
    lower the negative log likelihood of the last fifth, all five taken together. Groups (n,) are not torn apart.
    """
    logits = logits.astype(np.float64)
    folds, plain = _folds(target, groups), nats(logits, target)
    if (
        len(logits) < FEWEST
        or logits.shape[1] < 2
        or len(folds) < 2
        or not np.isfinite(logits).all()
    ):
        return 1.0
    costs = np.zeros(len(logits))
    for held_out in folds:
        kept = np.setdiff1d(np.arange(len(logits)), held_out)
        costs[held_out] = nats(
            logits[held_out], target[held_out], _best(logits[kept], target[kept])
        )
    if plain.mean() - costs.mean() < GAIN:
        return 1.0
    return round(_best(logits, target), 4)


def nats(logits: Array, target: Array, temperature: float = 1.0) -> Array:
    """Negative log likelihood of each row (n,)."""
    return _costs(logits, temperature)[np.arange(len(target)), target]


def _costs(logits: Array, temperature: float) -> Array:
    """That of each class (n, classes)."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    costs: Array = np.log(np.exp(scaled).sum(axis=1, keepdims=True)) - scaled
    return costs


def logits(probabilities: Array) -> Array:
    """What a softmax makes these probabilities (n, classes) of; those below TINY count as much."""
    found: Array = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return found


def scaled(probabilities: Array, temperature: float) -> Array:
    """Probabilities (n, classes) as they are at another temperature, in their own precision."""
    cold = logits(probabilities) / temperature
    powers = np.exp(cold - cold.max(axis=1, keepdims=True))
    answer: Array = (powers / powers.sum(axis=1, keepdims=True)).astype(probabilities.dtype)
    return answer


def _best(logits: Array, target: Array) -> float:
    """The lowest cost, which is convex in 1 / temperature.

    As if one more row had been right and one wrong (Platt 1999): where all are right, no finite temperature were best.
    """
    from scipy.optimize import minimize_scalar

    wrong = 1 / (len(target) + 2)

    def cost(log: float) -> float:
        costs = _costs(logits, float(np.exp(log)))
        right = costs[np.arange(len(target)), target]
        others = (costs.sum(axis=1) - right) / (costs.shape[1] - 1)
        return float(((1 - wrong) * right + wrong * others).mean())

    found = minimize_scalar(cost, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def _folds(target: Array, groups: Array | None) -> list[Array]:
    """Numbers of the rows of each fold, the same every time."""
    names, number = np.unique(
        np.arange(len(target)) if groups is None else groups, return_inverse=True
    )
    fold = np.random.default_rng(0).permutation(len(names)) % FOLDS
    parts = [np.flatnonzero(fold[number] == at) for at in range(FOLDS)]
    return [part for part in parts if len(part)]
