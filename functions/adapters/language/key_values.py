"""Keys and values of one sequence, in memory that stays in place."""

import math
from collections.abc import Sequence
from ctypes import memmove

from functions.adapters.language.logits import NativeLogits
from functions.adapters.onnx.buffers import BoundRuns, Buffer, aligned
from functions.core.protocol.signature import DATATYPES
from functions.core.records import record


@record
class Slab:
    """Form of one cache tensor: (*lead, tokens, size).

    `lead` is (batch 1, heads), or (2 x layers, batch 1, heads) where one tensor holds all layers.
    `past` and `present` are the names of the input and of the output.
    """

    past: str
    present: str
    datatype: str
    lead: tuple[int, ...]
    size: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in one row of `lead`."""
        return self.size * (DATATYPES[self.datatype] or 0)

    @property
    def rows(self) -> int:
        """Number of rows: layers and heads."""
        return math.prod(self.lead)


class KeyValues:
    """Keys and values of a sequence, up to `capacity` tokens.

    A `shared` cache is input and output of a run at once: the operator GroupQueryAttention writes
    new tokens behind the others. Else, a run reads one buffer and writes the other, which its
    Concat fills with old and new tokens; then they change places.

    Implements `Entry` of core.language.prefix_cache.
    """

    def __init__(
        self, runs: BoundRuns, slabs: Sequence[Slab], capacity: int, *, shared: bool
    ) -> None:
        self._values: list[int | None] = []  # `_current` as the runtime's values
        self.tokens: list[int] = []
        self.owner = ""
        self.capacity = capacity
        self._runs = runs
        self._slabs = slabs
        self._shared = shared
        self._places = places(slabs, capacity)
        self._current = Buffer(self._places[-1])
        self._spare: Buffer | None = None
        self.logits: NativeLogits | None = None  # for the next token

    def __del__(self) -> None:
        self._runs.release(*self._values)

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffers."""
        spare = 0 if self._spare is None else self._spare.size_bytes
        return self._current.size_bytes + spare

    def prepare(self) -> Buffer:
        """Map the memory of runs; return the buffer to write.

        Raises:
            MemoryError: there is not enough.
        """
        if self._shared:
            return self._current
        if self._spare is None:
            self._spare = Buffer(self._places[-1])
        return self._spare

    def rest(self) -> None:
        """Free the memory that only runs need."""
        self._spare = self.logits = None

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        if length < len(self.tokens):
            if not self._shared:
                self._move(self, length)
                self._clear_values()
            del self.tokens[length:]

    def copy_from(self, source: "KeyValues", length: int) -> None:
        """Take over the first `length` tokens of another sequence."""
        self._move(source, length)
        self.tokens = source.tokens[:length]

    def inputs(self) -> Sequence[int | None]:
        """Return the runtime's values of the tokens so far.

        They are one handle (OrtValue*) for each slab, on memory of this object, which keeps them.
        """
        if not self._values:
            self._values = self._make_values(self._current, len(self.tokens))
        return self._values

    def outputs(self, count: int) -> Sequence[int | None]:
        """Return the runtime's values for a run of `count` more tokens.

        They are one handle (OrtValue*) for each slab, on memory of this object, to `add` after the
        run or to `discard`. None among a run's outputs would let the runtime allocate it.
        """
        if self._shared:
            return self.inputs()
        return self._make_values(self.prepare(), len(self.tokens) + count)

    def add(self, tokens: Sequence[int], outputs: Sequence[int | None]) -> None:
        """Add tokens, which a run has written to `outputs`; keep these."""
        if not self._shared:
            self._clear_values()
            self._values = list(outputs)
            self._current, self._spare = self.prepare(), self._current
        self.tokens.extend(tokens)

    def discard(self, outputs: Sequence[int | None]) -> None:
        """Free values from `outputs` after a run that failed."""
        if not self._shared:
            self._runs.release(*outputs)

    def _make_values(self, buffer: Buffer, length: int) -> list[int | None]:
        length = self.capacity if self._shared else length
        return [
            self._runs.value(buffer.address + place, each.datatype, (*each.lead, length, each.size))
            for each, place in zip(self._slabs, self._places, strict=False)
        ]

    def _clear_values(self) -> None:
        self._runs.release(*self._values)
        self._values = []

    def _move(self, source: "KeyValues", length: int) -> None:
        """Copy the first tokens of each row, maybe in the same memory."""
        to_length = self.capacity if self._shared else length
        from_length = source.capacity if source._shared else len(source.tokens)
        for at, slab in enumerate(self._slabs):
            size = slab.token_bytes
            target = self._current.address + self._places[at]
            origin = source._current.address + source._places[at]
            for _ in range(slab.rows):
                memmove(target, origin, length * size)
                target += to_length * size
                origin += from_length * size


def places(slabs: Sequence[Slab], capacity: int) -> list[int]:
    """Return where each slab begins in a buffer, and the buffer's size."""
    result = [0]
    for slab in slabs:
        result.append(result[-1] + aligned(slab.rows * capacity * slab.token_bytes))
    return result
