"""Mann-Whitney test of two samples."""

import math
from collections.abc import Sequence

import numpy as np


def p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney test, by its normal approximation.

    >>> p_value(range(100), range(100)) == 1.0, p_value(range(100), range(50, 150)) < 1e-6
    (True, True)
    """
    n, m = len(first), len(second)
    values = np.concatenate([first, second])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]  # ties share their mean rank
    u = ranks[:n].sum() - n * (n + 1) / 2
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(u - n * m / 2) / deviation / math.sqrt(2))
