"""Bootstrap confidence intervals over rows, or over whole groups of rows.

`scipy.stats.bootstrap` is slower and has no groups: docs/decisions/0020-metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import roc_auc

Array = NDArray[Any]
Floats = NDArray[np.float64]

LEVEL = 0.95  # share of the draws inside an interval
SEED = 0  # fixed, so that a run repeats, and two models see the same draws
DRAWS = 1000
FEWER_DRAWS_ABOVE = 20_000  # units; their intervals are narrow, and a fifth of the draws is enough
CHUNK = 2_000_000  # counts held in memory at a time, 16 MB


def resample(statistics: Floats, groups: Array | None) -> Floats:
    """Compute bootstrap sums (draws, k) of row statistics (n, k).

    Rows are drawn with replacement. With `groups` (n,), whole groups are drawn. Two models'
    statistics of the same rows get the same draws, so their differences are paired.
    """
    units = statistics if groups is None else sum_by_group(statistics, groups)[1]
    return np.concatenate([counts @ units for counts in _draws(len(units))])


def resample_roc_auc(probabilities: Array, target: Array, groups: Array | None) -> Floats:
    """Compute ROC AUC of each bootstrap resample, giving (draws,).

    It is NaN where a draw lacks a class. No sum over rows gives this metric, so the counts of a
    draw weigh its rows.
    """
    unit = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    areas = []
    for counts in _draws(int(unit.max()) + 1):
        pieces = max(1, len(counts) * len(target) // CHUNK)
        for piece in np.array_split(counts, pieces):
            areas.append(roc_auc(probabilities, target, piece[:, unit].astype(np.float64)))
    return np.concatenate(areas)


def interval(values: Floats) -> list[float]:
    """Compute the percentile interval [low, high] of bootstrap values at level `LEVEL`.

    NaN and infinite values are left out.
    """
    percentiles = [50 - 50 * LEVEL, 50 + 50 * LEVEL]
    edges = np.percentile(values[np.isfinite(values)], percentiles)
    return [round(float(edge), 6) for edge in edges]


def sum_by_group(statistics: Floats, groups: Array) -> tuple[Array, Floats]:
    """Sum row statistics by group; return group names and sums (g, k).

    The names (g,) are sorted.
    """
    names, number = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, number, statistics)
    return names, sums


def _draws(units: int) -> Iterator[NDArray[np.int64]]:
    """Yield chunks (draws, units) of how often bootstrap draws contain each unit.

    A unit is a row or a group of rows.
    """
    draws = DRAWS if units <= FEWER_DRAWS_ABOVE else DRAWS // 5
    generator, chunk = np.random.default_rng(SEED), max(1, CHUNK // units)
    for start in range(0, draws, chunk):
        yield generator.multinomial(units, np.full(units, 1 / units), min(chunk, draws - start))
