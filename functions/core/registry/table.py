"""Interface to the registry's database table: reads, conditional puts, transactions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from functions.core.records import record

Item = Mapping[str, Any]


class Conflict(Exception):
    """Error for a transaction that was cancelled because of another writer.

    A condition did not hold, or another transaction was writing one of the items.
    """


@record
class Put:
    """Conditional write of one item in a transaction.

    `condition` holds attribute values that the stored item must have. None means that the item
    must not exist yet; an empty mapping always holds.
    """

    item: Item
    condition: Item | None


@record
class Add:
    """Increase of an item's numbers; a missing item counts as zeros.

    `values` are attributes to set beside, e.g. `expires_at`.
    """

    pk: str
    sk: str
    amounts: Mapping[str, int]
    values: Item


@record
class Delete:
    """Conditional removal of one item in a transaction.

    `key` is (pk, sk). The item must exist; `condition` holds attribute values that it must have.
    """

    key: tuple[str, str]
    condition: Item


Write = Put | Delete


class Table(Protocol):
    """Interface to a database table with partition key, sort key and transactions.

    The keys are `pk` and `sk`. Reads see every finished write, except those of the indexes:
    `listing`, `listed`, `newest`, `pending`, `ignored`, `access_keys` and `usage_hours`.
    """

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """Return the item of each (pk, sk) key, None if missing.

        Items are in the order of `keys`.
        """

    def get_valid(self, pk: str, sk: str, now_s: float) -> Item | None:
        """Return an item unless its `valid_until` is past; None if missing.

        Both look the same on the way to the caller: the table leaves out what is past.
        """

    def query(self, pk: str, prefix: str) -> Iterable[Item]:
        """Return a partition's items whose sort key begins with `prefix`, ascending."""

    def between(self, pk: str, first: str, last: str) -> Iterable[Item]:
        """Return a partition's items in a range of sort keys, ascending."""

    def usage_hours(self, after: str, limit: int) -> Iterable[Item]:
        """List up to `limit` hours of usage, oldest first, from position `after`.

        Ascending by `listed`; `after` itself is excluded. Items have `pk`, `sk` and `listed`. The
        index may lag.
        """

    def last(self, pk: str, prefix: str, before: str, limit: int) -> Iterable[Item]:
        """Return a partition's last items below a sort key, descending.

        There are up to `limit`, whose sort keys begin with `prefix`. `before` itself is excluded,
        "" is the end.
        """

    def listed(self, kind: str, after: str, limit: int, prefix: str = "") -> Iterable[Item]:
        """List up to `limit` entries of a kind after a position.

        Ascending by `listed`, which begins with `prefix`; `after` itself is excluded. Items have
        `pk`, `sk`, `listed` and, if there is one, `state`. The index may lag.
        """

    def newest(self, kind: str, before: str, limit: int) -> Iterable[Item]:
        """List up to `limit` entries of a kind, newest first.

        Descending by `listed`; `before` itself is excluded, "" is the end. Items have `pk`, `sk`
        and `listed`. The index may lag.
        """

    def listing(self, after: str = "", limit: int | None = None) -> Iterable[Item]:
        """List all model versions by name and number, from position `after`.

        Ascending by `listed`; `after` itself is excluded. Items have `listed`, `state` and, if
        there is one, `reason`. The index may lag.
        """

    def pending(self, before: str, limit: int) -> Iterable[Item]:
        """Return keys of PENDING versions claimed before a time, oldest first.

        Items have at least `pk` and `sk`. The index may lag.
        """

    def ignored(self, limit: int) -> Iterable[Item]:
        """Return up to `limit` records of ignored uploads, newest first.

        Items have `sk`, which is the upload's key, and `reason`. The index may lag.
        """

    def access_keys(self, after: str, limit: int) -> Iterable[Item]:
        """List up to `limit` access keys, oldest first, from position `after`.

        Ascending by `listed`; `after` itself is excluded. Items have `pk` and `listed`. The index
        may lag.
        """

    def transact(self, puts: Sequence[Write]) -> None:
        """Write and remove all items in one transaction, or none of them.

        Raises:
            Conflict: a condition does not hold, or another transaction interferes.
        """

    def add(self, adds: Sequence[Add], token: str) -> None:
        """Apply all increases in one transaction, or none of them.

        The same increases with the same token are applied once within ten minutes.

        Raises:
            Conflict: another transaction interferes; nothing was written.
        """
