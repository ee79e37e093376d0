"""Sums of closed hours, and what readers make of them and of the hours since."""

from collections.abc import Sequence

import pytest

from functions.core.errors import Unavailable
from functions.core.registry.table import Put
from functions.core.usage.fold import LATE_S, fold, read_through
from functions.core.usage.meter import Meter
from functions.core.usage.reader import UsageReader
from tests.fakes import MemoryTable

NOON = 1_795_348_800.0  # 2026-11-22T12:00:00Z
HOUR_S = 3600


class FailingTable(MemoryTable):
    """Table whose transaction of this number from now on fails."""

    fails_at = -1

    def transact(self, puts: Sequence[Put]) -> None:
        self.fails_at -= 1
        if self.fails_at == 0:
            raise Unavailable("no answer")
        super().transact(puts)


@pytest.fixture
def table() -> FailingTable:
    return FailingTable()


def count(table: MemoryTable, at_s: float, model: str = "m", version: int = 1, *, key: str = "",
          times: int = 1) -> None:  # fmt: skip
    meter = Meter(table, now=lambda: at_s)
    for _ in range(times):
        meter.count(model, version, "prod", key, "", 200, 1_000_000, inferences=2)
    meter.flush()


def totals(table: MemoryTable, model: str | None = None) -> dict[tuple[str, int], int]:
    sums = UsageReader(table).totals(model)
    return {version: counters.requests for version, counters in sums.items()}


def days(table: MemoryTable, first: str, last: str) -> dict[tuple[str, str, str], int]:
    sums: dict[tuple[str, str, str], int] = {}
    for hour, row, counters in UsageReader(table).days(first, last):
        at = hour[:10], row.model, row.key
        sums[at] = sums.get(at, 0) + counters.requests
    return sums


def test_an_hour_is_summed_once_it_is_closed(table: FailingTable) -> None:
    count(table, NOON)
    closed_s = NOON + HOUR_S + LATE_S

    assert fold(table, closed_s - 1) == 0
    assert fold(table, closed_s) == 1
    assert fold(table, closed_s) == 0
    assert read_through(table) == "2026-11-22T12"


@pytest.mark.parametrize("hours", range(0, 60, 6))
def test_readers_see_the_same_whenever_hours_are_summed(table: FailingTable, hours: int) -> None:
    for hour in range(0, 50, 5):
        count(table, NOON + hour * HOUR_S, times=hour + 1)
        count(table, NOON + hour * HOUR_S, "n", 2, key="a")
    before = totals(table), totals(table, "m"), days(table, "2026-11-22", "2026-11-24")

    fold(table, NOON + hours * HOUR_S)

    assert totals(table) == {("m", 1): 235, ("n", 2): 10}
    assert totals(table, "m") == {("m", 1): 235}
    assert (totals(table), totals(table, "m"), days(table, "2026-11-22", "2026-11-24")) == before
    assert days(table, "2026-11-23", "2026-11-23") == {
        ("2026-11-23", "m", ""): 16 + 21 + 26 + 31 + 36,
        ("2026-11-23", "n", "a"): 5,
    }


@pytest.mark.parametrize("step", range(1, 9))
def test_an_interrupted_run_counts_nothing_twice(table: FailingTable, step: int) -> None:
    for hour in range(2):
        for n in range(60):  # more than a transaction's sums
            count(table, NOON + hour * HOUR_S, f"m{n}", key="a")
    table.fails_at = step
    late_s = NOON + 10 * HOUR_S
    with pytest.raises(Unavailable):
        fold(table, late_s)

    fold(table, late_s)

    assert totals(table) == {(f"m{n}", 1): 2 for n in range(60)}
    assert set(days(table, "2026-11-22", "2026-11-22").values()) == {2}


def test_days_of_several_months_are_read(table: FailingTable) -> None:
    for day in (0, 8, 9, 39, 40):  # 2026-11-22 + day
        count(table, NOON + day * 24 * HOUR_S)
    fold(table, NOON + 60 * 24 * HOUR_S)

    summed = days(table, "2026-11-30", "2026-12-31")
    assert [day for day, _, _ in summed] == ["2026-11-30", "2026-12-01", "2026-12-31"]


def test_a_run_stops_when_its_time_is_over(table: FailingTable) -> None:
    for hour in range(5):
        count(table, NOON + hour * HOUR_S)
    times = iter([True, True, False])

    assert fold(table, NOON + 10 * HOUR_S, lambda: next(times)) == 2
    assert totals(table) == {("m", 1): 5}


def test_reads_do_not_grow_with_models(table: FailingTable) -> None:
    reads = []
    for n in range(80):
        count(table, NOON, f"m{n}")
        before = table.reads
        totals(table)
        totals(table, "m0")
        reads.append(table.reads - before)

    assert set(reads) == {reads[0]}
