"""Detection of exact and near duplicates among the rows of data.

A copy of a training row in the test part is answered from memory: accuracy looks better than it is.
Repeats are natural, and no copies, where columns of few values allow few different rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = Mapping[str, NDArray[Any]]  # by name, each (n, ...)

FEW = 0.1  # distinct values per row; a column with more is taken for continuous
FEW_TEXTS = 50  # distinct values; a text column with more is free text and not a category
TOLERANCE = 10  # repeats beyond the expected ones, as a factor, that are still natural
DIGITS = 3  # significant digits in which near duplicates agree
NOT_WORDS = re.compile(r"[\W_]+")


def row_keys(inputs: Inputs) -> list[bytes]:
    """Return a digest of each row; equal rows have equal digests."""
    columns = [_row_bytes(values) for values in inputs.values()]
    return [
        hashlib.blake2b(b"\0".join(cells), digest_size=16).digest()
        for cells in zip(*columns, strict=True)
    ]


def _row_bytes(values: NDArray[Any]) -> list[bytes]:
    if not len(values):
        return []
    rows = values.reshape(len(values), -1)
    if rows.dtype.kind in "OUS":
        return ["\0".join(map(str, row)).encode("utf-8", "surrogatepass") for row in rows.tolist()]
    if rows.dtype.kind == "f":
        rows = np.where(np.isnan(rows), np.nan, rows + 0.0)  # one NaN, and no negative zero
    return [row.tobytes() for row in np.ascontiguousarray(rows)]


def copies(inputs: Inputs) -> NDArray[np.int64] | None:
    """Number the distinct rows and return each row's number (n,).

    Returns None where no row is repeated, or repeats are natural.
    """
    numbers: dict[bytes, int] = {}
    number_of_row = [numbers.setdefault(key, len(numbers)) for key in row_keys(inputs)]
    repeats = len(number_of_row) - len(numbers)
    if not repeats or are_natural(inputs, repeats):
        return None
    return np.array(number_of_row, np.int64)


def rounded(inputs: Inputs) -> Inputs:
    """Return inputs without small differences: digits, case, spaces and punctuation."""
    return {name: _rounded(values) for name, values in inputs.items()}


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "OUS":
        words = [NOT_WORDS.sub(" ", str(text)).strip().casefold() for text in values.ravel()]
        texts = np.empty(len(words), object)
        texts[:] = words
        return texts.reshape(values.shape)
    if values.dtype.kind != "f":
        return values
    mantissa, exponent = np.frexp(values)
    steps = 2.0 ** math.ceil(DIGITS * math.log2(10))
    nearest: NDArray[Any] = np.ldexp(np.rint(mantissa * steps) / steps, exponent)
    return nearest


def are_natural(inputs: Inputs, repeats: int) -> bool:
    """Return whether so many repeated rows are to be expected.

    The expectation is that of independent columns, each with its number of distinct values.
    """
    rows = len(next(iter(inputs.values())))
    combinations = 1.0
    for values in inputs.values():
        for column in values.reshape(rows, -1).T:
            combinations *= _distinct_values(column)
            if combinations > rows**2:
                return False
    expected = rows + combinations * math.expm1(-rows / combinations)
    return repeats <= TOLERANCE * expected


def _distinct_values(column: NDArray[Any]) -> float:
    count = len(set(column.tolist()))
    limit = FEW_TEXTS if column.dtype.kind in "OUS" else FEW * len(column)
    return math.inf if count > limit else count


def leaks(parts: Sequence[Inputs]) -> dict[str, int]:
    """Count the rows of later parts that are in the first one.

    `identical_rows` are exactly, `near_rows` nearly there.
    Counts of zero and natural repeats are left out.
    """
    exact = _shared(parts)
    near = _shared([rounded(part) for part in parts]) & ~exact
    counts = {
        "identical_rows": (parts[0], int(exact.sum())),
        "near_rows": (rounded(parts[0]), int(near.sum())),
    }
    return {
        name: count
        for name, (inputs, count) in counts.items()
        if count and not are_natural(inputs, count)
    }


def _shared(parts: Sequence[Inputs]) -> NDArray[np.bool_]:
    """Return which rows of later parts are in the first one."""
    first, *rest = (row_keys(part) for part in parts)
    trained = set(first)
    return np.array([key in trained for keys in rest for key in keys], bool)
