"""Check of access keys: replies, reads of the registry, cache, behaviour under attack."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from functions.core.access import gate as gates
from functions.core.access.gate import Gate
from functions.core.access.grants import Grant, Scope
from functions.core.access.keys import key_digest, new_id, new_key, parse_key
from functions.core.errors import (
    Forbidden,
    InvalidRequest,
    PlatformError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from tests.data_plane import PATIENCE_S, Clock

UNIX_S = 1_795_335_330
SECONDS = 60.0


class Registry:
    """Registry of keys in a dictionary; counts its reads."""

    def __init__(self) -> None:
        self.grants: dict[tuple[str, str], Grant] = {}
        self.reads = 0
        self.broken = False

    def __call__(self, key_id: str, sha256: str, now_s: float) -> Grant | None:
        self.reads += 1
        if self.broken:
            raise Unavailable("the registry does not answer; try again")
        return self.grants.get((key_id, sha256))

    def add(self, *scopes: Scope, valid_until: int | None = None) -> str:
        """Store a key with these scopes and return its text."""
        key_id = new_id()
        text = new_key(key_id)
        grant = Grant(key_id, frozenset(scopes or Scope), ("*",), valid_until)
        self.grants[key_id, key_digest(text)] = grant
        return text

    def end(self, text: str, at: int = 0) -> None:
        """End a key, as revocation and rotation do."""
        key_id = str(parse_key(text))
        self.grants[key_id, key_digest(text)] = Grant(key_id, frozenset(Scope), ("*",), at)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(registry: Registry, clock: Clock) -> Gate:
    unix = lambda: UNIX_S + clock.now - 1000.0  # noqa: E731
    return Gate(registry, SECONDS, clock, unix, chance=lambda: 0.0)


def headers(key: str) -> dict[str, str]:
    return {"x-api-key": key}


def refusal(gate: Gate, key: str) -> PlatformError:
    with pytest.raises(PlatformError) as refused:
        gate.verify(key)
    return refused.value


@pytest.mark.parametrize(
    "name",
    ["authorization: Bearer {}", "authorization: bearer  {} ", "x-api-key: {}"],
)
def test_a_key_comes_as_bearer_or_as_api_key(gate: Gate, registry: Registry, name: str) -> None:
    header, _, value = name.partition(": ")
    key = registry.add()

    assert gate.authorize({header: value.format(key)}, Scope.INFER).key_id == parse_key(key)


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        {"authorization": "Basic bWZ5Og=="},
        {"x-api-key": " "},
    ],
)
def test_a_request_without_a_key_costs_no_read(
    gate: Gate, registry: Registry, sent: dict[str, str]
) -> None:
    with pytest.raises(Unauthenticated, match="no access key came") as error:
        gate.authorize(sent, Scope.READ)

    assert error.value.instance_code == "KEY_MISSING"
    assert registry.reads == 0


def test_the_same_key_twice_is_one_key_and_two_are_refused(gate: Gate, registry: Registry) -> None:
    key, other = registry.add(), registry.add()

    assert gate.authorize({"authorization": f"Bearer {key}", "x-api-key": key}, Scope.READ)
    with pytest.raises(InvalidRequest, match="two different keys") as error:
        gate.authorize({"authorization": f"Bearer {key}", "x-api-key": other}, Scope.READ)
    assert key not in str(error.value)
    assert other not in str(error.value)


def test_a_key_for_another_scheme_is_taken_from_x_api_key(gate: Gate, registry: Registry) -> None:
    sent = {"authorization": "Basic bWZ5Og==", "x-api-key": registry.add()}

    assert gate.authorize(sent, Scope.READ)


def test_a_missing_scope_is_named(gate: Gate, registry: Registry) -> None:
    with pytest.raises(Forbidden, match="a key with the scope infer; yours has deploy, read"):
        gate.authorize(headers(registry.add(Scope.READ, Scope.DEPLOY)), Scope.INFER)


def bad_keys(registry: Registry) -> dict[str, str]:
    """Return one key of each kind that must be refused, well-formed ones first."""
    good, revoked = registry.add(), registry.add()
    registry.end(revoked)
    return {
        "unknown": new_key(new_id()),
        "wrong secret": new_key(str(parse_key(good))),
        "expired": registry.add(valid_until=UNIX_S),
        "revoked": revoked,
        "mistyped": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "malformed": "x",
    }


def test_all_invalid_keys_have_one_reply(gate: Gate, registry: Registry) -> None:
    refusals = [refusal(gate, key) for key in bad_keys(registry).values()]

    replies = {(type(error), str(error), error.instance_code) for error in refusals}
    assert replies == {(Unauthenticated, gates.INVALID, "KEY_INVALID")}


def test_well_formed_invalid_keys_cost_the_same_reads(registry: Registry, clock: Clock) -> None:
    """A read at first, none while the refusal is cached, and one again after that."""
    for kind, key in bad_keys(registry).items():
        gate = Gate(registry, SECONDS, clock, lambda: UNIX_S, chance=lambda: 0.0)
        counts = []
        for wait in (0.0, SECONDS - 1, 1.0):
            clock.now += wait
            before = registry.reads
            refusal(gate, key)
            counts.append(registry.reads - before)
        well_formed = kind not in ("mistyped", "malformed")
        assert counts == ([1, 0, 1] if well_formed else [0, 0, 0]), kind


def test_a_verified_key_is_read_once_in_its_lifetime(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    key = registry.add()
    for _ in range(100):
        gate.authorize(headers(key), Scope.INFER)
        clock.now += 0.5
    assert registry.reads == 1

    clock.now += SECONDS
    gate.authorize(headers(key), Scope.INFER)
    assert registry.reads == 2


def test_lifetimes_are_shortened_at_random_and_never_extended(
    registry: Registry, clock: Clock
) -> None:
    eager = Gate(registry, SECONDS, clock, chance=lambda: 1.0)
    key = registry.add()
    eager.verify(key)
    clock.now += SECONDS * (1 - gates.JITTER) - 0.1
    eager.verify(key)
    assert registry.reads == 1
    clock.now += 0.2
    eager.verify(key)
    assert registry.reads == 2


def test_a_revoked_key_stops_within_the_stated_seconds(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    key = registry.add()
    gate.verify(key)
    registry.end(key)

    answers = []
    for _ in range(70):
        clock.now += 1.0
        try:
            answers.append(bool(gate.verify(key)))
        except Unauthenticated:
            answers.append(False)
    assert answers == [True] * 59 + [False] * 11


def test_a_replaced_secret_stops_at_its_stated_time_although_cached(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    """The end is part of the cached answer, so no second read is needed to see it pass."""
    key = registry.add()
    registry.end(key, at=UNIX_S + 10)
    gate.verify(key)
    clock.now += 9.9
    gate.verify(key)
    clock.now += 0.2

    assert isinstance(refusal(gate, key), Unauthenticated)
    assert registry.reads == 1


def test_a_lifetime_of_zero_caches_nothing(registry: Registry, clock: Clock) -> None:
    strict = Gate(registry, 0.0, clock)
    key = registry.add()
    strict.verify(key)
    registry.end(key)

    assert isinstance(refusal(strict, key), Unauthenticated)


def test_ten_thousand_wrong_keys_in_a_row_cost_few_reads(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    good = registry.add()
    gate.verify(good)
    reads, began = registry.reads, clock.now
    kinds = []
    for _ in range(10_000):
        kinds.append(type(refusal(gate, new_key(new_id()))))
        clock.now += 0.001

    assert round(clock.now - began) == 10
    assert registry.reads - reads <= 200 == gates.BURST + 10 * gates.PER_SECOND
    assert set(kinds) == {Unauthenticated, TooManyRequests}
    assert gate.verify(good)  # keys in the cache are served meanwhile


def test_a_valid_key_passes_while_reads_are_left_and_costs_none(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    for _ in range(gates.BURST - 1):
        refusal(gate, new_key(new_id()))
    for _ in range(5):
        gate.verify(registry.add())
    refusal(gate, new_key(new_id()))
    late = registry.add()
    error = refusal(gate, late)
    assert isinstance(error, TooManyRequests)
    assert error.retry_after_s == 1

    clock.now += 1.0
    gate.verify(late)


def test_a_verified_key_is_read_again_during_an_attack(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    key = registry.add()
    gate.verify(key)
    clock.now += SECONDS
    while isinstance(refusal(gate, new_key(new_id())), Unauthenticated):
        pass

    assert gate.verify(key)


def test_both_caches_are_bounded_and_apart(
    gate: Gate, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "REFUSALS", 10)
    monkeypatch.setattr(gates, "GRANTS", 3)
    for _ in range(50):
        refusal(gate, new_key(new_id()))
    for _ in range(10):
        gate.verify(registry.add())

    assert (len(gate._refused), len(gate._verified)) == (10, 3)


def test_the_last_answer_counts_while_the_registry_fails(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    key, new = registry.add(), registry.add()
    gate.verify(key)
    registry.broken = True

    clock.now += SECONDS
    assert gate.verify(key)
    assert isinstance(refusal(gate, new), Unavailable)
    reads = registry.reads
    assert gate.verify(key)
    assert registry.reads == reads  # a failing registry is asked once a second
    clock.now += gates.STALE_SECONDS
    assert isinstance(refusal(gate, key), Unavailable)


def test_a_refused_key_does_not_come_back_while_the_registry_fails(
    gate: Gate, registry: Registry, clock: Clock
) -> None:
    key = registry.add()
    gate.verify(key)
    registry.end(key)
    clock.now += SECONDS
    assert isinstance(refusal(gate, key), Unauthenticated)
    registry.broken = True

    clock.now += SECONDS
    assert isinstance(refusal(gate, key), Unavailable)


def test_reads_of_a_failing_registry_use_up_no_allowance(gate: Gate, registry: Registry) -> None:
    registry.broken = True
    for _ in range(2 * gates.BURST):
        refusal(gate, new_key(new_id()))

    registry.broken = False
    assert gate.verify(registry.add())


def test_threads_with_the_same_key_read_once(registry: Registry, clock: Clock) -> None:
    reading, proceed = threading.Event(), threading.Event()

    def slowly(key_id: str, sha256: str, now_s: float) -> Grant | None:
        reading.set()
        assert proceed.wait(PATIENCE_S)
        return registry(key_id, sha256, now_s)

    gate = Gate(slowly, SECONDS, clock)
    key = registry.add()
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(gate.verify, key) for _ in range(8)]
        assert reading.wait(PATIENCE_S)
        proceed.set()
        assert {result.result(PATIENCE_S).key_id for result in results} == {parse_key(key)}
    assert registry.reads == 1


def test_invalidated_keys_are_read_again(gate: Gate, registry: Registry) -> None:
    key: Any = registry.add()
    gate.verify(key)
    gate.invalidate()
    gate.verify(key)

    assert registry.reads == 2
