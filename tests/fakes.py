"""In-memory fakes of the registry table and the buckets."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from functions.adapters.clock import iso
from functions.adapters.dynamodb_table import is_valid
from functions.core.errors import Unavailable
from functions.core.registration.uploaded_files import ObjectGone, PinnedObject
from functions.core.registry.table import Add, Conflict, Delete, Item, Write
from functions.core.registry.version import Blob, Source


class MemoryTable:
    """Registry table in a dictionary; counts its reads and transactions."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.transactions = 0
        self.reads = 0
        self.tokens: set[str] = set()

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        self.reads += 1
        return [copy.deepcopy(self.items.get(key)) for key in keys]

    def get_valid(self, pk: str, sk: str, now_s: float) -> Item | None:
        [item] = self.get([(pk, sk)])
        return item if item and is_valid(item, now_s) else None

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        self.reads += 1
        for key in sorted(self.items):
            if key[0] == pk and key[1].startswith(prefix):
                yield copy.deepcopy(self.items[key])

    def between(self, pk: str, first: str, last: str) -> Iterator[Item]:
        self.reads += 1
        for key in sorted(self.items):
            if key[0] == pk and first <= key[1] <= last:
                yield copy.deepcopy(self.items[key])

    def usage_hours(self, after: str, limit: int) -> Iterator[Item]:
        self.reads += 1
        hours = [item for item in self.items.values() if item.get("kind") == "USAGE"]
        for item in sorted(hours, key=lambda item: str(item["listed"])):
            if item["listed"] > after and limit > 0:
                limit -= 1
                yield {name: item[name] for name in ("pk", "sk", "listed")}

    def last(self, pk: str, prefix: str, before: str, limit: int) -> Iterator[Item]:
        self.reads += 1
        for key in sorted(self.items, reverse=True):
            if key[0] == pk and key[1].startswith(prefix) and (not before or key[1] < before):
                if limit == 0:
                    return
                limit -= 1
                yield copy.deepcopy(self.items[key])

    def listed(self, kind: str, after: str, limit: int, prefix: str = "") -> Iterator[Item]:
        self.reads += 1
        for item in self._of_kind(kind):
            if limit > 0 and item["listed"] > after and item["listed"].startswith(prefix):
                limit -= 1
                yield {n: item[n] for n in ("pk", "sk", "listed", "state") if n in item}

    def newest(self, kind: str, before: str, limit: int) -> Iterator[Item]:
        self.reads += 1
        for item in reversed(self._of_kind(kind)):
            if limit > 0 and (not before or item["listed"] < before):
                limit -= 1
                yield {name: item[name] for name in ("pk", "sk", "listed")}

    def _of_kind(self, kind: str) -> list[Item]:
        items = [item for item in self.items.values() if item.get("kind") == kind]
        return sorted(items, key=lambda item: str(item["listed"]))

    def listing(self, after: str = "", limit: int | None = None) -> Iterator[Item]:
        versions = (item for item in self.items.values() if item.get("kind") == "VERSION")
        listed = [item for item in versions if item["listed"] > after]
        for item in sorted(listed, key=lambda item: str(item["listed"]))[:limit]:
            yield {name: item[name] for name in ("listed", "state", "reason") if name in item}

    def pending(self, before: str, limit: int) -> Iterator[Item]:
        versions = (
            item
            for item in self.items.values()
            if item.get("pending") and item["claimed_at"] < before
        )
        for item in sorted(versions, key=lambda item: str(item["claimed_at"]))[:limit]:
            yield {"pk": item["pk"], "sk": item["sk"]}

    def ignored(self, limit: int) -> Iterator[Item]:
        self.reads += 1
        notes = [item for item in self.items.values() if item.get("kind") == "IGNORED"]
        for item in sorted(notes, key=lambda item: str(item["listed"]), reverse=True)[:limit]:
            yield {name: item[name] for name in ("sk", "listed", "reason")}

    def access_keys(self, after: str, limit: int) -> Iterator[Item]:
        self.reads += 1
        keys = [item for item in self.items.values() if item.get("kind") == "KEY"]
        for item in sorted(keys, key=lambda item: str(item["listed"])):
            if item["listed"] > after and limit > 0:
                limit -= 1
                yield {name: item[name] for name in ("pk", "sk", "listed")}

    def transact(self, puts: Sequence[Write]) -> None:
        for put in puts:
            pk, sk = _key(put)
            standing = self.items.get((pk, sk))
            if put.condition is None and standing is not None:
                raise Conflict(f"{sk} exists")
            if put.condition and (
                standing is None or any(standing.get(k) != v for k, v in put.condition.items())
            ):
                raise Conflict(f"{sk} is not as expected")
        for put in puts:
            if isinstance(put, Delete):
                del self.items[put.key]
            else:
                self.items[_key(put)] = copy.deepcopy(put.item)
        self.transactions += 1

    def add(self, adds: Sequence[Add], token: str) -> None:
        assert len({(add.pk, add.sk) for add in adds}) == len(adds) <= 100
        if token in self.tokens:
            return
        self.tokens.add(token)
        for add in adds:
            item = dict(self.items.get((add.pk, add.sk), {"pk": add.pk, "sk": add.sk}))
            item |= {name: item.get(name, 0) + number for name, number in add.amounts.items()}
            self.items[add.pk, add.sk] = item | dict(add.values)
        self.transactions += 1


def _key(write: Write) -> tuple[str, str]:
    return write.key if isinstance(write, Delete) else (write.item["pk"], write.item["sk"])


class MemoryUploads:
    """Versioned upload buckets in a dictionary."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], dict[str, bytes]] = {}
        self._written_s: dict[Source, int] = {}
        self._now_s = 1_795_335_330

    def put(
        self, bucket: str, key: str, content: bytes, version_id: str = "", pause_s: int = 1
    ) -> str:
        """Store a new object version with a later timestamp; return its id."""
        self._now_s += pause_s
        versions = self._objects.setdefault((bucket, key), {})
        version_id = version_id or f"v{len(versions) + 1}"
        versions[version_id] = content
        self._written_s[Source(bucket, key, version_id)] = self._now_s
        return version_id

    def delete(self, bucket: str, key: str) -> None:
        self._objects.pop((bucket, key))

    def pin(self, bucket: str, key: str, version_id: str | None) -> PinnedObject:
        versions = self._objects.get((bucket, key), {})
        version_id = version_id or next(reversed(versions), None)
        if version_id is None or version_id not in versions:
            raise ObjectGone
        source = Source(bucket, key, version_id)
        written_at = iso(self._written_s[source] * 1000)
        return PinnedObject(source, version_id, len(versions[version_id]), written_at)

    def is_newer(self, source: Source, rival: Source) -> bool | None:
        newest_first = reversed(self._objects.get((source.bucket, source.key), {}))
        for version_id in newest_first:
            if version_id in (source.object_version, rival.object_version):
                return version_id == source.object_version
        return None

    def history(self, bucket: str, key: str) -> list[PinnedObject | None]:
        versions = list(self._objects.get((bucket, key), {}))
        return [self.pin(bucket, key, version_id) for version_id in versions[:-3:-1]]

    def fetch(self, pinned: PinnedObject, path: Path) -> None:
        source = pinned.source
        content = self._objects.get((source.bucket, source.key), {}).get(source.object_version)
        if content is None:
            raise ObjectGone
        path.write_bytes(content)


class MemoryBlobs:
    """Serving bucket in a dictionary from blob key to content; counts downloads."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.fetches = 0

    def add(self, name: str, content: bytes) -> Blob:
        """Store `content` and return its blob, as a registration does."""
        blob = Blob(name, hashlib.sha256(content).hexdigest(), len(content))
        self.content[blob.key] = content
        return blob

    def store(self, blob: Blob, path: Path) -> None:
        self.content[blob.key] = path.read_bytes()

    def fetch(self, blob: Blob, path: Path) -> None:
        self.fetches += 1
        content = self.content.get(blob.key)
        if content is None:
            raise Unavailable("a model file is missing in storage", code="BLOB_MISSING")
        if hashlib.sha256(content).hexdigest() != blob.sha256:
            raise Unavailable("a model file arrived corrupted from storage", code="BLOB_CORRUPTED")
        path.write_bytes(content)
