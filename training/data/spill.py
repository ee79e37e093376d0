"""Collection of outputs, in a temporary file where they are large."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

IN_MEMORY_BYTES = 512 * 10**6  # size of an output of all rows, e.g. class probabilities of pixels


class Collected:
    """Outputs (n, ...) of chunks of rows, put together."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._parts: list[Sequence[Array]] = []
        self._files: list[Array] = []

    def put(self, part: slice, outputs: Sequence[Array]) -> None:
        """Add the outputs of the next chunk, the rows of `part`."""
        if not self._parts and not self._files:
            self._files = self._mapped(part, outputs)
        if self._files:
            for file, values in zip(self._files, outputs, strict=True):
                file[part] = values
        else:
            self._parts.append(outputs)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Return each output's rows of all chunks."""
        if self._files:
            return tuple(self._files)
        return tuple(np.concatenate(chunks) for chunks in zip(*self._parts, strict=True))

    def _mapped(self, part: slice, outputs: Sequence[Array]) -> list[Array]:
        """Return mapped temporary files, none if memory holds all rows."""
        count = min(part.stop, self._rows) - part.start
        total = sum(values.nbytes for values in outputs) * self._rows / max(count, 1)
        by_row = all(values.ndim and len(values) == count for values in outputs)
        if total <= IN_MEMORY_BYTES or not by_row:
            return []
        files: list[Array] = []
        for values in outputs:
            with tempfile.TemporaryFile() as file:  # the mapping keeps it after it is closed
                shape = (self._rows, *values.shape[1:])
                _reserve(file.fileno(), values[:1].nbytes * self._rows)
                files.append(np.memmap(file, values.dtype, "w+", shape=shape))
        return files


def _reserve(file: int, size: int) -> None:
    """Reserve disk space: without it, writing to a mapping ends the process.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file, 0, size)
