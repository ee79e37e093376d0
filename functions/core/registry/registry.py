"""Model registry in one table: versions, aliases, audit trail, serving switches.

One table. `pk` is `MODEL#<model>`; `sk` is one of

    META                    next version, revision, number of versions that were ever READY
    SOURCE#<id>             version number of this upload; written once, never changed
    VERSION#<10 digits>     PENDING -> READY or REJECTED -> ARCHIVED
    ALIAS#<alias>           version that this alias points at
    AUDIT#<12 digits>       change made by the revision of this number
    FAILURE#<id>            why this upload last failed; a note outside the revisions, for 30 days

and, outside the models' partitions,

    pk = BLOB#<sha256>, sk = RECORD        some version refers to this blob; never removed
    pk = SERVING#<model>, sk = SWITCH      served or not; the data plane may write it
    pk = RECONCILE, sk = <walk>            position of the reconciler in its walk
    pk = IGNORED, sk = <S3 key>            why this upload became no version, for 7 days

Every write to a model is one transaction that moves META.revision from r to r + 1, on the
condition that it is still r. Writes to one model are therefore serial, each has exactly one audit
record, and a writer that loses a race reads again and decides again. Items read after META are no
older than META, so either the decision made from both is still right or its transaction fails.
Nothing here depends on a clock, except the order of uploads, which is by S3's.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from functions.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NotReady,
    NotServable,
    StateConflict,
    shown,
)
from functions.core.names import is_alias
from functions.core.records import replace
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_put,
    alias_sk,
    audit_put,
    audit_to_log,
    blob_pk,
    blob_put,
    failure_from_item,
    failure_sk,
    failure_to_item,
    ignored_clear,
    ignored_key,
    ignored_to_item,
    model_pk,
    reason_to_record,
    source_put,
    source_sk,
    source_to_record,
    switch_pk,
    version_from_item,
    version_sk,
    version_to_item,
)
from functions.core.registry.table import Item, Put, Table
from functions.core.registry.version import (
    Alias,
    Change,
    Failure,
    IsNewer,
    Reason,
    Resolved,
    Source,
    State,
    Version,
)

DEFAULT_ALIAS = "prod"
NEWEST_ALIAS = "latest"
KEYS_AT_ONCE = 100  # limit of DynamoDB's BatchGetItem
NOTE_DAYS = 30  # longer than the 14 days for which SQS keeps a dead letter
IGNORED_DAYS = 7  # enough for an uploader to look
IGNORED_LISTED = 100  # notes on ignored uploads in one answer
IGNORED_READ = 1000  # notes that are looked through for those a caller may see


class Registry:
    """Model registry: versions, aliases, audit records and serving switches in a table.

    Every method raises `Unavailable` if the table fails, and every write also if other writers
    interfere too often.
    """

    def __init__(
        self,
        table: Table,
        now: Callable[[], str],
        pause: Callable[[float], None] = time.sleep,
        audit_log: Callable[[Item], None] = lambda _: None,
    ) -> None:
        """Use `table`, and pass each committed audit record to `audit_log`."""
        self._table = table
        self._now = now
        self._pause = pause
        self._audit_log = audit_log

    # --- reads

    def version(self, model: str, number: int) -> Version | None:
        """Return a model's version by number, or None if missing."""
        [item] = self._table.get([(model_pk(model), version_sk(number))])
        return version_from_item(item) if item else None

    def versions(self, model: str) -> list[Version]:
        """Return all versions of a model, oldest first, or an empty list."""
        return [version_from_item(item) for item in self._table.query(model_pk(model), "VERSION#")]

    def alias(self, model: str, name: str) -> Alias | None:
        """Return a model's alias by name, or None if missing."""
        [item] = self._table.get([(model_pk(model), alias_sk(name))])
        return alias_from_item(item) if item else None

    def aliases(self, model: str) -> dict[str, int]:
        """Return a model's aliases as a dict of name to version number."""
        items = self._table.query(model_pk(model), "ALIAS#")
        return {item["alias"]: item["version"] for item in items}

    def audit(self, model: str) -> list[Item]:
        """Return the audit records of a model, oldest first."""
        return list(self._table.query(model_pk(model), "AUDIT#"))

    def listing(self) -> Iterator[tuple[str, int, State, str]]:
        """Yield (model, version number, state, reason or "") of all versions, sorted."""
        for item in self._table.listing():
            model, _, number = item["listed"].rpartition("#")
            reason = item.get("reason")
            yield model, int(number), State(item["state"]), reason["message"] if reason else ""

    def ignored(self, is_visible: Callable[[str], bool] | None = None) -> list[tuple[str, str]]:
        """Return (S3 key, reason) pairs of ignored uploads, newest first.

        With `is_visible`, only of such keys among the newest IGNORED_READ.
        """
        notes: Iterable[Item] = self._table.ignored(IGNORED_READ if is_visible else IGNORED_LISTED)
        if is_visible is not None:
            notes = (note for note in notes if is_visible(note["sk"]))
        return [(note["sk"], note["reason"]["message"]) for note in islice(notes, IGNORED_LISTED)]

    def ping(self) -> None:
        """Check that the registry's table can be read; raise Unavailable otherwise.

        The item that is read does not exist.

        Raises:
            Unavailable: the table failed.
        """
        self._table.get([("HEALTH", "HEALTH")])

    def unloaded_models(self, models: Iterable[str]) -> set[str]:
        """Return the subset of `models` whose serving is switched off."""
        switches = self._read_all([(switch_pk(model), "SWITCH") for model in dict.fromkeys(models)])
        off = [item["pk"] for item in switches if item and not item["serving"]]
        return {pk.removeprefix(switch_pk("")) for pk in off}

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """Resolve a version number, alias or None to a READY version.

        `reference` is a version number, an alias, or None for the default alias.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: the version is pending, or the model is unloaded.
            NotServable: the version is rejected or archived.
            Unavailable: the table failed.
        """
        meta, item, switch = self._table.get(resolution_keys(model, reference))
        if meta is None:
            raise unknown_model(model)
        if item is None:
            raise self._unresolved(model, reference, meta)
        alias = item.get("alias")
        version = self._stored(model, item["version"]) if alias else version_from_item(item)
        if version.state is not State.READY:
            raise _refusal(version)
        if switch is not None and not switch["serving"]:
            raise NotReady(
                f"Model version not ready: '{model}' is unloaded; load it first", retry_after_s=5
            )
        return Resolved(version, alias)

    def _unresolved(self, model: str, reference: int | str | None, meta: Item) -> Exception:
        """Return the error for a version or alias that cannot be resolved."""
        if reference is None:  # no version was ever READY: the newest one says why
            return _refusal(self._stored(model, meta["next_version"] - 1))
        kind = "version" if isinstance(reference, int) else "version or alias"
        return ModelNotFound(
            f"Request for unknown model: '{model}' {kind} '{reference}' is not found"
        )

    def _stored(self, model: str, number: int) -> Version:
        """Return a version that must exist because another item refers to it."""
        version = self.version(model, number)
        if version is None:
            raise LookupError(f"the registry refers to version {number} of {model}: it is missing")
        return version

    # --- registration

    @retried
    def claim(self, model: str, source: Source, *, actor: str = "register") -> Version:
        """Claim an upload's version number: new at first, the same when repeated.

        A version that is still PENDING is taken over from a worker that may have died, and its
        attempts are counted. If that worker is alive, both go on and one of them finishes it.

        Raises:
            Unavailable: the table failed, or too many writers interfered.
        """
        pk = model_pk(model)
        keys = [(pk, "META"), (pk, source_sk(source)), ignored_key(source.key)]
        meta, claim, ignored = self._table.get(keys)
        if claim is None:
            return self._claim_new(model, source, meta, ignored, actor)
        version = self._stored(model, claim["version"])
        if version.state is not State.PENDING:
            return version
        return self._claim_again(version, meta, actor)

    def _claim_new(
        self, model: str, source: Source, meta: Item | None, ignored: Item | None, actor: str
    ) -> Version:
        number = meta["next_version"] if meta else 1
        now = self._now()
        version = Version(model, number, State.PENDING, source, created_at=now, claimed_at=now)
        puts = [source_put(model, source, number), Put(version_to_item(version), None)]
        puts += ignored_clear(ignored)
        after = {"state": version.state.value, "source": source_to_record(source)}
        change = Change("claim", actor, number, {"state": None}, after)
        self._commit(model, meta, puts, change, next_version=number + 1)
        return version

    def _claim_again(self, version: Version, meta: Item | None, actor: str) -> Version:
        claimed = replace(version, attempts=version.attempts + 1, claimed_at=self._now())
        put = Put(version_to_item(claimed), {"state": State.PENDING.value})
        before, after = {"attempts": version.attempts}, {"attempts": claimed.attempts}
        change = Change("resume", actor, version.number, before, after)
        self._commit(version.model, meta, [put], change)
        return claimed

    def postpone(self, version: Version, reason: Reason, *, actor: str = "register") -> None:
        """Record why a PENDING version waits; the next event delivery retries it.

        Raises:
            Unavailable: the table failed, or too many writers interfered.
        """
        self._postpone(version.model, version.number, reason, actor)

    @retried
    def _postpone(self, model: str, number: int, reason: Reason, actor: str) -> None:
        pk = model_pk(model)
        meta, stored = self._table.get([(pk, "META"), (pk, version_sk(number))])
        if stored is None or stored["state"] != State.PENDING:
            return
        claims = {name: stored[name] for name in ("state", "attempts", "claimed_at")}
        put = Put(version_to_item(replace(version_from_item(stored), reason=reason)), claims)
        change = Change("wait", actor, number, {}, {"reason": reason_to_record(reason)})
        self._commit(model, meta, [put], change)

    def finish(
        self,
        version: Version,
        *,
        actor: str = "register",
        is_newer: IsNewer = lambda *_: None,
    ) -> Version:
        """End a registration as READY or REJECTED; return the stored version.

        Only the first end counts; later ones change nothing. In the same transaction, a READY
        version becomes `latest` if its upload was written last and `prod` if it is the first that
        is READY, and its blobs are recorded: no reader sees one without the other. `is_newer` is
        asked about two uploads of one key and second (`Version.is_written_after`).

        Raises:
            Unavailable: the table or `is_newer` failed, or too many writers interfered.
        """
        ended = replace(version, finished_at=self._now())
        return self._finish(version.model, ended, actor, is_newer)

    @retried
    def _finish(self, model: str, version: Version, actor: str, is_newer: IsNewer) -> Version:
        pk = model_pk(model)
        sks = ("META", version_sk(version.number), alias_sk(NEWEST_ALIAS), alias_sk(DEFAULT_ALIAS))
        meta, stored, latest, prod = self._table.get([(pk, sk) for sk in sks])
        if meta is None or stored is None:
            raise LookupError(f"version {version.number} of {model} was never claimed")
        if stored["state"] != State.PENDING:
            return version_from_item(stored)
        # Another worker may have claimed the version since this one did.
        claims = {name: stored[name] for name in ("attempts", "claimed_at")}
        version = replace(version, **claims)
        end = Put(version_to_item(version), {"state": State.PENDING.value, **claims})
        if version.state is State.READY:
            moves = self._moves_at_ready(version, meta, latest, prod, is_newer)
            self._commit_ready(version, end, meta, moves, actor)
        else:
            before, after = {"state": State.PENDING.value}, {"state": version.state.value}
            reason = {"reason": reason_to_record(version.reason)} if version.reason else {}
            change = Change("finish", actor, version.number, before, {**after, **reason})
            self._commit(model, meta, [end], change)
        return version

    def _commit_ready(
        self,
        version: Version,
        end: Put,
        meta: Item,
        moves: Mapping[str, Item | None],
        actor: str,
    ) -> None:
        """Commit a READY version with its blob records and alias moves."""
        puts = [end]
        puts += [
            alias_put(version.model, name, version.number, item) for name, item in moves.items()
        ]
        puts += [blob_put(blob) for blob in version.blobs]
        targets = {name: item["version"] if item else None for name, item in moves.items()}
        before = {"state": State.PENDING.value, "aliases": targets}
        after = {"state": version.state.value, "aliases": dict.fromkeys(moves, version.number)}
        change = Change("finish", actor, version.number, before, after)
        self._commit(version.model, meta, puts, change, ready=meta.get("ready", 0) + 1)

    def _moves_at_ready(
        self,
        version: Version,
        meta: Item,
        latest: Item | None,
        prod: Item | None,
        is_newer: IsNewer,
    ) -> dict[str, Item | None]:
        """Return the aliases that move to a newly READY model version.

        Values are the aliases' stored items, None for a new alias. `prod` never moves by itself,
        also not to an older upload that is READY later: callers would get another model although
        nobody decided that.
        """
        moves = {}
        newest = self._stored(version.model, latest["version"]) if latest else None
        if newest is None or version.is_written_after(newest, is_newer):
            moves[NEWEST_ALIAS] = latest
        if prod is None and not meta.get("ready", 0):
            moves[DEFAULT_ALIAS] = prod
        return moves

    # --- aliases and archive

    def move_alias(
        self, model: str, name: str, number: int, *, actor: str, expected: int | None = None
    ) -> Alias:
        """Point a model's alias at a READY version.

        Nothing changes if it points there already.

        `expected` is the alias's revision as the caller saw it, 0 for an alias that did not exist,
        None for any. `latest` follows the uploads and cannot be moved by callers.

        Raises:
            InvalidRequest: `name` is no alias, or `latest`.
            ModelNotFound: no such model or version.
            StateConflict: the version is not READY or is damaged, or the alias has moved meanwhile.
            Unavailable: the table failed, or too many writers interfered.
        """
        return self._move(model, name, number, actor, expected, "move_alias")

    def rollback(self, model: str, name: str, *, actor: str, expected: int | None = None) -> Alias:
        """Point a model's alias back at its previous version.

        A second rollback undoes the first.

        Raises:
            ModelNotFound: no such model, alias or version.
            StateConflict: the alias has never moved; or as for `move_alias`.
            InvalidRequest, Unavailable: as for `move_alias`.
        """
        alias = self.alias(model, name)
        if alias is None:
            raise ModelNotFound(
                f"Request for unknown model: '{model}' alias {shown(name)} is not found"
            )
        if alias.previous is None:
            raise StateConflict(
                f"alias {name} of '{model}' has only ever pointed at version {alias.version}"
            )
        seen = alias.revision if expected is None else expected
        return self._move(model, name, alias.previous, actor, seen, "rollback")

    @retried
    def _move(
        self, model: str, name: str, number: int, actor: str, expected: int | None, action: str
    ) -> Alias:
        _check_movable(name)
        meta, [item, target] = self._read_after_meta(model, alias_sk(name), version_sk(number))
        if target is None:
            raise _unknown_version(model, number)
        alias = alias_from_item(item) if item else None
        if alias and alias.version == number:
            return alias
        revision = alias.revision if alias else 0
        if expected not in (None, revision):
            raise StateConflict(
                f"alias {name} of '{model}' is at revision {revision}, not {expected}: "
                "look again, then move it"
            )
        version = version_from_item(target)
        if version.state is not State.READY:
            raise StateConflict(
                f"version {number} of '{model}' is {version.state}, not READY{_because(version)}"
            )
        if version.damaged:
            raise StateConflict(f"version {number} of '{model}' is damaged: {version.damaged}")
        put = alias_put(model, name, number, item)
        before = {"aliases": {name: alias.version if alias else None}}
        change = Change(action, actor, number, before, {"aliases": {name: number}})
        self._commit(model, meta, [put], change)
        return alias_from_item(put.item)

    @retried
    def archive(self, model: str, number: int, *, actor: str) -> Version:
        """Archive a READY or REJECTED version for good; its stored files remain.

        Nothing changes if it is ARCHIVED already.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is PENDING, or aliases point at it; the message names them.
            Unavailable: the table failed, or too many writers interfered.
        """
        meta, [item] = self._read_after_meta(model, version_sk(number))
        if item is None:
            raise _unknown_version(model, number)
        version = version_from_item(item)
        if version.state is State.ARCHIVED:
            return version
        if version.state is State.PENDING:
            raise StateConflict(
                f"version {number} of '{model}' is PENDING: wait for the end of its registration"
            )
        aliases = [name for name, target in self.aliases(model).items() if target == number]
        if aliases:
            raise StateConflict(
                f"version {number} of '{model}' has the aliases {', '.join(aliases)}: "
                "move them first"
            )
        return self._update(meta, version, "archive", actor, state=State.ARCHIVED)

    # --- reconciliation

    def note_ignored(self, key: str, reason: Reason) -> None:
        """Store the reason why an uploaded S3 object is ignored.

        The object's next event overwrites it; a version made from the object removes it.
        """
        at = self._now()
        expires_at = _days_after(at, IGNORED_DAYS)
        self._overwrite("the list of ignored uploads", ignored_to_item(key, reason, at, expires_at))

    def unlist_ignored(self, keys: Sequence[str]) -> None:
        """Remove uploads from the list of ignored ones, by S3 key."""
        for note in self._read_all([ignored_key(key) for key in keys]):
            for put in ignored_clear(note):
                self._overwrite("the list of ignored uploads", put.item)

    def note_failure(self, model: str, source: Source, reason: Reason) -> None:
        """Store a note with the reason why an upload's registration failed.

        The upload may be claimed or not. This is no change of the model: it makes no revision and
        no audit record.
        """
        key = model_pk(model), failure_sk(source)
        [stored] = self._table.get([key])
        attempts = stored["attempts"] + 1 if stored else 1
        failure = Failure(source, reason, attempts, at=self._now())
        expires_at = _days_after(failure.at, NOTE_DAYS)
        self._overwrite(key[0], failure_to_item(model, failure, expires_at))

    def lookup_uploads(
        self, uploads: Sequence[tuple[str, Source]]
    ) -> list[tuple[int | None, Failure | None]]:
        """Return the version number and failure note of each upload (model, source)."""
        keys = []
        for model, source in uploads:
            keys += [(model_pk(model), source_sk(source)), (model_pk(model), failure_sk(source))]
        items = self._read_all(keys)
        return [
            (claim["version"] if claim else None, failure_from_item(note) if note else None)
            for claim, note in zip(items[::2], items[1::2], strict=True)
        ]

    def pending(self, before: str, limit: int) -> list[Version]:
        """Return up to `limit` PENDING versions claimed before a time, oldest first."""
        keys = [(item["pk"], item["sk"]) for item in self._table.pending(before, limit)]
        versions = [version_from_item(item) for item in self._read_all(keys) if item]
        return [  # the index may lag behind the items
            version
            for version in versions
            if version.state is State.PENDING and version.claimed_at < before
        ]

    def ready_after(self, after: str, limit: int) -> tuple[list[Version], str]:
        """Return a page of READY versions, and the position of the next.

        A page covers `limit` versions of any state and begins after a position: "" for the first
        page, then the position that the call before returned. The position returned is "" at the
        end of the listing.
        """
        rows = list(self._table.listing(after, limit))
        names = [row["listed"].rpartition("#") for row in rows if row["state"] == State.READY]
        keys = [(model_pk(model), version_sk(int(number))) for model, _, number in names]
        versions = [version_from_item(item) for item in self._read_all(keys) if item]
        ready = [version for version in versions if version.state is State.READY]
        return ready, rows[-1]["listed"] if len(rows) == limit else ""

    def recorded_blobs(self, digests: Sequence[str]) -> set[str]:
        """Return the subset of SHA-256 digests whose blobs versions refer to."""
        items = self._read_all([(blob_pk(digest), "RECORD") for digest in digests])
        return {digest for digest, item in zip(digests, items, strict=True) if item}

    @retried
    def mark_damaged(self, model: str, number: int, damage: str | None, *, actor: str) -> Version:
        """Flag a READY version as damaged, or clear its damage flag.

        `damage` says which blob is missing or altered; None clears the flag. The version stays
        READY. Versions in other states are not changed.

        Raises:
            ModelNotFound: no such model or version.
            Unavailable: the table failed, or too many writers interfered.
        """
        meta, [item] = self._read_after_meta(model, version_sk(number))
        if item is None:
            raise _unknown_version(model, number)
        version = version_from_item(item)
        if version.state is not State.READY or version.damaged == damage:
            return version
        action = "damaged" if damage else "mended"
        return self._update(meta, version, action, actor, damaged=damage)

    def bookmark(self, walk: str) -> str:
        """Return the stored position at which a reconciler task continues."""
        [item] = self._table.get([("RECONCILE", walk)])
        return item["at"] if item else ""

    def set_bookmark(self, walk: str, position: str) -> None:
        """Store the position at which a reconciler task will continue."""
        self._overwrite("RECONCILE", {"pk": "RECONCILE", "sk": walk, "at": position})

    # --- serving

    @retried
    def serve(self, model: str, serving: bool, *, actor: str = "infer") -> None:
        """Enable or disable serving of a model in all Lambda environments.

        Raises:
            Unavailable: the table failed, or too many writers interfered.
        """
        pk = switch_pk(model)
        [switch] = self._table.get([(pk, "SWITCH")])
        if serving == (switch["serving"] if switch else True):
            return
        revision = switch["revision"] if switch else 0
        item = {"pk": pk, "sk": "SWITCH", "serving": serving, "revision": revision + 1}
        before, after = {"serving": not serving}, {"serving": serving}
        change = Change("load" if serving else "unload", actor, None, before, after)
        self._transact(model, Put(item, {"revision": revision} if switch else None), [], change)

    # --- transactions

    def _read_after_meta(self, model: str, *sks: str) -> tuple[Item | None, list[Item | None]]:
        """Read a model's META item, then the items with these sort keys.

        If one of them changes in between, the transaction fails on META's revision.
        """
        pk = model_pk(model)
        [meta] = self._table.get([(pk, "META")])
        return meta, self._table.get([(pk, sk) for sk in sks])

    def _read_all(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        starts = range(0, len(keys), KEYS_AT_ONCE)
        batches = [self._table.get(keys[start : start + KEYS_AT_ONCE]) for start in starts]
        return [item for batch in batches for item in batch]

    def _update(
        self, meta: Item | None, version: Version, action: str, actor: str, **changes: Any
    ) -> Version:
        """Commit changed fields of a version, unless its state has changed meanwhile."""
        changed = replace(version, **changes)
        old, new = version_to_item(version), version_to_item(changed)
        before, after = ({name: item[name] for name in changes} for item in (old, new))
        change = Change(action, actor, version.number, before, after)
        self._commit(version.model, meta, [Put(new, {"state": old["state"]})], change)
        return changed

    def _commit(
        self,
        model: str,
        meta: Item | None,
        puts: Sequence[Put],
        change: Change,
        **counters: int,
    ) -> None:
        """Commit writes as a model's next revision, updating its META counters."""
        key = {"pk": model_pk(model), "sk": "META", "model": model}
        revision = meta["revision"] if meta else 0
        item = {**key, **(meta or {}), **counters, "revision": revision + 1}
        guard = Put(item, {"revision": revision} if meta else None)
        self._transact(model, guard, puts, change)

    def _transact(self, model: str, guard: Put, puts: Sequence[Put], change: Change) -> None:
        """Commit a model's writes with their audit record in one transaction.

        `guard` sets the revision that numbers the audit record.
        """
        audit = audit_put(guard.item["pk"], guard.item["revision"], change, self._now())
        self._table.transact([guard, *puts, audit])
        self._audit_log(audit_to_log(audit.item, model=model))

    @retried
    def _overwrite(self, _name: str, item: Item) -> None:
        """Write an item unconditionally, without model revision or audit record.

        It is retried because another transaction may hold the item for a moment.
        """
        self._table.transact([Put(item, {})])


def resolution_keys(model: str, reference: int | str | None) -> list[tuple[str, str]]:
    """Return the keys of the items that `Registry.resolve` reads first."""
    pk = model_pk(model)
    if isinstance(reference, int):
        sk = version_sk(reference)
    else:
        sk = alias_sk(reference or DEFAULT_ALIAS)
    return [(pk, "META"), (pk, sk), (switch_pk(model), "SWITCH")]


def _days_after(at: str, days: int) -> int:
    """Add days to an ISO 8601 time; return Unix epoch seconds."""
    from datetime import datetime, timedelta  # not at the top: infer starts without it

    return int((datetime.fromisoformat(at) + timedelta(days=days)).timestamp())


def _check_movable(name: str) -> None:
    if not is_alias(name):
        raise InvalidRequest(f"{shown(name)} is no alias: lower case, beginning with a letter")
    if name == NEWEST_ALIAS:
        raise InvalidRequest(
            f"{NEWEST_ALIAS} is the READY version uploaded last, by itself; move another alias"
        )


def _because(version: Version) -> str:
    return f": {version.reason.message}" if version.reason else ""


def unknown_model(model: str) -> ModelNotFound:
    """Return the error for a model that the caller may not know."""
    return ModelNotFound(f"Request for unknown model: {shown(model)} is not found")


def _refusal(version: Version) -> NotReady | NotServable:
    """Return the error for calling a model version that is not READY."""
    text = (
        f"Model version not ready: version {version.number} of '{version.model}' "
        f"is {version.state}{_because(version)}"
    )
    if version.state is State.PENDING:
        return NotReady(text, retry_after_s=5)
    return NotServable(text)


def _unknown_version(model: str, number: int) -> ModelNotFound:
    return ModelNotFound(f"Request for unknown model: '{model}' version {number} is not found")
