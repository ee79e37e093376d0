"""Meter of an environment: what it counts, when it writes, what it may lose."""

from collections.abc import Sequence

import pytest

from functions.core.errors import Unavailable
from functions.core.registry.table import Add, Conflict
from functions.core.usage.arms import read_arms
from functions.core.usage.counters import Counters, counters_from
from functions.core.usage.items import month_key
from functions.core.usage.meter import PAUSE_S, RECENT, ROWS_MAX, ROWS_WRITE, TOKEN_S, Meter
from tests.fakes import MemoryTable

MS = 1_000_000  # ns
NOON = 1_795_348_800.0  # 2026-11-22T12:00:00Z


class UnreliableTable(MemoryTable):
    """Table whose next writes fail: before they are applied, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[tuple[Exception, bool]] = []  # error, and if the write is applied
        self.writes: list[tuple[str, int]] = []  # token and items

    def fail(self, error: Exception, *, applied: bool = False) -> None:
        self.failures.append((error, applied))

    def add(self, adds: Sequence[Add], token: str) -> None:
        self.writes.append((token, len(adds)))
        if not self.failures:
            return super().add(adds, token)
        error, applied = self.failures.pop(0)
        if applied:
            super().add(adds, token)
        raise error


class Setup:
    """Meter with a table and a clock."""

    def __init__(self, seconds: float = 10) -> None:
        self.table = UnreliableTable()
        self.elapsed = 0.0
        self.warnings: list[str] = []
        self.meter = self.environment(seconds)

    def environment(self, seconds: float = 10) -> Meter:
        return Meter(
            self.table,
            seconds,
            clock=lambda: self.elapsed,
            now=lambda: NOON + self.elapsed,
            chance=lambda: 0.0,
            warn=self.warnings.append,
        )

    def count(self, model: str = "m", times: int = 1, *, status: int = 200, key: str = "") -> None:
        for _ in range(times):
            self.meter.count(model, 1, "prod", key, "", status, 3 * MS, inferences=status < 300)

    def stored(self, model: str = "m") -> Counters:
        """Return the sum of a model's hours."""
        total = Counters()
        for item in self.table.query(f"USAGE#{model}", "H#"):
            total.add(counters_from(item))
        return total


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_the_end_of_an_environment_writes_every_count(setup: Setup) -> None:
    for number in range(3 * ROWS_WRITE):
        setup.count(f"m{number}")
    setup.table.fail(Conflict("written by another"))
    setup.meter.flush_all()

    assert [setup.stored(f"m{number}").requests for number in range(3 * ROWS_WRITE)] == [1] * 90
    assert len(setup.table.writes) == 4


def test_a_failing_table_is_asked_once_at_the_end(setup: Setup) -> None:
    setup.count()
    setup.table.fail(Unavailable("no answer"))
    setup.meter.flush_all()

    assert len(setup.table.writes) == 1


def test_the_versions_of_a_split_are_written_together(setup: Setup) -> None:
    def count(version: int, key: str) -> None:
        setup.meter.count("m", version, "prod", key, "split", 200, MS, drawn=True)

    for number in range(2 * ROWS_WRITE):
        count(1, f"key-{number}")
    for number in range(2 * ROWS_WRITE):
        count(2, f"key-{number}")
    setup.meter.flush()

    arms = read_arms(setup.table, "m", "split")
    assert {version: arm.drawn for version, arm in arms.items()} == {1: 15, 2: 15}


def test_an_hour_has_an_item_by_version_alias_and_key(setup: Setup) -> None:
    stages = {"load": 1, "decode": 2, "compute": 3, "encode": 4}
    setup.meter.count(
        "m",
        7,
        "prod",
        "0123456789ab",
        "",
        200,
        2_500_000,
        cold=True,
        bytes_in=10,
        bytes_out=20,
        inferences=3,
        stages_ns=stages,
    )
    setup.meter.count("m", 7, "", "", "", 400, MS)
    setup.meter.count("m", 7, "", "", "", 503, MS)
    setup.meter.flush_due()

    refused, served = setup.table.query("USAGE#m", "H#")
    assert served == {
        "pk": "USAGE#m",
        "sk": "H#2026-11-22T12#0000000007#prod#0123456789ab",
        "kind": "USAGE",
        "listed": "2026-11-22T12#m#0000000007#prod#0123456789ab",
        "expires_at": int(NOON) + 400 * 86_400,
        "last_ms": int(NOON) * 1000,
        "requests": 1,
        "ms": 3,
        "cold_starts": 1,
        "bytes_in": 10,
        "bytes_out": 20,
        "executions": 1,
        "inferences": 3,
        "queue_ns": 1,
        "input_ns": 2,
        "infer_ns": 3,
        "output_ns": 4,
        "l40": 1,
    }
    assert refused["sk"] == "H#2026-11-22T12#0000000007#-#-"
    assert (refused["requests"], refused["errors"], refused["refused"]) == (2, 1, 1)
    assert refused["fail_ns"] == 2 * MS
    assert "executions" not in refused


def test_the_start_of_an_environment_counts_with_its_first_request(setup: Setup) -> None:
    meter = Meter(setup.table, start_s=lambda: 0.25)
    for _ in range(2):
        meter.count("m", 1, "prod", "", "", 200, 3 * MS)

    [(_, row)] = meter.unwritten()
    assert row.ms == 250 + 2 * 3


def test_there_is_one_write_for_each_interval(setup: Setup) -> None:
    for second in range(30):
        setup.elapsed = float(second)
        setup.count()
        setup.meter.flush_due()

    assert len(setup.table.writes) == 3  # at 0, 10 and 20 s
    assert setup.stored().requests == 21


def test_a_clock_that_is_set_back_delays_no_write(setup: Setup) -> None:
    setup.count()
    setup.meter.flush_due()
    setup.elapsed = -3600.0
    setup.count()
    setup.meter.flush_due()

    assert setup.stored().requests == 2


def test_many_requests_between_two_writes_are_counted(setup: Setup) -> None:
    setup.count(times=3 * RECENT + 1)
    setup.meter.flush()

    assert setup.stored().requests == 3 * RECENT + 1


def test_a_write_may_come_before_the_interval(setup: Setup) -> None:
    setup.count()
    setup.meter.flush_due()
    setup.count()
    setup.meter.flush_due(early=True)

    assert setup.stored().requests == 2


def test_nothing_is_written_without_requests(setup: Setup) -> None:
    setup.meter.flush_due()

    assert setup.table.writes == []


def test_rows_that_do_not_fit_wait_for_the_next_write(setup: Setup) -> None:
    for n in range(ROWS_WRITE + 5):
        setup.count(f"m{n}")

    setup.meter.flush()
    waiting = {row.model for row, _ in setup.meter.unwritten()}
    setup.meter.flush()

    assert waiting == {f"m{n}" for n in range(ROWS_WRITE, ROWS_WRITE + 5)}
    assert all(setup.stored(f"m{n}").requests == 1 for n in range(ROWS_WRITE + 5))


@pytest.mark.parametrize("applied", [True, False])
def test_a_repeated_write_counts_once(setup: Setup, applied: bool) -> None:
    setup.count(times=5)
    setup.table.fail(Unavailable("no answer"), applied=applied)
    setup.meter.flush()
    setup.count(times=2)
    setup.meter.flush()  # again, with the token
    setup.meter.flush()  # what came since

    assert setup.stored().requests == 7
    first, again, later = (token for token, _ in setup.table.writes)
    assert first == again != later


def test_a_table_that_fails_is_left_alone_for_a_while(setup: Setup) -> None:
    """An attempt may take seconds: none follows the next replies."""
    setup.count()
    setup.table.fail(Unavailable("no answer"))
    setup.meter.flush_due()
    for _ in range(ROWS_MAX + 5):  # more rows than fit
        setup.count(f"m{setup.elapsed}")
        setup.elapsed += (PAUSE_S - 1) / (ROWS_MAX + 5)
        setup.meter.flush_due()
        setup.meter.flush_due(early=True)
    assert len(setup.table.writes) == 1

    setup.elapsed = PAUSE_S
    setup.meter.flush_due()
    assert len(setup.table.writes) == 2


def test_a_write_that_met_another_one_is_repeated_soon(setup: Setup) -> None:
    setup.count(times=5)
    setup.table.fail(Conflict("TransactionConflict"))
    setup.meter.flush()

    setup.meter.flush_due()  # `chance` is 0: at once

    assert setup.stored().requests == 5
    assert len({token for token, _ in setup.table.writes}) == 2


def test_counts_are_given_up_once_a_repetition_might_count_twice(setup: Setup) -> None:
    setup.count(times=5)
    setup.table.fail(Unavailable("no answer"), applied=True)
    setup.meter.flush()
    setup.elapsed = TOKEN_S
    setup.count(times=2)
    setup.meter.flush()

    assert setup.stored().requests == 7  # the first five were written
    assert setup.meter.lost == 5
    assert len(setup.warnings) == 1


def test_a_refused_write_is_an_error_and_does_not_stop_the_next(setup: Setup) -> None:
    setup.count(times=5)
    setup.table.fail(ValueError("AccessDenied"))
    with pytest.raises(ValueError, match="AccessDenied"):
        setup.meter.flush()
    setup.count()
    setup.meter.flush()

    assert setup.stored().requests == 1
    assert setup.meter.lost == 5


def test_memory_is_bounded_while_the_table_fails(setup: Setup) -> None:
    for n in range(ROWS_MAX + 3):
        setup.count(f"m{n}")

    assert len(setup.meter.unwritten()) == ROWS_MAX
    assert setup.meter.lost == 3


def test_environments_add_up_to_the_requests_made(setup: Setup) -> None:
    environments = [setup.environment() for _ in range(3)]
    for second in range(100):
        setup.elapsed = second / 2
        for meter in environments:
            meter.count("m", 1, "prod", "", "", 200, MS)
            meter.flush_due()
    for meter in environments:
        meter.flush()

    assert setup.stored().requests == 300


def test_a_killed_environment_loses_the_last_interval_at_most(setup: Setup) -> None:
    made = []
    for tenth in range(500):
        setup.elapsed = tenth / 10
        setup.count()
        setup.meter.flush_due()
        made.append(setup.elapsed)

        written = setup.stored().requests
        lost = made[written:]  # if it were killed now
        assert not lost or setup.elapsed - lost[0] < 10


def test_months_are_counted_for_keys_with_a_quota(setup: Setup) -> None:
    for key, has_quota in (("a", True), ("b", False)):
        setup.meter.count("m", 1, "prod", key, "", 200, MS, has_quota=has_quota)
        setup.meter.count("m", 2, "next", key, "", 500, MS, has_quota=has_quota)
    setup.meter.flush()

    month, none = setup.table.get([month_key(key, "2026-11") for key in "ab"])
    assert month is not None
    assert (month["requests"], month["errors"]) == (2, 1)
    assert none is None


def test_arms_are_counted_under_the_id_of_the_traffic_object(setup: Setup) -> None:
    count = setup.meter.count
    for status in (200, 200, 500):
        count("m", 1, "prod", "", "t1", status, MS)
    for key in ("a", "b"):
        count("m", 2, "prod", key, "t1", 200, 2 * MS)
    count("m", 2, "prod", "", "t2", 200, MS)
    count("m", 2, "prod", "", "", 200, MS)
    for agreed in (True, True, False, None):
        setup.meter.count_shadow("m", 3, "prod", "t1", 5 * MS, agreed=agreed)
    setup.meter.flush()

    arms = read_arms(setup.table, "m", "t1")
    assert {version: arm.requests for version, arm in arms.items()} == {1: 3, 2: 2, 3: 0}
    assert arms[1].errors == 1
    assert sum(arms[1].latency.values()) == 3
    shadow = arms[3]
    assert (shadow.shadowed, shadow.compared, shadow.agreed, shadow.failed) == (4, 3, 2, 1)
    assert sum(shadow.shadow_latency.values()) == 4
    assert not shadow.latency
    assert setup.stored().ms == 1 * 5 + 2 * 2 + 4 * 5


def test_one_write_has_each_item_once() -> None:
    setup = Setup()
    for traffic in ("", "t1", "t2"):  # replaced twice within an interval
        setup.meter.count("m", 1, "prod", "a", traffic, 200, MS, has_quota=True)
    setup.meter.flush()

    assert setup.stored().requests == 3
    assert setup.table.writes[0][1] == 4  # an hour, two traffic objects, a month


def test_sums_survive_being_written_and_read() -> None:
    counters = Counters()
    counters.requests, counters.latency, counters.shadow_latency = 3, {7: 2}, {9: 1}

    assert counters_from(counters.amounts()).amounts() == counters.amounts()
