"""Detection of exact and near duplicates among the rows of data.

A copy of a training row in the test part is answered from memory: accuracy looks better than it is.
Repeats are natural, and no copies, where columns of few values allow few different rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import lazy

Inputs = Mapping[str, NDArray[Any]]  # by name, each (n, ...)

FEW = 0.1  # distinct values per row; a column with more is taken for continuous
FEW_TEXTS = 50  # distinct values; a text column with more is free text and not a category
TOLERANCE = 10  # repeats beyond the expected ones, as a factor, that are still natural
DIGITS = 3  # significant digits in which near duplicates agree
NOT_WORDS = re.compile(r"[\W_]+")
# Bytes of a digest: two of ten million different rows have the same one in three of a million sets.
KEY_BYTES = 8
# Bytes of rows whose columns' distinct values are counted; of more, rows are taken evenly.
COUNTED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Digests of rows (n,): of their values, and of rounded values."""

    exact: NDArray[np.uint64]
    near: NDArray[np.uint64]

    def take(self, rows: Any) -> RowKeys:
        """Select the digests of rows."""
        if not len(self.exact):  # there are no inputs
            return self
        return RowKeys(self.exact[rows], self.near[rows])


def row_keys(inputs: Inputs) -> RowKeys:
    """Compute digests of rows, reading each row once."""
    rows = max(map(len, inputs.values()), default=0)
    keys = RowKeys(np.empty(rows, np.uint64), np.empty(rows, np.uint64))
    for part in lazy.chunks(*inputs.values()) if inputs else ():
        values = {name: each[part] for name, each in inputs.items()}
        keys.exact[part], keys.near[part] = _digests(values), _digests(rounded(values))
    return keys


def _digests(inputs: Inputs) -> list[int]:
    columns = [_row_bytes(values) for values in inputs.values()]
    return [
        int.from_bytes(hashlib.blake2b(b"\0".join(cells), digest_size=KEY_BYTES).digest())
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


def copies(inputs: Inputs, keys: RowKeys) -> NDArray[np.int64] | None:
    """Number the distinct rows in their order; return each row's number (n,).

    Returns None where no row is repeated, or repeats are natural.
    """
    _, first, distinct = np.unique(keys.exact, return_index=True, return_inverse=True)
    repeats = len(distinct) - len(first)
    if not repeats or are_natural(inputs, repeats):
        return None
    numbers: NDArray[np.int64] = np.argsort(np.argsort(first))[distinct]
    return numbers


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


def are_natural(inputs: Inputs, repeats: int, *, near: bool = False) -> bool:
    """Return whether so many repeated rows are to be expected.

    The expectation is that of independent columns, each with its number of distinct values; of
    rounded values if `near`.
    """
    rows = len(next(iter(inputs.values())))
    counted = _evenly(inputs)
    if near:
        counted = rounded(counted)
    combinations = 1.0
    for values in counted.values():
        for column in values.reshape(len(values), -1).T:
            combinations *= _distinct_values(column)
            if combinations > rows**2:
                return False
    expected = rows + combinations * math.expm1(-rows / combinations)
    return repeats <= TOLERANCE * expected


def _evenly(inputs: Inputs) -> Inputs:
    """Return every k-th row, so that COUNTED_BYTES are left."""
    arrays = list(inputs.values())
    at_a_time = lazy.rows_at_a_time(*arrays) * (COUNTED_BYTES // lazy.CHUNK_BYTES)
    step = -(-len(arrays[0]) // at_a_time) or 1
    return {name: values[::step] for name, values in inputs.items()}


def _distinct_values(column: NDArray[Any]) -> float:
    count = len(set(column.tolist()))
    limit = FEW_TEXTS if column.dtype.kind in "OUS" else FEW * len(column)
    return math.inf if count > limit else count


def leaks(first: Inputs, trained: RowKeys, later: Sequence[RowKeys]) -> dict[str, int]:
    """Count the rows of later parts that are in the first one.

    `identical_rows` are exactly, `near_rows` nearly there.
    Counts of zero and natural repeats are left out.
    """
    exact = np.concatenate([np.isin(keys.exact, trained.exact) for keys in later])
    near = np.concatenate([np.isin(keys.near, trained.near) for keys in later]) & ~exact
    counts = {"identical_rows": int(exact.sum()), "near_rows": int(near.sum())}
    return {
        name: count
        for name, count in counts.items()
        if count and not are_natural(first, count, near=name == "near_rows")
    }
