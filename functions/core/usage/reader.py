"""Reads of usage in a constant number of calls.

Of one model: its hours, in one query. Of all: the sums by day or version, and since the last hour
in them the hours of all models, by the index.
"""

from functions.core.registry.table import Table
from functions.core.usage.counters import Counters, counters_from
from functions.core.usage.fold import VERSIONS_PK, Rows, month_pk, read_rows, read_through
from functions.core.usage.items import NOTHING, RowKey, row_of, usage_pk
from functions.core.usage.quota import month_of

RECENT_MAX = 2000  # rows read since the last sums, of all models: 20 calls


class UsageReader:
    """Usage in the registry's table.

    Every method raises `Unavailable` if the table fails.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def hours(self, model: str, first: str, last: str) -> Rows:
        """Return a model's rows from a first to a last hour."""
        items = self._table.between(usage_pk(model), f"H#{first}", f"H#{last}~")
        return [(*row_of(item), counters_from(item)) for item in items]

    def days(self, first: str, last: str) -> Rows:
        """Return all models' rows by key, in a range of days.

        Version and alias are missing in them.
        """
        rows: Rows = []
        for month in _months(first[:7], last[:7]):
            for item in self._table.between(month_pk(month), first, f"{last}~"):
                day, model, key = item["sk"].split("#")
                row = RowKey(model, 0, key="" if key == NOTHING else key)
                rows.append((day, row, counters_from(item)))
        for hour, row, counters in self._recent():
            if first <= hour[:10] <= last:
                rows.append((hour[:10], RowKey(row.model, 0, key=row.key), counters))
        return rows

    def month_of_key(self, key_id: str, now_s: float) -> int:
        """Return the requests of an access key this month, without failed ones."""
        month = month_of(now_s)
        rows = self.days(f"{month}-01", f"{month}-31")
        counted = [counters for _, row, counters in rows if row.key == key_id]
        return sum(counters.requests - counters.errors for counters in counted)

    def totals(self, model: str | None = None) -> dict[tuple[str, int], Counters]:
        """Return sums over all time by model and version."""
        totals: dict[tuple[str, int], Counters] = {}
        first, last = (" ", "~") if model is None else (f"{model}#", f"{model}#~")
        for item in self._table.between(VERSIONS_PK, first, last):
            name, _, version = item["sk"].rpartition("#")
            totals[name, int(version)] = counters_from(item)
        recent = self._recent() if model is None else self._recent_of(model)
        for _, row, counters in recent:
            totals.setdefault((row.model, row.version), Counters()).add(counters)
        return totals

    def _recent(self) -> Rows:
        """Return rows of all models since the last hour in the sums."""
        through = read_through(self._table)
        entries = self._table.usage_hours(f"{through}~" if through else "", RECENT_MAX)
        return read_rows(self._table, entries)

    def _recent_of(self, model: str) -> Rows:
        through = read_through(self._table)
        return self.hours(model, f"{through}~" if through else "", "~")


def _months(first: str, last: str) -> list[str]:
    """Return the months from a first to a last one.

    >>> _months("2026-11", "2027-02")
    ['2026-11', '2026-12', '2027-01', '2027-02']
    """
    year, month = map(int, first.split("-"))
    months = []
    while (name := f"{year:04}-{month:02}") <= last:
        months.append(name)
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return months
