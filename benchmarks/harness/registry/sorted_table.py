"""Registry table in memory whose reads cost the same at any size.

DynamoDB's do, too.

moto scans all items for each query of an index, so its time would hide the function's.
"""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence

from functions.core.registry.table import Conflict, Item, Put, Write

LAST = "\x7f"  # after every character of a sort key


class SortedTable:
    """Table with sorted partitions and a sorted index, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._items: dict[tuple[str, str], Item] = {}
        self._partitions: defaultdict[str, list[str]] = defaultdict(list)
        self._index: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """Return the items of up to 100 keys."""
        self.calls += bool(keys)
        return [self._items.get(key) for key in keys]

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        """Yield a partition's items by sort-key prefix, ascending."""
        self.calls += 1
        sks = self._partitions[pk]
        for sk in sks[bisect_left(sks, prefix) : bisect_left(sks, prefix + LAST)]:
            yield self._items[pk, sk]

    def last(self, pk: str, prefix: str, before: str, limit: int) -> Iterator[Item]:
        """Yield a partition's items below a sort key, descending."""
        self.calls += 1
        sks = self._partitions[pk]
        first, end = bisect_left(sks, prefix), bisect_left(sks, before or prefix + LAST)
        for sk in reversed(sks[max(first, end - limit) : end]):
            yield self._items[pk, sk]

    def listed(self, kind: str, after: str, limit: int, prefix: str = "") -> Iterator[Item]:
        """Yield a kind's entries above `after`, ascending."""
        self.calls += 1
        rows = self._index[kind]
        first = bisect_right(rows, (max(after, prefix), LAST, LAST)) if after else 0
        if prefix > after:
            first = bisect_left(rows, (prefix, "", ""))
        for listed, pk, sk in rows[first : first + limit]:
            if listed.startswith(prefix):
                yield {"pk": pk, "sk": sk, "listed": listed}

    def transact(self, puts: Sequence[Write]) -> None:
        """Write all items, or none of them."""
        self.calls += 1
        for put in puts:
            self._check(put)
        for put in puts:
            if isinstance(put, Put):
                self._store(put.item)

    def _check(self, write: Write) -> None:
        if not isinstance(write, Put):
            raise NotImplementedError("no measured operation deletes")
        standing = self._items.get((write.item["pk"], write.item["sk"]))
        if write.condition is None and standing is not None:
            raise Conflict("it exists")
        if any((standing or {}).get(n) != v for n, v in (write.condition or {}).items()):
            raise Conflict("it is not as expected")

    def _store(self, item: Item) -> None:
        pk, sk = item["pk"], item["sk"]
        standing = self._items.get((pk, sk))
        if standing is None:
            insort(self._partitions[pk], sk)
        if standing is None or standing.get("listed") != item.get("listed"):
            if standing and "listed" in standing:
                self._index[standing["kind"]].remove((standing["listed"], pk, sk))
            if "listed" in item:
                insort(self._index[item["kind"]], (item["listed"], pk, sk))
        self._items[pk, sk] = item
