"""Model runs on memory of the caller, without copies.

For models whose outputs are the next run's inputs, or too large to be copied
(docs/decisions/0051-the-decode-loop.md).
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from ctypes import POINTER, addressof, byref, c_char, c_int64, c_size_t, c_void_p
from typing import Any

from functions.adapters.onnx.capi import OrtError
from functions.adapters.onnx.runs import ELEMENTS, Names
from functions.adapters.onnx.sessions import OnnxSession, run_failure
from functions.core.errors import ExecutionFailed
from functions.core.protocol.signature import DATATYPES

_ALIGNMENT = 64  # bytes: a cache line, and the widest registers


class Buffer:
    """Memory of zeros outside the heap.

    It goes back to the system when it is freed. Pages take memory only once they are written.
    """

    def __init__(self, size_bytes: int) -> None:
        """Map memory.

        Raises:
            MemoryError: there is not enough.
        """
        self.size_bytes = max(1, size_bytes)
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # counted by RLIMIT_DATA
            self._map = mmap.mmap(-1, self.size_bytes, flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"{size_bytes} bytes are not free") from error
        self.address = addressof(c_char.from_buffer(self._map))

    def view(self, code: str) -> Any:
        """Return a memoryview of numbers, by a code of `struct`."""
        return memoryview(self._map).cast(code)  # type: ignore[call-overload]


def aligned(size_bytes: int) -> int:
    """Round up a size so that what lies behind is aligned, too."""
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


class BoundRuns:
    """Runs of a session, with inputs and outputs in fixed order."""

    def __init__(self, session: OnnxSession, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._session = session
        self._api = session.library.api
        self._inputs, self._outputs = Names(inputs), Names(outputs)

    def value(self, address: int, datatype: str, shape: Sequence[int]) -> int:
        """Return a new value (OrtValue) on memory that has to outlive it."""
        size_bytes = math.prod(shape) * (DATATYPES[datatype] or 0)
        return self._api.new(
            self._api.CreateTensorWithDataAsOrtValue,
            self._session.library.memory,
            address,
            size_bytes,
            (c_int64 * len(shape))(*shape),
            len(shape),
            ELEMENTS[datatype],
        )

    def release(self, *values: int | None) -> None:
        """Free values, not their memory."""
        for value in values:
            if value:
                self._api.ReleaseValue(value)

    def run(self, inputs: Any, outputs: Any, timeout_s: float) -> None:
        """Run the model on arrays of values (`c_void_p * n`).

        The runtime makes a value for each output that is null.

        Raises:
            ExecutionFailed: the model failed on these values.
            OrtError: it failed, and not because of them.
            TimedOut: it was stopped after `timeout_s`.
            MemoryError: it asked for more memory than there is.
        """
        step = _Step(self._api)
        watchdog = self._session.watchdog
        watchdog.watch(step, timeout_s)
        try:
            self._api.Run(
                self._session.handle,
                step.options,
                self._inputs.pointer,
                inputs,
                len(self._inputs),
                self._outputs.pointer,
                len(self._outputs),
                outputs,
            )
        except OrtError as error:
            raise run_failure(error, terminated=step.terminated, timeout_s=timeout_s) from None
        finally:
            # Freed by `_Step`, once neither this run nor the watchdog has it.
            watchdog.unwatch(step)

    def read(self, value: int | None) -> tuple[int, tuple[int, ...]]:
        """Return the address and shape of an output's value."""
        if not value:
            raise ExecutionFailed("the model gave no value for an output")
        element, sizes, rank = ctypes.c_int(), POINTER(c_int64)(), c_size_t()
        describe = self._api.GetTensorElementTypeAndShapeDataReference
        describe(value, byref(element), byref(sizes), byref(rank))
        shape = tuple(sizes[: rank.value]) if rank.value else ()
        return self._api.new(self._api.GetTensorMutableData, value), shape


class Binding:
    """Values on memory of the caller, for many runs.

    A tensor of one dimension is (address, datatype, number of elements).
    """

    def __init__(
        self,
        runs: BoundRuns,
        inputs: Sequence[tuple[int, str, int]],
        outputs: Sequence[tuple[int, str, int]],
    ) -> None:
        self._runs = runs
        self._inputs = (c_void_p * len(inputs))(*(runs.value(a, d, [n]) for a, d, n in inputs))
        self._outputs = (c_void_p * len(outputs))(*(runs.value(a, d, [n]) for a, d, n in outputs))

    def __del__(self) -> None:
        self._runs.release(*self._inputs, *self._outputs)

    def run(self, timeout_s: float) -> None:
        """Run the model, as `BoundRuns.run` does."""
        self._runs.run(self._inputs, self._outputs, timeout_s)


class _Step:
    """Run that the watchdog can stop."""

    def __init__(self, api: Any) -> None:
        self._set_terminate = api.RunOptionsSetTerminate
        self._release = api.ReleaseRunOptions  # for __del__, when modules may be cleared
        self.options = c_void_p(api.new(api.CreateRunOptions))
        self.terminated = False

    def __del__(self) -> None:
        self._release(self.options)

    def terminate(self) -> None:
        """Abort the run; called from another thread."""
        self.terminated = True
        self._set_terminate(self.options)
