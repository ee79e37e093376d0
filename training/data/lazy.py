"""Arrays larger than memory, whose rows are read when used.

`values[rows]` reads these rows; `select(values, rows)` chooses them and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK_BYTES = 16 * 2**20  # rows read at a time: far below any memory, far above a disk's latency


class Source(Protocol):
    """Reader of the rows of an array by number."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the rows that `read` returns."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return the limits of all values, where the format sets them."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def read(self, rows: NDArray[np.int64]) -> Array:
        """Return the rows of these numbers, in their order."""


class LazyArray(NDArrayOperatorsMixin):
    """Array (n, ...) that keeps row numbers and reads rows later.

    Everywhere else it stands for the whole array: a NumPy function reads all rows.
    """

    def __init__(self, source: Source, rows: NDArray[np.int64] | None = None) -> None:
        self._source = source
        self._rows = np.arange(len(source), dtype=np.int64) if rows is None else rows
        self.shape = (len(self._rows), *source.row_shape)
        self.dtype = source.dtype
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        for part in chunks(self):
            yield from self[part]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and key and _selects_rows(key[0]):
            if isinstance(key[0], int | np.integer):
                return self._source.read(self._rows[[int(key[0])]])[(0, *key[1:])]
            chosen = self.select(key[0])
            if any(isinstance(each, list | range | np.ndarray) for each in key[1:]):
                # Numbers of rows and of columns make pairs, so all of them are needed at once.
                pairs = not isinstance(key[0], slice)
                rows = np.arange(len(chosen)) if pairs else slice(None)
                return np.asarray(chosen)[(rows, *key[1:])]
            columns = (slice(None), *key[1:])
            return np.concatenate([chosen[part][columns] for part in chunks(chosen)])
        if isinstance(key, int | np.integer):
            return self._source.read(self._rows[[int(key)]])[0]
        if _selects_rows(key):
            return np.asarray(self.select(key))
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("rows that are read when they are used are always a copy")
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for part in chunks(self):
            whole[part] = self._source.read(self._rows[part])
        return whole

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(each) if isinstance(each, LazyArray) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask for such names before there is a source
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def select(self, rows: Any) -> LazyArray:
        """Choose rows by numbers, slice or mask, and read none of them."""
        return LazyArray(self._source, self._rows[rows])

    def min(self, *axes: Any, **options: Any) -> Any:
        """Return the smallest value, a chunk at a time."""
        return np.asarray(self).min(*axes, **options) if axes or options else self._extremes[0]

    def max(self, *axes: Any, **options: Any) -> Any:
        """Return the largest value, a chunk at a time."""
        return np.asarray(self).max(*axes, **options) if axes or options else self._extremes[1]

    @property
    def is_bounded(self) -> bool:
        """Return whether the format keeps all values finite."""
        return self._source.bounds is not None

    @cached_property
    def bounds(self) -> tuple[Any, Any]:
        """Return limits of the values: those of the format, or the extremes."""
        return self._extremes if self._source.bounds is None else self._source.bounds

    @cached_property
    def _extremes(self) -> tuple[Any, Any]:
        extremes = np.array([(part.min(), part.max()) for part in read_chunks(self)])
        return extremes[:, 0].min(), extremes[:, 1].max()

    def mean(self, axis: Any = None, **options: Any) -> Any:
        """Compute the mean over axes that include the rows, by chunk."""
        if not _over_rows(axis) or options:
            return np.asarray(self).mean(axis, **options)
        return moments(cast(Array, self), axis, gaps=False)[0].astype(_float(self.dtype))

    def std(self, axis: Any = None, **options: Any) -> Any:
        """Compute the standard deviation over such axes, by chunk."""
        if not _over_rows(axis) or options:
            return np.asarray(self).std(axis, **options)
        return moments(cast(Array, self), axis, gaps=False)[1].astype(_float(self.dtype))


def _selects_rows(key: Any) -> bool:
    if isinstance(key, np.ndarray):
        return key.ndim == 1
    return isinstance(key, int | np.integer | slice | list | range)


def _over_rows(axis: Any) -> bool:
    return axis is None or 0 in (axis if isinstance(axis, tuple) else (axis,))


def _float(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def is_lazy(values: Any) -> bool:
    """Return whether an array's rows are read when they are used."""
    return isinstance(values, LazyArray)


def is_bounded(values: Any) -> bool:
    """Return whether an array's format keeps all its values finite."""
    return isinstance(values, LazyArray) and values.is_bounded


def array(source: Source, in_memory_mb: float) -> Array:
    """Return all rows of a source or, above `in_memory_mb`, a LazyArray.

    It is typed as the array for which it stands.
    """
    lazy = LazyArray(source)
    return cast(Array, lazy) if lazy.nbytes > in_memory_mb * 1e6 else np.asarray(lazy)


def select(values: Array, rows: Any) -> Array:
    """Choose rows of an array, reading none of a lazy one."""
    selected: Array = cast(Any, values).select(rows) if is_lazy(values) else values[rows]
    return selected


def read(values: Mapping[str, Array]) -> dict[str, Array]:
    """Read all rows of arrays by name into memory."""
    return {name: np.asarray(each) for name, each in values.items()}


def rows_at_a_time(*arrays: Array, most: int | None = None) -> int:
    """Return how many rows make CHUNK_BYTES: one to `most`."""
    row_bytes = sum(math.prod(values.shape[1:]) * values.dtype.itemsize for values in arrays)
    rows = max(1, CHUNK_BYTES // max(row_bytes, 1))
    return rows if most is None else min(rows, most)


def chunks(*arrays: Any, most: int | None = None) -> Iterator[slice]:
    """Yield slices that cut arrays into chunks of CHUNK_BYTES."""
    size = rows_at_a_time(*arrays, most=most)
    for start in range(0, max(len(arrays[0]), 1), size):
        yield slice(start, start + size)


def read_chunks(values: Any) -> Iterator[Array]:
    """Yield an array's rows, a lazy one's by chunk."""
    if not is_lazy(values):
        yield values
        return
    for part in chunks(values):
        yield values[part]


def largest(values: Any) -> Any:
    """Return the largest value, or the limit that a format sets."""
    return values.bounds[1] if is_lazy(values) else values.max()


def moments(values: Array, axis: Any = 0, *, gaps: bool = True) -> tuple[Array, Array]:
    """Compute mean and standard deviation in float64.

    `axis` includes the rows. Values that are not finite are `gaps`, which do not count; an axis of
    gaps alone has mean 0 and deviation 0. Without gaps, they count as in NumPy.
    """

    def counted(part: Array) -> Array:
        return np.isfinite(part) if gaps else np.ones(part.shape, bool)

    count, total = np.zeros(()), np.zeros(())
    for part in read_chunks(values):
        finite = counted(part)
        count = count + finite.sum(axis=axis)
        total = total + np.where(finite, part, 0).sum(axis=axis, dtype=np.float64)
    count = np.maximum(count, 1)
    mean = total / count
    wide = np.expand_dims(mean, tuple(range(values.ndim)) if axis is None else axis)
    squares = np.zeros(())
    for part in read_chunks(values):
        squares = squares + (np.where(counted(part), part - wide, 0) ** 2).sum(axis=axis)
    return mean, np.sqrt(squares / count)
