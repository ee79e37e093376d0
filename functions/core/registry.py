"""The registry: which versions a model has, what each is, and which one a name points at.

One table. `pk` is `MODEL#<model>`; `sk` is one of

    META                    next version, revision, number of versions that were ever READY
    SOURCE#<id>             the version that this upload became; written once, never changed
    VERSION#<10 digits>     PENDING -> READY or REJECTED -> ARCHIVED
    ALIAS#<alias>           the version that this name points at
    AUDIT#<12 digits>       what the revision of this number changed
    FAILURE#<id>            why this upload was last put off; a note, no change, and gone after 30 days

and, apart from them,

    pk = BLOB#<sha256>, sk = RECORD        some version has this blob; written with it, never removed
    pk = SERVING#<model>, sk = SWITCH      served or not; the data plane may write it
    pk = RECONCILE, sk = <walk>            how far the reconciler has come

Every write to a model is one transaction that moves META.revision from r to r + 1 on the condition that it is still r.
So writes to one model are serial, each has exactly one audit record, and a writer that lost a race reads again and
decides again. What was read after META is no older than it, so a decision on both stands or its transaction fails.
Nothing here depends on a clock.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from functions.core.errors import InvalidRequest, ModelNotFound, NotReady, StateConflict, Unavailable, shown
from functions.core.names import is_alias
from functions.core.signature import Signature

DEFAULT_ALIAS = "prod"
NEWEST_ALIAS = "latest"
KEYS_AT_ONCE = 100  # what DynamoDB's BatchGetItem takes
NOTE_DAYS = 30  # a note about a failure outlives its message, which SQS keeps for 14 days
ATTEMPTS = 50  # lost races in a row; each loser waits a random time

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
    plan: Mapping[str, Any] = field(default_factory=dict)  # how infer loads it: core.workbench.Plan
    measured: Mapping[str, float] = field(default_factory=dict)
    memory_mb: int = 0  # what the process that serves it needs; 0 where nobody measured
    notes: tuple[str, ...] = ()  # what was chosen at registration and why
    sample: Blob | None = None  # a request with its response
    attempts: int = 1  # claims: 1, and 1 more each time the upload came again before the end
    claimed_at: str = ""  # the last of them
    damaged: str | None = None  # what the reconciler found missing or wrong in storage

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.files)

    @property
    def listed(self) -> str:
        """Its place in the listing: by model, then by number."""
        return f"{self.model}#{self.number:010d}"

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything of this version in the serving bucket, each once. What is not here is collected one day."""
        every = (*self.files, *(blob for blob in (self.manifest, self.sample) if blob))
        return tuple({blob.sha256: blob for blob in every}.values())


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points at a version. `revision` counts its moves: a caller names the one it saw."""

    name: str
    version: int
    previous: int | None
    revision: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an upload was last put off, and how often it was."""

    source: Source  # `object_version` is empty where the event named none
    reason: Reason
    attempts: int
    at: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction does, for its audit record."""

    action: str
    actor: str
    version: int | None
    before: Item
    after: Item


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
        audit_log: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """`audit_log` is told every audit record once its transaction stands."""
        self._table = table
        self._now = now
        self._pause = pause
        self._audit_log = audit_log

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

    def claim(self, model: str, source: Source, *, actor: str = "register") -> Version:
        """The version that this upload is: the next number the first time, the same one every time after.

        One that is still PENDING is taken over from a worker that may have died, and counts one attempt more. Where
        that worker lives after all, both go on and one of them finishes it.

        Raises:
            Unavailable: too many writers at once.
        """
        pk = _model_pk(model)
        for _ in self._attempts():
            meta, known = self._table.get([(pk, "META"), (pk, f"SOURCE#{source.id}")])
            now = self._now()
            if known is None:
                number = meta["next_version"] if meta else 1
                version = Version(model, number, State.PENDING, source, created_at=now, claimed_at=now)
                counter = {"next_version": number + 1}
                puts = [
                    Put({"pk": pk, "sk": f"SOURCE#{source.id}", "version": number}, None),
                    Put(_version_item(version), None),
                ]
                after = {"state": version.state.value, "source": _source_record(source)}
                change = Change("claim", actor, number, {"state": None}, after)
            else:
                standing = self.version(model, known["version"])
                if standing is None:
                    raise LookupError(f"upload {source.id} of {model} became a missing version")
                if standing.state is not State.PENDING:
                    return standing
                version = replace(standing, attempts=standing.attempts + 1, claimed_at=now)
                counter = {}
                puts = [Put(_version_item(version), {"state": State.PENDING.value})]
                count = {"attempts": standing.attempts}, {"attempts": version.attempts}
                change = Change("resume", actor, version.number, *count)
            try:
                self._commit(model, meta, counter, puts, change)
            except Conflict:
                continue
            return version
        raise _too_busy(model)

    def finish(self, version: Version, *, actor: str = "register") -> Version:
        """Write the end of a registration, READY or REJECTED, once; later ends change nothing. Returns what stands.

        A READY version becomes `latest` if it is the newest, and `prod` if it is the model's first, in the same
        transaction: no reader sees one without the other. So does the record of each of its blobs.

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
            claims = {"attempts": standing["attempts"], "claimed_at": standing["claimed_at"]}  # others' since ours
            done = replace(done, **claims)
            puts = [Put(_version_item(done), {"state": State.PENDING.value, **claims})]
            counter: dict[str, Any] = {}
            before: dict[str, Any] = {"state": State.PENDING.value}
            after: dict[str, Any] = {"state": done.state.value}
            if done.state is State.READY:
                counter["ready"] = meta.get("ready", 0) + 1
                moves = []
                if latest is None or latest["version"] < version.number:
                    moves.append((NEWEST_ALIAS, latest))
                if counter["ready"] == 1 and prod is None:
                    moves.append((DEFAULT_ALIAS, prod))
                puts += [_alias_put(version.model, alias, version.number, now) for alias, now in moves]
                puts += [_blob_put(blob) for blob in done.blobs]
                before["aliases"] = {alias: now["version"] if now else None for alias, now in moves}
                after["aliases"] = {alias: version.number for alias, _ in moves}
            elif done.reason:
                after["reason"] = {"code": done.reason.code, "message": done.reason.message}
            try:
                self._commit(version.model, meta, counter, puts, Change("finish", actor, version.number, before, after))
            except Conflict:
                continue
            return done
        raise _too_busy(version.model)

    # --- moving -----------------------------------------------------------------------------------------------------

    def alias(self, model: str, name: str) -> Alias | None:
        [item] = self._table.get([(_model_pk(model), _alias_sk(name))])
        return _alias(item) if item else None

    def move_alias(self, model: str, name: str, number: int, *, actor: str, expected: int | None = None) -> Alias:
        """Point `name` at version `number`, which has to be READY. Where it points there already, nothing changes.

        `expected` is the alias's revision as the caller saw it, 0 for an alias that did not exist, None for whatever
        stands. `latest` moves by itself and by nobody else.

        Raises:
            InvalidRequest: `name` is no alias, or `latest`.
            ModelNotFound: no such model or version.
            StateConflict: the version is not READY or is damaged, or the alias has moved since the caller saw it.
            Unavailable: too many writers at once.
        """
        return self._move(model, name, number, actor, expected, "move_alias")

    def rollback(self, model: str, name: str, *, actor: str, expected: int | None = None) -> Alias:
        """Point `name` at the version it pointed at before; doing it twice goes there and back.

        Raises:
            StateConflict: it has not moved yet; or as for `move_alias`.
            InvalidRequest, ModelNotFound, Unavailable: as for `move_alias`.
        """
        standing = self.alias(model, name)
        if standing is None:
            raise ModelNotFound(f"Request for unknown model: '{model}' alias {shown(name)} is not found")
        if standing.previous is None:
            raise StateConflict(f"alias {name} of '{model}' has only ever pointed at version {standing.version}")
        seen = standing.revision if expected is None else expected
        return self._move(model, name, standing.previous, actor, seen, "rollback")

    def _move(self, model: str, name: str, number: int, actor: str, expected: int | None, action: str) -> Alias:
        if not is_alias(name):
            raise InvalidRequest(f"{shown(name)} is no alias: lower case, beginning with a letter")
        if name == NEWEST_ALIAS:
            raise InvalidRequest(f"{NEWEST_ALIAS} follows the newest READY version by itself; move another alias")
        for _ in self._attempts():
            meta, [item, target] = self._standing(model, _alias_sk(name), _version_sk(number))
            if target is None:
                raise ModelNotFound(f"Request for unknown model: '{model}' version {number} is not found")
            standing = _alias(item) if item else None
            if standing and standing.version == number:
                return standing
            revision = standing.revision if standing else 0
            if expected is not None and expected != revision:
                raise StateConflict(
                    f"alias {name} of '{model}' is at revision {revision}, not {expected}: look again, then move it"
                )
            version = _version(target)
            if version.state is not State.READY:
                why = f": {version.reason.message}" if version.reason else ""
                raise StateConflict(f"version {number} of '{model}' is {version.state}, not READY{why}")
            if version.damaged:
                raise StateConflict(f"version {number} of '{model}' is damaged: {version.damaged}")
            put = _alias_put(model, name, number, item)
            before = {name: standing.version if standing else None}
            change = Change(action, actor, number, {"aliases": before}, {"aliases": {name: number}})
            try:
                self._commit(model, meta, {}, [put], change)
            except Conflict:
                continue
            return _alias(put.item)
        raise _too_busy(model)

    def archive(self, model: str, number: int, *, actor: str) -> Version:
        """Retire a READY or REJECTED version for good; nothing happens to an ARCHIVED one. Its blobs stay.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is PENDING, or aliases point at it; the message names them.
            Unavailable: too many writers at once.
        """
        for _ in self._attempts():
            meta, [item] = self._standing(model, _version_sk(number))
            if item is None:
                raise ModelNotFound(f"Request for unknown model: '{model}' version {number} is not found")
            version = _version(item)
            if version.state is State.ARCHIVED:
                return version
            if version.state is State.PENDING:
                raise StateConflict(f"version {number} of '{model}' is PENDING: wait for the end of its registration")
            held_by = [alias for alias, at in self.aliases(model).items() if at == number]
            if held_by:
                raise StateConflict(
                    f"version {number} of '{model}' has the aliases {', '.join(held_by)}: move them first"
                )
            done = replace(version, state=State.ARCHIVED)
            put = Put(_version_item(done), {"state": version.state.value})
            change = Change("archive", actor, number, {"state": version.state.value}, {"state": done.state.value})
            try:
                self._commit(model, meta, {}, [put], change)
            except Conflict:
                continue
            return done
        raise _too_busy(model)

    # --- reconciling ------------------------------------------------------------------------------------------------

    def note_failure(self, model: str, source: Source, reason: Reason) -> None:
        """Remember why an upload was put off, claimed or not. No change of the registry: no revision, no audit."""
        from datetime import datetime, timedelta  # nothing that serves a request needs it

        [known] = self._table.get([(_model_pk(model), _failure_sk(source))])
        now = self._now()
        expires_at = datetime.fromisoformat(now) + timedelta(days=NOTE_DAYS)
        item = {
            "pk": _model_pk(model),
            "sk": _failure_sk(source),
            "source": _source_record(source),
            "reason": {"code": reason.code, "message": reason.message},
            "attempts": known["attempts"] + 1 if known else 1,
            "at": now,
            "expires_at": int(expires_at.timestamp()),  # DynamoDB deletes it after then
        }
        self._overwrite(item)

    def known(self, uploads: Sequence[tuple[str, Source]]) -> list[tuple[int | None, Failure | None]]:
        """What is known of each upload (model, source): the version it became, and why it was last put off."""
        keys = []
        for model, source in uploads:
            keys += [(_model_pk(model), f"SOURCE#{source.id}"), (_model_pk(model), _failure_sk(source))]
        items = self._read_all(keys)
        return [
            (claim["version"] if claim else None, _failure(note) if note else None)
            for claim, note in zip(items[::2], items[1::2], strict=True)
        ]

    def pending(self, before: str, limit: int) -> list[Version]:
        """Up to `limit` versions that are PENDING and were last claimed before then, the longest-waiting first."""
        items = self._read_all([(item["pk"], item["sk"]) for item in self._table.pending(before, limit)])
        versions = [_version(item) for item in items if item]
        return [version for version in versions if version.state is State.PENDING and version.claimed_at < before]

    def ready_after(self, after: str, limit: int) -> tuple[list[Version], str]:
        """The READY ones among the next `limit` versions of the listing, and where to go on; "" at its end."""
        rows = list(self._table.listing(after, limit))
        names = [row["listed"].rpartition("#") for row in rows if row["state"] == State.READY]
        items = self._read_all([(_model_pk(model), _version_sk(int(number))) for model, _, number in names])
        versions = [_version(item) for item in items if item]
        ready = [version for version in versions if version.state is State.READY]
        return ready, rows[-1]["listed"] if len(rows) == limit else ""

    def recorded(self, digests: Sequence[str]) -> set[str]:
        """Those of these blobs (by SHA-256) that some version has."""
        items = self._read_all([(f"BLOB#{digest}", "RECORD") for digest in digests])
        return {digest for digest, item in zip(digests, items, strict=True) if item}

    def mark_damaged(self, model: str, number: int, what: str | None, *, actor: str) -> Version:
        """Flag a READY version whose blobs are missing or wrong, or clear the flag; it stays READY.

        Raises:
            ModelNotFound: no such model or version.
            Unavailable: too many writers at once.
        """
        for _ in self._attempts():
            meta, [item] = self._standing(model, _version_sk(number))
            if item is None:
                raise ModelNotFound(f"Request for unknown model: '{model}' version {number} is not found")
            version = _version(item)
            if version.state is not State.READY or version.damaged == what:
                return version
            done = replace(version, damaged=what)
            put = Put(_version_item(done), {"state": State.READY.value})
            action = "damaged" if what else "mended"
            change = Change(action, actor, number, {"damaged": version.damaged}, {"damaged": what})
            try:
                self._commit(model, meta, {}, [put], change)
            except Conflict:
                continue
            return done
        raise _too_busy(model)

    def bookmark(self, walk: str) -> str:
        """Where the reconciler's `walk` goes on; "" from the beginning."""
        [item] = self._table.get([("RECONCILE", walk)])
        return item["at"] if item else ""

    def set_bookmark(self, walk: str, at: str) -> None:
        self._overwrite({"pk": "RECONCILE", "sk": walk, "at": at})

    # --- serving ----------------------------------------------------------------------------------------------------

    def serve(self, model: str, serving: bool, *, actor: str = "infer") -> None:
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
            change = Change(
                "load" if serving else "unload", actor, None, {"serving": not serving}, {"serving": serving}
            )
            audit = self._audit(pk, revision + 1, change)
            try:
                self._table.transact([Put(item, {"revision": revision} if switch else None), audit])
            except Conflict:
                continue
            self._audit_log(_told(model, audit.item))
            return
        raise _too_busy(model)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _standing(self, model: str, *sks: str) -> tuple[Item | None, list[Item | None]]:
        """META, and after it the items of `sks`: what changes in between fails the transaction on META's revision."""
        pk = _model_pk(model)
        [meta] = self._table.get([(pk, "META")])
        return meta, self._table.get([(pk, sk) for sk in sks])

    def _read_all(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        starts = range(0, len(keys), KEYS_AT_ONCE)
        return [item for start in starts for item in self._table.get(keys[start : start + KEYS_AT_ONCE])]

    def _commit(self, model: str, meta: Item | None, counter: Item, puts: Sequence[Put], change: Change) -> None:
        """One transaction: META moves on by a revision, `puts`, and the audit record of this revision."""
        pk = _model_pk(model)
        revision = meta["revision"] if meta else 0
        new = {"pk": pk, "sk": "META", "model": model, **(meta or {}), **counter, "revision": revision + 1}
        guard = Put(new, {"revision": revision} if meta else None)
        audit = self._audit(pk, revision + 1, change)
        self._table.transact([guard, *puts, audit])
        self._audit_log(_told(model, audit.item))

    def _overwrite(self, item: Item) -> None:
        """Write an item of no model's history, whatever stands; another transaction may hold it for a moment."""
        for _ in self._attempts():
            try:
                self._table.transact([Put(item, {})])
            except Conflict:
                continue
            return
        raise _too_busy(item["pk"])

    def _audit(self, pk: str, revision: int, change: Change) -> Put:
        item: dict[str, Any] = {
            "pk": pk,
            "sk": f"AUDIT#{revision:012d}",
            "revision": revision,
            "action": change.action,
            "actor": change.actor,
            "at": self._now(),
            "version": change.version,
            "before": change.before,
            "after": change.after,
        }
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


def _alias(item: Item) -> Alias:
    return Alias(item["alias"], item["version"], item["previous"], item["revision"])


def _failure(item: Item) -> Failure:
    reason = Reason(item["reason"]["code"], item["reason"]["message"])
    return Failure(Source(**item["source"]), reason, item["attempts"], item["at"])


def _failure_sk(source: Source) -> str:
    return f"FAILURE#{source.id}"


def _blob_put(blob: Blob) -> Put:
    return Put({"pk": f"BLOB#{blob.sha256}", "sk": "RECORD", "size_bytes": blob.size_bytes}, {})


def _told(model: str, audit: Item) -> Item:
    """An audit record as a line of the log."""
    return {"model": model, **{name: value for name, value in audit.items() if name not in ("pk", "sk")}}


def _source_record(source: Source) -> dict[str, str]:
    return {"bucket": source.bucket, "key": source.key, "object_version": source.object_version}


def _blob_record(blob: Blob) -> dict[str, Any]:
    return {"name": blob.name, "sha256": blob.sha256, "size_bytes": blob.size_bytes}


def _version_item(version: Version) -> Item:
    item: dict[str, Any] = {
        "pk": _model_pk(version.model),
        "sk": _version_sk(version.number),
        "kind": "VERSION",  # key of the index `listing`
        "listed": version.listed,
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
        "plan": dict(version.plan),
        "measured": dict(version.measured),
        "memory_mb": version.memory_mb,
        "notes": list(version.notes),
        "sample": _blob_record(version.sample) if version.sample else None,
        "attempts": version.attempts,
        "claimed_at": version.claimed_at or version.created_at,
        "damaged": version.damaged,
    }
    if version.state is State.PENDING:
        item["pending"] = "PENDING"  # key of the index `pending`, which so holds nothing else
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
        plan=item.get("plan", {}),
        measured=item.get("measured", {}),
        memory_mb=item.get("memory_mb", 0),
        notes=tuple(item.get("notes", ())),
        sample=Blob(**item["sample"]) if item.get("sample") else None,
        attempts=item["attempts"],
        claimed_at=item["claimed_at"],
        damaged=item["damaged"],
    )
