"""Keys and values of earlier requests, for prompts that begin alike.

A conversation's next turn and a shared system prompt then cost only their new tokens.
"""

import threading
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

MATCH_MIN = 16  # tokens; less is not worth a copy
LOSS_MAX = 8  # tokens at an entry's end that are given up rather than copying all others
SPARE_TOKENS = 256  # an idle entry keeps for its next turn


class Entry(Protocol):
    """Keys and values of a sequence of tokens, with room for `capacity`."""

    tokens: list[int]
    owner: str  # caller whose prompt it holds; the cache sets it

    @property
    def capacity(self) -> int:
        """Number of tokens that it has room for."""

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that it holds."""

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`."""

    def rest(self) -> None:
        """Free the memory that only runs need."""


E = TypeVar("E", bound=Entry)


class Memory(Protocol[E]):
    """Allocator of entries; capacities and lengths are numbers of tokens."""

    def size_bytes(self, capacity: int) -> int:
        """Return the bytes that an entry with this capacity takes."""

    def make(self, capacity: int) -> E:
        """Return an empty entry.

        Raises:
            MemoryError: the process has not enough.
        """

    def copy(self, entry: E, length: int, capacity: int) -> E:
        """Return a new entry with the first `length` tokens of another one.

        Raises:
            MemoryError: the process has not enough.
        """


class PrefixCache(Generic[E]):
    """LRU cache of entries by their tokens, limited in bytes.

    The limit counts idle entries and those in use. An entry in use belongs to one request, from
    `acquire` to `release`. A prompt matches entries of its own owner alone: a shorter time or a
    number of saved tokens would tell one caller what another one sent.
    """

    def __init__(self, memory: Memory[E], limit_bytes: int) -> None:
        """Allocate entries from `memory`, together at most `limit_bytes`."""
        self._memory = memory
        self._limit_bytes = limit_bytes
        self._lock = threading.RLock()
        self._idle: list[E] = []  # least recently used first
        self._used: list[E] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of idle and used entries; runs of used ones included."""
        with self._lock:
            return sum(entry.size_bytes for entry in self._idle) + self._used_bytes

    def match(self, prompt: Sequence[int], owner: str = "") -> int:
        """Return how many of a prompt's tokens its owner's entries save."""
        with self._lock:
            return max((usable(entry.tokens, prompt) for entry in self._owned(owner)), default=0)

    def acquire(self, prompt: Sequence[int], capacity: int, owner: str = "") -> E:
        """Return an entry with room for `capacity` tokens.

        It already holds the longest beginning of the prompt that an idle entry of `owner` has, of
        at least MATCH_MIN tokens; else it is empty. That idle entry itself is returned, without its
        other tokens, if these are at most LOSS_MAX and its capacity is enough, or if there is no
        room for a copy; otherwise a copy is.

        Raises:
            MemoryError: it does not fit beside the entries in use.
        """
        with self._lock:
            entry = self._saved(prompt, capacity, owner)
            if entry is None:
                entry = self._make(capacity)
            entry.owner = owner
            self._used.append(entry)
            return entry

    def release(self, entry: E) -> None:
        """Keep an entry after its request, as the most recently used one.

        Its owner's idle entries whose tokens it begins with are dropped.
        """
        with self._lock:
            self._used = [each for each in self._used if each is not entry]
            entry.rest()
            count = len(entry.tokens)
            self._idle = [
                each
                for each in self._idle
                if each.owner != entry.owner
                or common_prefix(each.tokens, entry.tokens) < len(each.tokens)
            ]
            if count >= MATCH_MIN and self._make_room(entry.size_bytes):
                self._idle.append(self._shrunk(entry))

    def clear(self) -> None:
        """Forget all idle entries."""
        with self._lock:
            self._idle.clear()

    @property
    def _used_bytes(self) -> int:
        # A reused entry that rested has less until its first run.
        return sum(self._memory.size_bytes(entry.capacity) for entry in self._used)

    def _owned(self, owner: str) -> list[E]:
        return [entry for entry in self._idle if entry.owner == owner]

    def _saved(self, prompt: Sequence[int], capacity: int, owner: str) -> E | None:
        owned = self._owned(owner)
        best = max(owned, key=lambda entry: usable(entry.tokens, prompt), default=None)
        saved = 0 if best is None else usable(best.tokens, prompt)
        if best is None or not saved:
            return None
        expendable = len(best.tokens) - saved <= LOSS_MAX
        if not (expendable and best.capacity >= capacity):
            if self._make_room(self._memory.size_bytes(capacity), keep=best):
                try:
                    entry = self._memory.copy(best, saved, capacity)
                except MemoryError:  # the process has none: `_make` gives up more
                    return None
                self._touch(best, keep=not expendable)
                return entry
            if best.capacity < capacity:
                return None
        missing_bytes = self._memory.size_bytes(best.capacity) - best.size_bytes
        if not self._make_room(missing_bytes, keep=best):
            return None
        self._touch(best, keep=False)
        best.truncate(saved)
        return best

    def _make(self, capacity: int) -> E:
        size_bytes = self._memory.size_bytes(capacity)
        if not self._make_room(size_bytes):
            raise MemoryError(
                f"{size_bytes} bytes of keys and values do not fit into {self._limit_bytes}"
            )
        try:
            return self._memory.make(capacity)
        except MemoryError:
            self._idle.clear()
            return self._memory.make(capacity)

    def _touch(self, entry: E, *, keep: bool) -> None:
        self._idle = [each for each in self._idle if each is not entry]
        if keep:
            self._idle.append(entry)

    def _make_room(self, size_bytes: int, keep: E | None = None) -> bool:
        """Drop idle entries until there is room; return if there is."""
        kept_bytes = 0 if keep is None else keep.size_bytes
        if self._used_bytes + kept_bytes + size_bytes > self._limit_bytes:
            return False
        while self.held_bytes + size_bytes > self._limit_bytes:
            self._idle.remove(next(each for each in self._idle if each is not keep))
        return True

    def _shrunk(self, entry: E) -> E:
        """Copy an entry with much room to spare into a smaller one.

        There has to be memory for both."""
        capacity = len(entry.tokens) + SPARE_TOKENS
        size_bytes = self._memory.size_bytes(capacity)
        if 2 * capacity > entry.capacity:
            return entry
        if self.held_bytes + entry.size_bytes + size_bytes > self._limit_bytes:
            return entry
        try:
            smaller = self._memory.copy(entry, len(entry.tokens), capacity)
        except MemoryError:
            return entry
        smaller.owner = entry.owner
        smaller.rest()
        return smaller


def usable(tokens: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens a prompt can use, 0 if too few.

    The prompt's last token always has to run, for its logits.

    >>> usable(list(range(40)), [*range(30), 7])
    30
    >>> usable(list(range(40)), range(20))
    19
    """
    common = common_prefix(tokens, prompt[: len(prompt) - 1])
    return common if common >= MATCH_MIN else 0


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of equal elements at the start of two sequences."""
    low, high = 0, min(len(first), len(second))
    first, second = list(first[:high]), list(second[:high])
    while low < high:  # the first `low` are equal; compared in blocks, which is fast
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
