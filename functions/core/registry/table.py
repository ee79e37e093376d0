"""Port of the registry's table: items, conditional puts, transactions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Item = Mapping[str, Any]


class Conflict(Exception):
    """When a condition of a transaction does not hold, or another transaction holds one of its items."""


@dataclass(frozen=True, slots=True)
class Put:
    """One item of a transaction, written if `where` holds: attributes of the item as it is now, or None for no item.

    An empty `where` always holds.
    """

    item: Item
    where: Item | None


class Table(Protocol):
    """A table with a partition key `pk`, a sort key `sk` and transactions. Reads see every finished write."""

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """The items of these keys, in their order."""

    def query(self, pk: str, prefix: str) -> Iterable[Item]:
        """The items of one partition whose sort key begins with `prefix`, ascending."""

    def listing(self, after: str = "", limit: int | None = None) -> Iterable[Item]:
        """`listed`, `state` and `reason` of every version whose `listed` is above `after`, in its order; may lag."""

    def pending(self, before: str, limit: int) -> Iterable[Item]:
        """`pk` and `sk` of the PENDING versions claimed before then, the longest-waiting first; may lag behind."""

    def transact(self, puts: Sequence[Put]) -> None:
        """Write all or nothing.

        Raises:
            Conflict: a condition does not hold.
        """
