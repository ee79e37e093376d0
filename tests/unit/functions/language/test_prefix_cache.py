"""Prefix cache: which tokens an entry saves, and how many bytes all have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.language.prefix_cache import (
    LOSS_MAX,
    MATCH_MIN,
    SPARE_TOKENS,
    PrefixCache,
    common_prefix,
)


class Row:
    """Entry whose keys and values are the tokens themselves.

    Of its `buffers`, a resting one has the first alone.
    """

    def __init__(self, capacity: int, buffers: int = 1) -> None:
        self.buffers = self._mapped = buffers
        self.tokens: list[int] = []
        self.owner = ""
        self.capacity = capacity
        self.keys: list[int] = []

    @property
    def size_bytes(self) -> int:
        return 10 * self.capacity * self._mapped

    def truncate(self, length: int) -> None:
        del self.tokens[length:], self.keys[length:]

    def rest(self) -> None:
        self._mapped = 1

    def run(self, tokens: list[int]) -> None:
        self._mapped = self.buffers
        assert len(self.tokens) + len(tokens) <= self.capacity
        self.tokens += tokens
        self.keys += tokens


class Memory:
    """Maker of rows, of which `fail` cannot be made."""

    def __init__(self, buffers: int = 1) -> None:
        self.buffers = buffers
        self.copies = 0
        self.fail = 0

    def size_bytes(self, capacity: int) -> int:
        return 10 * capacity * self.buffers

    def make(self, capacity: int) -> Row:
        if self.fail:
            self.fail -= 1
            raise MemoryError
        return Row(capacity, self.buffers)

    def copy(self, entry: Row, length: int, capacity: int) -> Row:
        row = self.make(capacity)
        self.copies += 1
        row.run(entry.tokens[:length])
        return row


def reply(
    cache: PrefixCache[Row], prompt: list[int], tokens: list[int], room: int = 0, owner: str = ""
) -> int:
    """Run a prompt and a reply; return how many tokens were saved."""
    entry = cache.acquire(prompt, len(prompt) + len(tokens) + room, owner)
    saved = len(entry.tokens)
    assert entry.tokens == entry.keys == prompt[:saved]
    assert saved < len(prompt)
    entry.run(prompt[saved:] + tokens)
    assert entry.size_bytes <= cache.held_bytes <= cache._limit_bytes
    cache.release(entry)
    return saved


SYSTEM = list(range(100, 200))


def test_a_conversation_runs_its_new_tokens_alone() -> None:
    memory = Memory()
    cache = PrefixCache(memory, 10_000)

    assert reply(cache, SYSTEM, [1, 2, 3], room=300) == 0
    turn = [*SYSTEM, 1, 2, 3, 50, 51]
    assert cache.match(turn) == 103
    assert reply(cache, turn, [4], room=200) == 103
    assert memory.copies == 0  # there was room
    assert cache.held_bytes == 10 * 403  # one entry


def test_an_equal_prompt_runs_its_last_token() -> None:
    cache = PrefixCache(Memory(), 10_000)
    reply(cache, SYSTEM, [])

    assert cache.match(SYSTEM) == 99
    assert reply(cache, SYSTEM, [7]) == 99


def test_prompts_that_share_a_system_prompt_keep_their_own_entries() -> None:
    cache = PrefixCache(Memory(), 10_000)
    first, second = [*SYSTEM, *range(40)], [*SYSTEM, *range(40, 80)]
    reply(cache, first, [])

    assert reply(cache, second, []) == 100
    assert cache.match([*first, 1]) == 140
    assert cache.match([*second, 1]) == 140


def test_a_few_tokens_at_the_end_are_given_up_instead_of_copying() -> None:
    memory = Memory()
    cache = PrefixCache(memory, 10_000)
    reply(cache, SYSTEM, [1] * LOSS_MAX)

    assert reply(cache, [*SYSTEM, 2], []) == 100
    assert memory.copies == 0
    reply(cache, [*SYSTEM, 3] * 2, [1] * (LOSS_MAX + 1))
    assert memory.copies == 1


def test_short_prefixes_are_not_worth_it() -> None:
    cache = PrefixCache(Memory(), 10_000)
    reply(cache, SYSTEM, [])

    assert cache.match([*SYSTEM[: MATCH_MIN - 1], 1, 2]) == 0
    assert cache.match([*SYSTEM[:MATCH_MIN], 1, 2]) == MATCH_MIN


def test_the_entry_used_least_recently_goes_first() -> None:
    cache = PrefixCache(Memory(), 3200)
    prompts = [[start] * 100 for start in range(3)]
    for prompt in prompts:
        reply(cache, prompt, [])
    reply(cache, prompts[0], [])
    reply(cache, [9] * 100, [])

    assert [cache.match(prompt) for prompt in prompts] == [99, 0, 99]


def test_an_entry_that_does_not_fit_is_refused_and_the_others_stay() -> None:
    cache = PrefixCache(Memory(), 3000)
    reply(cache, SYSTEM, [])

    with pytest.raises(MemoryError, match="40000 bytes of keys and values do not fit into 3000"):
        cache.acquire([*SYSTEM, 1], 4000)
    assert cache.match(SYSTEM) == 99


def test_entries_in_use_count() -> None:
    cache = PrefixCache(Memory(), 3000)
    entry = cache.acquire(SYSTEM, 200)

    with pytest.raises(MemoryError):
        cache.acquire([1] * 150, 150)
    cache.release(entry)
    assert len(cache.acquire([1] * 150, 150).tokens) == 0


def test_a_reused_entry_has_room_for_its_second_buffer() -> None:
    cache = PrefixCache(Memory(buffers=2), 3500)
    first, second = [1] * 150, [2] * 100
    reply(cache, first, [])
    reply(cache, second, [])
    assert cache.held_bytes == 1500 + 1000

    entry = cache.acquire(first, 150)  # not run yet

    assert len(entry.tokens) == 149
    assert (cache.held_bytes, cache.match(second)) == (3000, 0)
    with pytest.raises(MemoryError):
        cache.acquire(second, 100)


def test_idle_entries_are_given_up_when_the_process_has_no_memory() -> None:
    memory = Memory()
    cache = PrefixCache(memory, 10_000)
    reply(cache, SYSTEM, [])
    memory.fail = 2  # the copy, and the first attempt without it

    assert reply(cache, [*SYSTEM, *range(300)], []) == 0
    assert cache.held_bytes == 4000


def test_room_that_a_reply_did_not_use_is_given_back() -> None:
    cache = PrefixCache(Memory(), 100_000)

    reply(cache, SYSTEM, [1], room=4000)

    assert cache.held_bytes == 10 * (101 + SPARE_TOKENS)


@pytest.mark.parametrize("room", [0, 4000])  # in place, and as a smaller copy
def test_an_owner_neither_sees_nor_takes_anothers_entries(room: int) -> None:
    cache = PrefixCache(Memory(), 100_000)
    reply(cache, SYSTEM, [], room, owner="a")

    assert cache.match([*SYSTEM, 1], "b") == cache.match([*SYSTEM, 1]) == 0
    assert reply(cache, SYSTEM, [5, 6], owner="b") == 0
    assert cache.match([*SYSTEM, 5, 6, 7], "b") == 102
    assert cache.match([*SYSTEM, 5, 6, 7], "a") == 100
    assert reply(cache, [*SYSTEM, 5, 6, 7], [], owner="a") == 100
    assert cache.match([*SYSTEM, 5, 6, 7, 8], "b") == 102


def test_an_owner_without_room_for_a_copy_gives_up_its_own_entry() -> None:
    cache = PrefixCache(Memory(), 1500)
    reply(cache, SYSTEM, [], owner="a")
    reply(cache, SYSTEM, [], owner="b")

    assert (cache.match(SYSTEM, "a"), cache.match(SYSTEM, "b")) == (0, 99)


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.tuples(TOKENS, TOKENS, st.integers(0, 400)), max_size=12),
    limit=st.integers(1000, 9000),
    buffers=st.integers(1, 2),
)
def test_entries_hold_what_their_prompts_say_within_the_limit(
    prompts: list[tuple[list[int], list[int], int]], limit: int, buffers: int
) -> None:
    cache = PrefixCache(Memory(buffers), limit)
    shared = [0, 1] * 10
    for prompt, tokens, room in prompts:
        size_bytes = 10 * buffers * (len(shared) + len(prompt) + len(tokens) + room)
        if size_bytes > limit:
            with pytest.raises(MemoryError):
                reply(cache, shared + prompt, tokens, room)
            continue
        predicted = cache.match(shared + prompt)
        saved = reply(cache, shared + prompt, tokens, room)
        assert saved == predicted or (saved == 0 and 2 * size_bytes > limit)
        assert cache.held_bytes <= limit


@given(first=TOKENS, second=TOKENS)
def test_common_prefix_is_the_longest(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)

    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or length == len(first)
