"""The registry: which versions a model has, what each is, and which one a name points at.

One table. `pk` is `MODEL#<model>`; `sk` is one of

    META                    next version, revision, number of versions that were ever READY
    SOURCE#<id>             the version that this upload became; written once, never changed
    VERSION#<10 digits>     PENDING -> READY or REJECTED -> ARCHIVED
    ALIAS#<alias>           the version that this name points at
    AUDIT#<12 digits>       what the revision of this number changed

and, apart from them because the data plane may write it, `pk = SERVING#<model>, sk = SWITCH`: served or not.

Every write to a model is one transaction that moves META.revision from r to r + 1 on the condition that it is still r.
So writes to one model are serial, each has exactly one audit record, and a writer that lost a race reads again and
decides again. Nothing here depends on a clock.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from functions.core.errors import ModelNotFound, NotReady, Unavailable
from functions.core.signature import Signature

DEFAULT_ALIAS = "prod"
NEWEST_ALIAS = "latest"
KEYS_AT_ONCE = 100  # what DynamoDB's BatchGetItem takes
ATTEMPTS = 50  # lost races in a row; each loser waits a random time

Item = Mapping[str, Any]


class Conflict(Exception):
    """When a condition of a transaction does not hold, or another transaction holds one of its items."""


@dataclass(frozen=True, slots=True)
class Put:
    """One item of a transaction, written if `where` holds: attributes of the item as it is now, or None for no item."""

    item: Item
    where: Item | None


class Table(Protocol):
    """A table with a partition key `pk`, a sort key `sk` and transactions. Reads see every finished write."""

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """The items of these keys, in their order."""

    def query(self, pk: str, prefix: str) -> Iterable[Item]:
        """The items of one partition whose sort key begins with `prefix`, ascending."""

    def listing(self) -> Iterable[Item]:
        """`listed`, `state` and `reason` of every version of every model, by model and number; may lag behind."""

    def transact(self, puts: Sequence[Put]) -> None:
        """Write all or nothing.

        Raises:
            Conflict: a condition does not hold.
        """


class State(StrEnum):
    """Where a version is in its life."""

    PENDING = "PENDING"
    READY = "READY"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


@dataclass(frozen=True, slots=True)
class Source:
    """The exact object that a version was uploaded as.

    `object_version` is S3's VersionId, or the ETag in a bucket without versions.
    """

    bucket: str
    key: str
    object_version: str

    @property
    def id(self) -> str:
        """The same for every event about this object version, and for no other."""
        return hashlib.sha256(f"{self.bucket}/{self.key}?{self.object_version}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a version, stored once under its digest."""

    name: str
    sha256: str
    size_bytes: int

    @property
    def key(self) -> str:
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a version was rejected: a stable code and a sentence that says what to change."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one model. What stands below `created_at` is known once it is READY."""

    model: str
    number: int
    state: State
    source: Source
    created_at: str
    finished_at: str | None = None
    reason: Reason | None = None
    files: tuple[Blob, ...] = ()  # the first is the model, the others its weights
    manifest: Blob | None = None
    signature: Signature | None = None
    graph: Mapping[str, Any] = field(default_factory=dict)  # opset, ir_version, producer
    card: Mapping[str, Any] = field(default_factory=dict)  # what the manifest says about training: strings and numbers
    ignored: tuple[str, ...] = ()  # members of the package that were never opened

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.files)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and the alias it was asked for by."""

    version: Version
    alias: str | None


class Registry:
    """The rules of the registry over a table."""

    def __init__(
        self,
        table: Table,
        now: Callable[[], str],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._now = now
        self._pause = pause

    # --- reading ----------------------------------------------------------------------------------------------------

    def version(self, model: str, number: int) -> Version | None:
        [item] = self._table.get([(_model_pk(model), _version_sk(number))])
        return _version(item) if item else None

    def versions(self, model: str) -> list[Version]:
        """Every version of `model`, oldest first; empty for an unknown one."""
        return [_version(item) for item in self._table.query(_model_pk(model), "VERSION#")]

    def aliases(self, model: str) -> dict[str, int]:
        return {item["alias"]: item["version"] for item in self._table.query(_model_pk(model), "ALIAS#")}

    def audit(self, model: str) -> list[Item]:
        return list(self._table.query(_model_pk(model), "AUDIT#"))

    def listing(self) -> Iterator[tuple[str, int, State, str]]:
        """(model, version, state, reason or "") of everything, ordered by model and version."""
        for item in self._table.listing():
            model, _, number = item["listed"].rpartition("#")
            reason = item.get("reason")
            yield model, int(number), State(item["state"]), reason["message"] if reason else ""

    def reachable(self) -> None:
        """One read, of nothing.

        Raises:
            Unavailable: the registry failed.
        """
        self._table.get([("HEALTH", "HEALTH")])

    def unloaded(self, models: Iterable[str]) -> set[str]:
        """Those of `models` that are switched off."""
        pks = [f"SERVING#{model}" for model in dict.fromkeys(models)]
        switches = []
        for start in range(0, len(pks), KEYS_AT_ONCE):
            switches += self._table.get([(pk, "SWITCH") for pk in pks[start : start + KEYS_AT_ONCE]])
        return {item["pk"].removeprefix("SERVING#") for item in switches if item is not None and not item["serving"]}

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """The READY version that `reference` (a number, an alias, or None for the default) stands for.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: it exists and is not served: pending, rejected, archived, or unloaded.
            Unavailable: the registry failed.
        """
        pk = _model_pk(model)
        target = _version_sk(reference) if isinstance(reference, int) else _alias_sk(reference or DEFAULT_ALIAS)
        meta, found, switch = self._table.get([(pk, "META"), (pk, target), (f"SERVING#{model}", "SWITCH")])
        if meta is None:
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
        if found is None and reference is None:
            newest = self.version(model, meta["next_version"] - 1)
            raise _not_ready(newest) if newest else LookupError(f"{model} has no version")
        if found is None:
            kind = "version" if isinstance(reference, int) else "version or alias"
            raise ModelNotFound(f"Request for unknown model: '{model}' {kind} '{reference}' is not found")
        if isinstance(reference, int):
            version, alias = _version(found), None
        else:
            alias = found["alias"]
            pointed = self.version(model, found["version"])
            if pointed is None:
                raise LookupError(f"alias {alias} of {model} points at a missing version")
            version = pointed
        if version.state is not State.READY:
            raise _not_ready(version)
        if switch is not None and not switch["serving"]:
            raise NotReady(f"Model version not ready: '{model}' is unloaded; load it first", retry_after_s=5)
        return Resolved(version, alias)

    # --- registering ------------------------------------------------------------------------------------------------

    def claim(self, model: str, source: Source) -> Version:
        """The version that this upload is: the next number the first time, the same one every time after.

        Raises:
            Unavailable: too many writers at once.
        """
        pk = _model_pk(model)
        for _ in self._attempts():
            meta, known = self._table.get([(pk, "META"), (pk, f"SOURCE#{source.id}")])
            if known is not None:
                version = self.version(model, known["version"])
                if version is None:
                    raise LookupError(f"upload {source.id} of {model} became a missing version")
                return version
            number = meta["next_version"] if meta else 1
            version = Version(model, number, State.PENDING, source, created_at=self._now())
            change = {"next_version": number + 1}
            puts = [
                Put({"pk": pk, "sk": f"SOURCE#{source.id}", "version": number}, None),
                Put(_version_item(version), None),
            ]
            try:
                self._commit(model, meta, change, puts, "claim", {"version": number, "source": _source_record(source)})
            except Conflict:
                continue
            return version
        raise _too_busy(model)

    def finish(self, version: Version) -> Version:
        """Write the end of a registration, READY or REJECTED, once; later ends change nothing. Returns what stands.

        A READY version becomes `latest` if it is the newest, and `prod` if it is the model's first, in the same
        transaction: no reader sees one without the other.

        Raises:
            Unavailable: too many writers at once.
        """
        pk = _model_pk(version.model)
        done = replace(version, finished_at=self._now())
        for _ in self._attempts():
            meta, standing, latest, prod = self._table.get(
                [
                    (pk, "META"),
                    (pk, _version_sk(version.number)),
                    (pk, _alias_sk(NEWEST_ALIAS)),
                    (pk, _alias_sk(DEFAULT_ALIAS)),
                ]
            )
            if meta is None or standing is None:
                raise LookupError(f"version {version.number} of {version.model} was never claimed")
            if standing["state"] != State.PENDING:
                return _version(standing)
            puts = [Put(_version_item(done), {"state": State.PENDING.value})]
            change: dict[str, Any] = {}
            details: dict[str, Any] = {"version": version.number, "state": done.state.value}
            if done.state is State.READY:
                change["ready"] = meta.get("ready", 0) + 1
                moves = []
                if latest is None or latest["version"] < version.number:
                    moves.append((NEWEST_ALIAS, latest))
                if change["ready"] == 1 and prod is None:
                    moves.append((DEFAULT_ALIAS, prod))
                puts += [_alias_put(version.model, alias, version.number, now) for alias, now in moves]
                details["aliases"] = [alias for alias, _ in moves]
            elif done.reason:
                details["reason"] = {"code": done.reason.code, "message": done.reason.message}
            try:
                self._commit(version.model, meta, change, puts, "finish", details)
            except Conflict:
                continue
            return done
        raise _too_busy(version.model)

    # --- serving ----------------------------------------------------------------------------------------------------

    def serve(self, model: str, serving: bool) -> None:
        """Switch a whole model on or off for every environment, with its audit record.

        Raises:
            Unavailable: too many writers at once.
        """
        pk = f"SERVING#{model}"
        for _ in self._attempts():
            [switch] = self._table.get([(pk, "SWITCH")])
            if (switch is None and serving) or (switch is not None and switch["serving"] == serving):
                return
            revision = switch["revision"] if switch else 0
            item = {"pk": pk, "sk": "SWITCH", "serving": serving, "revision": revision + 1}
            audit = self._audit(pk, revision + 1, "load" if serving else "unload", {"model": model})
            try:
                self._table.transact([Put(item, {"revision": revision} if switch else None), audit])
            except Conflict:
                continue
            return
        raise _too_busy(model)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _commit(
        self, model: str, meta: Item | None, change: Item, puts: Sequence[Put], action: str, details: Item
    ) -> None:
        """One transaction: META moves on by a revision, `puts`, and the audit record of this revision."""
        pk = _model_pk(model)
        revision = meta["revision"] if meta else 0
        new = {"pk": pk, "sk": "META", "model": model, **(meta or {}), **change, "revision": revision + 1}
        guard = Put(new, {"revision": revision} if meta else None)
        self._table.transact([guard, *puts, self._audit(pk, revision + 1, action, details)])

    def _audit(self, pk: str, revision: int, action: str, details: Item) -> Put:
        item = {"pk": pk, "sk": f"AUDIT#{revision:012d}", "action": action, "at": self._now(), "details": details}
        return Put(item, None)

    def _attempts(self) -> Iterator[int]:
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(random.uniform(0, min(0.5, 0.01 * 2**attempt)))  # noqa: S311 (jitter, no secret)
            yield attempt


def _not_ready(version: Version) -> NotReady:
    why = f": {version.reason.message}" if version.reason else ""
    return NotReady(
        f"Model version not ready: version {version.number} of '{version.model}' is {version.state}{why}",
        retry_after_s=5,
    )


def _too_busy(model: str) -> Unavailable:
    return Unavailable(f"'{model}' is being changed by too many writers at once; try again")


def _model_pk(model: str) -> str:
    return f"MODEL#{model}"


def _version_sk(number: int) -> str:
    return f"VERSION#{number:010d}"


def _alias_sk(alias: str) -> str:
    return f"ALIAS#{alias}"


def _alias_put(model: str, alias: str, number: int, now: Item | None) -> Put:
    item = {
        "pk": _model_pk(model),
        "sk": _alias_sk(alias),
        "alias": alias,
        "version": number,
        "previous": now["version"] if now else None,
        "revision": now["revision"] + 1 if now else 1,
    }
    return Put(item, {"revision": now["revision"]} if now else None)


def _source_record(source: Source) -> dict[str, str]:
    return {"bucket": source.bucket, "key": source.key, "object_version": source.object_version}


def _blob_record(blob: Blob) -> dict[str, Any]:
    return {"name": blob.name, "sha256": blob.sha256, "size_bytes": blob.size_bytes}


def _version_item(version: Version) -> Item:
    item: dict[str, Any] = {
        "pk": _model_pk(version.model),
        "sk": _version_sk(version.number),
        "kind": "VERSION",  # key of the index `listing`
        "listed": f"{version.model}#{version.number:010d}",
        "model": version.model,
        "version": version.number,
        "state": version.state.value,
        "source": _source_record(version.source),
        "created_at": version.created_at,
        "finished_at": version.finished_at,
        "files": [_blob_record(blob) for blob in version.files],
        "manifest": _blob_record(version.manifest) if version.manifest else None,
        "signature": version.signature.to_record() if version.signature else None,
        "graph": dict(version.graph),
        "card": json.dumps(version.card),  # as text: DynamoDB has no NaN, no long numbers and no deep nesting
        "ignored": list(version.ignored),
    }
    if version.reason:
        item["reason"] = {"code": version.reason.code, "message": version.reason.message}
    return item


def _version(item: Item) -> Version:
    reason = item.get("reason")
    return Version(
        model=item["model"],
        number=item["version"],
        state=State(item["state"]),
        source=Source(**item["source"]),
        created_at=item["created_at"],
        finished_at=item["finished_at"],
        reason=Reason(reason["code"], reason["message"]) if reason else None,
        files=tuple(Blob(**blob) for blob in item["files"]),
        manifest=Blob(**item["manifest"]) if item["manifest"] else None,
        signature=Signature.from_record(item["signature"]) if item["signature"] else None,
        graph=item["graph"],
        card=json.loads(item["card"]),
        ignored=tuple(item["ignored"]),
    )
