"""Sums of closed hours, by day and by version.

`pk` of a sum is `USAGE#ALL#<month>` or `USAGE#ALL#VERSION`; its `sk` is `<day>#<model>#<key>` or
`<model>#<version>`. Each sum says through which hour it reaches, so it takes every hour once,
however often a run is interrupted or repeated.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from functions.core.registry.table import Item, Put, Table
from functions.core.usage.counters import Counters, counters_from
from functions.core.usage.items import DAY_S, RowKey, hour_of, row_of

LATE_S = 900  # a write may be repeated for 5 minutes, and clocks differ
DAYS_KEPT = 3650  # ten years
HOURS_RUN = 1000  # hours of one run
PAGE = 1000  # entries of the index in one query
CHUNK = 50  # sums of one transaction
THROUGH = ("USAGE#ALL#STATE", "THROUGH")  # primary key of the last hour that is in the sums
VERSIONS_PK = "USAGE#ALL#VERSION"

Rows = list[tuple[str, RowKey, Counters]]  # hour, subject, counters
TimeLeft = Callable[[], bool]


def month_pk(month: str) -> str:
    """Return the DynamoDB partition key of a month's sums by day."""
    return f"USAGE#ALL#{month}"


def version_sk(model: str, version: int) -> str:
    """Return the DynamoDB sort key of a version's sums."""
    return f"{model}#{version:010d}"


def read_through(table: Table) -> str:
    """Return the last hour in the sums, "" before the first."""
    [item] = table.get([THROUGH])
    return item["through"] if item else ""


def read_rows(table: Table, entries: Iterable[Item]) -> Rows:
    """Read the rows of index entries, 100 in a call."""
    rows: Rows = []
    keys = ((entry["pk"], entry["sk"]) for entry in entries)
    while batch := list(islice(keys, 100)):
        rows += [(*row_of(item), counters_from(item)) for item in table.get(batch) if item]
    return rows


def fold(table: Table, now_s: float, time_left: TimeLeft = lambda: True) -> int:
    """Add closed hours to the sums; return their number.

    An hour is closed LATE_S after its end.

    Raises:
        Conflict: another run does the same.
        Unavailable: the table failed; the next run continues.
    """
    last = hour_of(now_s - LATE_S - 3600)
    for hours in range(HOURS_RUN):
        through = read_through(table)
        first = next(iter(table.usage_hours(f"{through}~" if through else "", 1)), None)
        if first is None or first["listed"][:13] > last:
            if through < last:
                _remember(table, last)
            return hours
        if not time_left():
            return hours
        hour = first["listed"][:13]
        _add_hour(table, hour, int(now_s) + DAYS_KEPT * DAY_S)
        _remember(table, hour)
    return HOURS_RUN


def _add_hour(table: Table, hour: str, expires_at: int) -> None:
    sums: dict[tuple[str, str], Counters] = {}
    for _, row, counters in read_rows(table, _entries(table, hour)):
        day = month_pk(hour[:7]), f"{hour[:10]}#{row.model}#{row.key or '-'}"
        version = VERSIONS_PK, version_sk(row.model, row.version)
        for at in (day, version):
            sums.setdefault(at, Counters()).add(counters)
    remaining = iter(sums.items())
    while chunk := dict(islice(remaining, CHUNK)):
        _add_sums(table, chunk, hour, expires_at)


def _entries(table: Table, hour: str) -> Iterable[Item]:
    """Yield the entries of an hour in the index."""
    after = hour
    while True:
        page = list(table.usage_hours(after, PAGE))
        for entry in page:
            if not entry["listed"].startswith(hour):
                return
            yield entry
        if len(page) < PAGE:
            return
        after = page[-1]["listed"]


def _add_sums(
    table: Table, sums: Mapping[tuple[str, str], Counters], hour: str, expires_at: int
) -> None:
    puts = []
    for at, item in zip(sums, table.get(list(sums)), strict=True):
        if item is not None and item["through"] >= hour:
            continue  # this hour is in it already
        counters = counters_from(item or {})
        counters.add(sums[at])
        condition = {"through": item["through"]} if item else None
        puts.append(Put(_sum_item(at, counters, hour, expires_at), condition))
    if puts:
        table.transact(puts)


def _sum_item(
    at: tuple[str, str], counters: Counters, hour: str, expires_at: int
) -> dict[str, Any]:
    item = {"pk": at[0], "sk": at[1], "through": hour, **counters.amounts()}
    if counters.last_ms:
        item["last_ms"] = counters.last_ms
    if at[0] != VERSIONS_PK:
        item["expires_at"] = expires_at
    return item


def _remember(table: Table, hour: str) -> None:
    table.transact([Put({"pk": THROUGH[0], "sk": THROUGH[1], "through": hour}, {})])
