"""Items of usage in the registry's table.

`pk` is `USAGE#<model>`, or for a key `USAGE#KEY#<id>`; no model's name has a `#`. `sk` is one of

    H#<hour>#<version>#<alias>#<key>    counters of an hour, e.g. of 2026-11-22T08
    ARM#<traffic>#<version>             counters of a version under a traffic object
    MONTH#<month>                       requests of a key with a quota

An hour's items are in the index `listing`, too, by hour: `kind` USAGE. Counts belong to the hour in
which they are written.
"""

import time
from collections.abc import Iterable
from typing import Any

from functions.core.records import record
from functions.core.registry.table import Add, Item
from functions.core.usage.counters import Counters

KIND = "USAGE"
NOTHING = "-"  # in keys, for a request without alias or access key; neither can be named so
DAY_S = 86_400


@record
class RowKey:
    """Counted subject: version, alias and access key, under a traffic object's id."""

    model: str
    version: int
    alias: str = ""
    key: str = ""
    traffic: str = ""


def usage_pk(model: str) -> str:
    """Return the DynamoDB partition key of a model's usage."""
    return f"USAGE#{model}"


def month_key(key_id: str, month: str) -> tuple[str, str]:
    """Return the DynamoDB primary key of an access key's month."""
    return f"USAGE#KEY#{key_id}", f"MONTH#{month}"


def arm_sk(traffic: str, version: int | None = None) -> str:
    """Return the DynamoDB sort key of a version under a traffic object.

    Without a version, the prefix of them all.
    """
    return f"ARM#{traffic}#" if version is None else f"ARM#{traffic}#{version:010d}"


def hour_of(unix_s: float) -> str:
    """Return the hour of a Unix time in UTC.

    >>> hour_of(1795335330)
    '2026-11-22T08'
    """
    return time.strftime("%Y-%m-%dT%H", time.gmtime(unix_s))


def hour_sk(hour: str, version: int, alias: str, key: str) -> str:
    """Return the DynamoDB sort key of an hour's counters."""
    return f"H#{hour}#{version:010d}#{alias or NOTHING}#{key or NOTHING}"


def row_of(item: Item) -> tuple[str, RowKey]:
    """Return the hour of an hour's item, and what it counts."""
    _, hour, version, alias, key = item["sk"].split("#")
    model = item["pk"].removeprefix("USAGE#")
    return hour, RowKey(model, int(version), _named(alias), _named(key))


def _named(text: str) -> str:
    return "" if text == NOTHING else text


def adds_of(
    rows: Iterable[tuple[RowKey, Counters]],
    quota_keys: Iterable[str],
    now_s: float,
    keep_days: int,
) -> list[Add]:
    """Return the writes that count rows, each item once."""
    items: dict[tuple[str, str], Counters] = {}
    values: dict[tuple[str, str], dict[str, Any]] = {}
    hour, expires_at = hour_of(now_s), int(now_s) + keep_days * DAY_S
    for row, counters in rows:
        version, alias, key = row.version, row.alias or NOTHING, row.key or NOTHING
        pk, sk = usage_pk(row.model), hour_sk(hour, version, alias, key)
        listed = f"{hour}#{row.model}#{version:010d}#{alias}#{key}"
        _sum(items, (pk, sk), counters)
        values[pk, sk] = {"kind": KIND, "listed": listed}
        if row.traffic:
            _sum(items, (pk, arm_sk(row.traffic, version)), counters)
        if row.key in quota_keys:
            _sum(items, month_key(row.key, hour[:7]), counters)
    return [
        _add(at, counters, {"expires_at": expires_at, **values.get(at, {})})
        for at, counters in items.items()
    ]


def _sum(items: dict[tuple[str, str], Counters], at: tuple[str, str], counters: Counters) -> None:
    items.setdefault(at, Counters()).add(counters)


def _add(at: tuple[str, str], counters: Counters, values: dict[str, Any]) -> Add:
    if at[1].startswith("MONTH#"):  # a quota needs no more
        amounts = {"requests": counters.requests, "errors": counters.errors}
        return Add(*at, {name: n for name, n in amounts.items() if n}, values)
    if counters.last_ms:
        values["last_ms"] = counters.last_ms
    return Add(*at, counters.amounts(), values)
