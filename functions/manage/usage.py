"""Usage and its costs as the control plane's documents."""

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from functions.core.errors import InvalidRequest
from functions.core.registry.items import model_pk
from functions.core.registry.table import Table
from functions.core.registry.transactions import unknown_model
from functions.core.usage.counters import Counters
from functions.core.usage.fold import Rows
from functions.core.usage.histogram import quantile_us
from functions.core.usage.items import RowKey
from functions.core.usage.prices import Tariff
from functions.core.usage.reader import UsageReader
from functions.manage.documents.usage import (
    CountsDocument,
    LatencyDocument,
    PricesDocument,
    UsageDocument,
    UsageRow,
)

DAYS = 7  # without `from`
HOURS_DAYS_MAX = 31  # days of a model's hours, which are read one by one
DAYS_MAX = 400
FIRST_DAY = date(2020, 1, 1)  # nobody has used the service before

COUNTS = (
    *("requests", "errors", "refused", "inferences", "shadowed", "cold_starts", "ms"),
    *("bytes_in", "bytes_out", "tokens_in", "tokens_out"),
)


class ModelBy(StrEnum):
    """Groups of a model's usage."""

    VERSION = "version"
    ALIAS = "alias"
    KEY = "key"
    HOUR = "hour"
    DAY = "day"


class AllBy(StrEnum):
    """Groups of all models' usage."""

    MODEL = "model"
    KEY = "key"
    DAY = "day"


class UsageApi:
    """Requests about usage, from parameters to documents."""

    def __init__(
        self, table: Table, tariff: Tariff, flush_s: float, now: Callable[[], float]
    ) -> None:
        """Read `table`; environments write every `flush_s`, and `now` returns Unix time."""
        self._table = table
        self._reader = UsageReader(table)
        self._tariff = tariff
        self._flush_s = flush_s
        self._now = now

    def month_of_key(self, key_id: str) -> int:
        """Return the requests of an access key this month, without failed ones."""
        return self._reader.month_of_key(key_id, self._now())

    def of_model(
        self,
        model: str,
        by: ModelBy,
        first: date | None,
        last: date | None,
        version: int | None = None,
    ) -> UsageDocument:
        """Return a model's usage in a range of days.

        Raises:
            ModelNotFound: there is none.
            InvalidRequest: the range is none, or too long.
        """
        first, last = self._range(first, last, HOURS_DAYS_MAX)
        [meta] = self._table.get([(model_pk(model), "META")])
        if meta is None:
            raise unknown_model(model)
        rows = self._reader.hours(model, f"{first}T00", f"{last}T23")
        rows = [row for row in rows if version in (None, row[1].version)]
        return self._document(rows, by, first, last)

    def of_all(
        self, by: AllBy, first: date | None, last: date | None, sees: Callable[[str], bool]
    ) -> UsageDocument:
        """Return the usage of the models that a caller sees.

        Raises:
            InvalidRequest: the range is none, or too long.
        """
        first, last = self._range(first, last, DAYS_MAX)
        rows = [row for row in self._reader.days(f"{first}", f"{last}") if sees(row[1].model)]
        return self._document(rows, by, first, last)

    def _range(self, first: date | None, last: date | None, days: int) -> tuple[date, date]:
        today = datetime.fromtimestamp(self._now(), UTC).date()
        last = last or today
        for name, day in (("from", first), ("to", last)):
            if day and not FIRST_DAY <= day <= today + timedelta(days=1):
                raise InvalidRequest(f"{name}: {day} is not between {FIRST_DAY} and today, {today}")
        first = first or last - timedelta(days=DAYS - 1)
        if first > last:
            raise InvalidRequest(f"from: {first} is after {last}; send an earlier day")
        if (last - first).days >= days:
            raise InvalidRequest(f"from: {first} is more than {days} days before {last}")
        return first, last

    def _document(self, rows: Rows, by: ModelBy | AllBy, first: date, last: date) -> UsageDocument:
        groups: dict[Any, Counters] = {}
        for hour, row, counters in rows:
            groups.setdefault(_group(by, hour, row), Counters()).add(counters)
        documents = [
            UsageRow(**self._counts(counters), **{by.value: group})
            for group, counters in sorted(groups.items())
        ]
        return UsageDocument(
            from_day=f"{first}",
            to_day=f"{last}",
            by=by.value,
            rows=documents,
            total=CountsDocument(**self._counts(_sum(groups.values()))),
            prices=self._prices(),
            delay_seconds=self._flush_s,
        )

    def _counts(self, counters: Counters) -> dict[str, Any]:
        cost = self._tariff.cost_usd(counters)
        latency = {
            name: _ms(quantile_us(counters.latency, share))
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        }
        return {
            **{name: getattr(counters, name) for name in COUNTS},
            "latency_ms": LatencyDocument(**latency),
            "cost_usd": round(cost, 9),
            "cost_usd_per_1000": round(1000 * cost / counters.requests, 9)
            if counters.requests
            else None,
        }

    def _prices(self) -> PricesDocument:
        names = PricesDocument.model_fields
        return PricesDocument(**{name: getattr(self._tariff, name) for name in names})


def _group(by: ModelBy | AllBy, hour: str, row: RowKey) -> Any:
    match by.value:
        case "hour":
            return hour
        case "day":
            return hour[:10]
    return getattr(row, by.value)


def _sum(addends: Iterable[Counters]) -> Counters:
    total = Counters()
    for counters in addends:
        total.add(counters)
    return total


def _ms(us: float | None) -> float | None:
    return None if us is None else round(us / 1000, 3)
