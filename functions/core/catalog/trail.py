"""Pages of audit records, newest first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from functions.core.errors import InvalidRequest
from functions.core.registry.items import model_pk, switch_pk
from functions.core.registry.table import Item, Table

_PLACE = re.compile(r"(AUDIT#\d{12})?", re.ASCII)  # sort key of a record

CHUNK = 100  # records in one query
SCANNED_MAX = 1000  # records looked through for one page, which may be short for that reason


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Audit records to list; an empty field fits every record."""

    actor: str = ""
    action: str = ""
    alias: str = ""
    sees: Callable[[str], bool] | None = None  # takes a model's name; None for every record

    def matches(self, record: Item) -> bool:
        """Return True if an audit record is shown."""
        if self.actor and record["actor"] != self.actor:
            return False
        if self.action and record["action"] != self.action:
            return False
        if self.alias and self.alias not in record["after"].get("aliases", {}):
            return False
        model = audited_model(record)
        return self.sees is None or (model is not None and self.sees(model))


def audited_model(record: Item) -> str | None:
    """Return the model of an audit record, None for a key."""
    kind, _, name = record["pk"].partition("#")
    return name if kind in ("MODEL", "SERVING") else None


class Trail:
    """Audit records by time. Every method raises `Unavailable` if the table fails."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def page(self, rule: AuditFilter, before: str, limit: int) -> tuple[list[Item], str]:
        """Return a page of all audit records, and the next page's position.

        Records of releases before this one are in their models' pages alone.
        """
        return _page(self._all(before), lambda record: str(record["listed"]), rule, limit)

    def model_page(
        self, model: str, rule: AuditFilter, before: str, limit: int
    ) -> tuple[list[Item], str]:
        """Return a page of a model's audit records, loads and unloads included."""
        changes, _, switches = before.partition("/")
        if not all(_PLACE.fullmatch(place) for place in (changes, switches)):
            raise InvalidRequest("cursor: no such page; send next_cursor of the page before")
        pages = {
            pk: self._of(pk, position)
            for pk, position in ((model_pk(model), changes), (switch_pk(model), switches))
        }
        places = {model_pk(model): changes, switch_pk(model): switches}

        def place(record: Item) -> str:
            places[record["pk"]] = record["sk"]
            return "/".join(places.values())

        return _page(_merged(*pages.values()), place, rule, limit)

    def _of(self, pk: str, before: str) -> Iterator[Item]:
        while True:
            records = list(self._table.last(pk, "AUDIT#", before, CHUNK))
            yield from records
            if len(records) < CHUNK:
                return
            before = records[-1]["sk"]

    def _all(self, before: str) -> Iterator[Item]:
        while True:
            rows = list(self._table.newest("AUDIT", before, CHUNK))
            keys = [(row["pk"], row["sk"]) for row in rows]
            yield from (item for item in self._table.get(keys) if item)
            if len(rows) < CHUNK:
                return
            before = rows[-1]["listed"]


def _merged(first: Iterator[Item], second: Iterator[Item]) -> Iterator[Item]:
    """Yield the records of two descending lists, newest first."""
    left, right = next(first, None), next(second, None)
    while left or right:
        if right is None or (left and left["at"] >= right["at"]):
            assert left is not None  # noqa: S101 (for the type checker)
            yield left
            left = next(first, None)
        else:
            yield right
            right = next(second, None)


def _page(
    records: Iterator[Item], place: Callable[[Item], str], rule: AuditFilter, limit: int
) -> tuple[list[Item], str]:
    """Return up to `limit` matching records and the next position."""
    page: list[Item] = []
    position = ""
    for record in islice(records, SCANNED_MAX):
        if rule.matches(record):
            if len(page) == limit:
                return page, position
            page.append(record)
        position = place(record)
    return page, position if next(records, None) else ""
