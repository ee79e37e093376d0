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

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from functions.core.errors import (
    InvalidRequest,
    ModelNotFound,
    NotReady,
    StateConflict,
    Unavailable,
    shown,
)
from functions.core.names import is_alias
from functions.core.registry.items import (
    alias_of,
    alias_put,
    alias_sk,
    audit_line,
    blob_put,
    failure_of,
    failure_sk,
    model_pk,
    source_record,
    version_item,
    version_of,
    version_sk,
)
from functions.core.registry.table import Conflict, Item, Put, Table
from functions.core.registry.version import (
    Alias,
    Change,
    Failure,
    Reason,
    Resolved,
    Source,
    State,
    Version,
)

DEFAULT_ALIAS = "prod"
NEWEST_ALIAS = "latest"
KEYS_AT_ONCE = 100  # what DynamoDB's BatchGetItem takes
NOTE_DAYS = 30  # a note about a failure outlives its message, which SQS keeps for 14 days
ATTEMPTS = 50  # lost races in a row; each loser waits a random time


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
        [item] = self._table.get([(model_pk(model), version_sk(number))])
        return version_of(item) if item else None

    def versions(self, model: str) -> list[Version]:
        """Every version of `model`, oldest first; empty for an unknown one."""
        return [version_of(item) for item in self._table.query(model_pk(model), "VERSION#")]

    def aliases(self, model: str) -> dict[str, int]:
        return {
            item["alias"]: item["version"] for item in self._table.query(model_pk(model), "ALIAS#")
        }

    def audit(self, model: str) -> list[Item]:
        return list(self._table.query(model_pk(model), "AUDIT#"))

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
            switches += self._table.get(
                [(pk, "SWITCH") for pk in pks[start : start + KEYS_AT_ONCE]]
            )
        return {
            item["pk"].removeprefix("SERVING#")
            for item in switches
            if item is not None and not item["serving"]
        }

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """The READY version that `reference` (a number, an alias, or None for the default) stands for.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: it exists and is not served: pending, rejected, archived, or unloaded.
            Unavailable: the registry failed.
        """
        pk = model_pk(model)
        target = (
            version_sk(reference)
            if isinstance(reference, int)
            else alias_sk(reference or DEFAULT_ALIAS)
        )
        meta, found, switch = self._table.get(
            [(pk, "META"), (pk, target), (f"SERVING#{model}", "SWITCH")]
        )
        if meta is None:
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
        if found is None and reference is None:
            newest = self.version(model, meta["next_version"] - 1)
            raise _not_ready(newest) if newest else LookupError(f"{model} has no version")
        if found is None:
            kind = "version" if isinstance(reference, int) else "version or alias"
            raise ModelNotFound(
                f"Request for unknown model: '{model}' {kind} '{reference}' is not found"
            )
        if isinstance(reference, int):
            version, alias = version_of(found), None
        else:
            alias = found["alias"]
            pointed = self.version(model, found["version"])
            if pointed is None:
                raise LookupError(f"alias {alias} of {model} points at a missing version")
            version = pointed
        if version.state is not State.READY:
            raise _not_ready(version)
        if switch is not None and not switch["serving"]:
            raise NotReady(
                f"Model version not ready: '{model}' is unloaded; load it first", retry_after_s=5
            )
        return Resolved(version, alias)

    # --- registering ------------------------------------------------------------------------------------------------

    def claim(self, model: str, source: Source, *, actor: str = "register") -> Version:
        """The version that this upload is: the next number the first time, the same one every time after.

        One that is still PENDING is taken over from a worker that may have died, and counts one attempt more. Where
        that worker lives after all, both go on and one of them finishes it.

        Raises:
            Unavailable: too many writers at once.
        """
        pk = model_pk(model)
        for _ in self._attempts():
            meta, known = self._table.get([(pk, "META"), (pk, f"SOURCE#{source.id}")])
            now = self._now()
            if known is None:
                number = meta["next_version"] if meta else 1
                version = Version(
                    model, number, State.PENDING, source, created_at=now, claimed_at=now
                )
                counter = {"next_version": number + 1}
                puts = [
                    Put({"pk": pk, "sk": f"SOURCE#{source.id}", "version": number}, None),
                    Put(version_item(version), None),
                ]
                after = {"state": version.state.value, "source": source_record(source)}
                change = Change("claim", actor, number, {"state": None}, after)
            else:
                standing = self.version(model, known["version"])
                if standing is None:
                    raise LookupError(f"upload {source.id} of {model} became a missing version")
                if standing.state is not State.PENDING:
                    return standing
                version = replace(standing, attempts=standing.attempts + 1, claimed_at=now)
                counter = {}
                puts = [Put(version_item(version), {"state": State.PENDING.value})]
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
        pk = model_pk(version.model)
        done = replace(version, finished_at=self._now())
        for _ in self._attempts():
            meta, standing, latest, prod = self._table.get(
                [
                    (pk, "META"),
                    (pk, version_sk(version.number)),
                    (pk, alias_sk(NEWEST_ALIAS)),
                    (pk, alias_sk(DEFAULT_ALIAS)),
                ]
            )
            if meta is None or standing is None:
                raise LookupError(f"version {version.number} of {version.model} was never claimed")
            if standing["state"] != State.PENDING:
                return version_of(standing)
            claims = {
                "attempts": standing["attempts"],
                "claimed_at": standing["claimed_at"],
            }  # others' since ours
            done = replace(done, **claims)
            puts = [Put(version_item(done), {"state": State.PENDING.value, **claims})]
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
                puts += [
                    alias_put(version.model, alias, version.number, now) for alias, now in moves
                ]
                puts += [blob_put(blob) for blob in done.blobs]
                before["aliases"] = {alias: now["version"] if now else None for alias, now in moves}
                after["aliases"] = {alias: version.number for alias, _ in moves}
            elif done.reason:
                after["reason"] = {"code": done.reason.code, "message": done.reason.message}
            try:
                self._commit(
                    version.model,
                    meta,
                    counter,
                    puts,
                    Change("finish", actor, version.number, before, after),
                )
            except Conflict:
                continue
            return done
        raise _too_busy(version.model)

    # --- moving -----------------------------------------------------------------------------------------------------

    def alias(self, model: str, name: str) -> Alias | None:
        [item] = self._table.get([(model_pk(model), alias_sk(name))])
        return alias_of(item) if item else None

    def move_alias(
        self, model: str, name: str, number: int, *, actor: str, expected: int | None = None
    ) -> Alias:
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
            raise ModelNotFound(
                f"Request for unknown model: '{model}' alias {shown(name)} is not found"
            )
        if standing.previous is None:
            raise StateConflict(
                f"alias {name} of '{model}' has only ever pointed at version {standing.version}"
            )
        seen = standing.revision if expected is None else expected
        return self._move(model, name, standing.previous, actor, seen, "rollback")

    def _move(
        self, model: str, name: str, number: int, actor: str, expected: int | None, action: str
    ) -> Alias:
        if not is_alias(name):
            raise InvalidRequest(f"{shown(name)} is no alias: lower case, beginning with a letter")
        if name == NEWEST_ALIAS:
            raise InvalidRequest(
                f"{NEWEST_ALIAS} follows the newest READY version by itself; move another alias"
            )
        for _ in self._attempts():
            meta, [item, target] = self._standing(model, alias_sk(name), version_sk(number))
            if target is None:
                raise ModelNotFound(
                    f"Request for unknown model: '{model}' version {number} is not found"
                )
            standing = alias_of(item) if item else None
            if standing and standing.version == number:
                return standing
            revision = standing.revision if standing else 0
            if expected is not None and expected != revision:
                raise StateConflict(
                    f"alias {name} of '{model}' is at revision {revision}, not {expected}: look again, then move it"
                )
            version = version_of(target)
            if version.state is not State.READY:
                why = f": {version.reason.message}" if version.reason else ""
                raise StateConflict(
                    f"version {number} of '{model}' is {version.state}, not READY{why}"
                )
            if version.damaged:
                raise StateConflict(f"version {number} of '{model}' is damaged: {version.damaged}")
            put = alias_put(model, name, number, item)
            before = {name: standing.version if standing else None}
            change = Change(action, actor, number, {"aliases": before}, {"aliases": {name: number}})
            try:
                self._commit(model, meta, {}, [put], change)
            except Conflict:
                continue
            return alias_of(put.item)
        raise _too_busy(model)

    def archive(self, model: str, number: int, *, actor: str) -> Version:
        """Retire a READY or REJECTED version for good; nothing happens to an ARCHIVED one. Its blobs stay.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is PENDING, or aliases point at it; the message names them.
            Unavailable: too many writers at once.
        """
        for _ in self._attempts():
            meta, [item] = self._standing(model, version_sk(number))
            if item is None:
                raise ModelNotFound(
                    f"Request for unknown model: '{model}' version {number} is not found"
                )
            version = version_of(item)
            if version.state is State.ARCHIVED:
                return version
            if version.state is State.PENDING:
                raise StateConflict(
                    f"version {number} of '{model}' is PENDING: wait for the end of its registration"
                )
            held_by = [alias for alias, at in self.aliases(model).items() if at == number]
            if held_by:
                raise StateConflict(
                    f"version {number} of '{model}' has the aliases {', '.join(held_by)}: move them first"
                )
            done = replace(version, state=State.ARCHIVED)
            put = Put(version_item(done), {"state": version.state.value})
            change = Change(
                "archive",
                actor,
                number,
                {"state": version.state.value},
                {"state": done.state.value},
            )
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

        [known] = self._table.get([(model_pk(model), failure_sk(source))])
        now = self._now()
        expires_at = datetime.fromisoformat(now) + timedelta(days=NOTE_DAYS)
        item = {
            "pk": model_pk(model),
            "sk": failure_sk(source),
            "source": source_record(source),
            "reason": {"code": reason.code, "message": reason.message},
            "attempts": known["attempts"] + 1 if known else 1,
            "at": now,
            "expires_at": int(expires_at.timestamp()),  # DynamoDB deletes it after then
        }
        self._overwrite(item)

    def known(
        self, uploads: Sequence[tuple[str, Source]]
    ) -> list[tuple[int | None, Failure | None]]:
        """What is known of each upload (model, source): the version it became, and why it was last put off."""
        keys = []
        for model, source in uploads:
            keys += [
                (model_pk(model), f"SOURCE#{source.id}"),
                (model_pk(model), failure_sk(source)),
            ]
        items = self._read_all(keys)
        return [
            (claim["version"] if claim else None, failure_of(note) if note else None)
            for claim, note in zip(items[::2], items[1::2], strict=True)
        ]

    def pending(self, before: str, limit: int) -> list[Version]:
        """Up to `limit` versions that are PENDING and were last claimed before then, the longest-waiting first."""
        items = self._read_all(
            [(item["pk"], item["sk"]) for item in self._table.pending(before, limit)]
        )
        versions = [version_of(item) for item in items if item]
        return [
            version
            for version in versions
            if version.state is State.PENDING and version.claimed_at < before
        ]

    def ready_after(self, after: str, limit: int) -> tuple[list[Version], str]:
        """The READY ones among the next `limit` versions of the listing, and where to go on; "" at its end."""
        rows = list(self._table.listing(after, limit))
        names = [row["listed"].rpartition("#") for row in rows if row["state"] == State.READY]
        items = self._read_all(
            [(model_pk(model), version_sk(int(number))) for model, _, number in names]
        )
        versions = [version_of(item) for item in items if item]
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
            meta, [item] = self._standing(model, version_sk(number))
            if item is None:
                raise ModelNotFound(
                    f"Request for unknown model: '{model}' version {number} is not found"
                )
            version = version_of(item)
            if version.state is not State.READY or version.damaged == what:
                return version
            done = replace(version, damaged=what)
            put = Put(version_item(done), {"state": State.READY.value})
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
            if (switch is None and serving) or (
                switch is not None and switch["serving"] == serving
            ):
                return
            revision = switch["revision"] if switch else 0
            item = {"pk": pk, "sk": "SWITCH", "serving": serving, "revision": revision + 1}
            change = Change(
                "load" if serving else "unload",
                actor,
                None,
                {"serving": not serving},
                {"serving": serving},
            )
            audit = self._audit(pk, revision + 1, change)
            try:
                self._table.transact([Put(item, {"revision": revision} if switch else None), audit])
            except Conflict:
                continue
            self._audit_log(audit_line(model, audit.item))
            return
        raise _too_busy(model)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _standing(self, model: str, *sks: str) -> tuple[Item | None, list[Item | None]]:
        """META, and after it the items of `sks`: what changes in between fails the transaction on META's revision."""
        pk = model_pk(model)
        [meta] = self._table.get([(pk, "META")])
        return meta, self._table.get([(pk, sk) for sk in sks])

    def _read_all(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        starts = range(0, len(keys), KEYS_AT_ONCE)
        return [
            item for start in starts for item in self._table.get(keys[start : start + KEYS_AT_ONCE])
        ]

    def _commit(
        self, model: str, meta: Item | None, counter: Item, puts: Sequence[Put], change: Change
    ) -> None:
        """One transaction: META moves on by a revision, `puts`, and the audit record of this revision."""
        pk = model_pk(model)
        revision = meta["revision"] if meta else 0
        new = {
            "pk": pk,
            "sk": "META",
            "model": model,
            **(meta or {}),
            **counter,
            "revision": revision + 1,
        }
        guard = Put(new, {"revision": revision} if meta else None)
        audit = self._audit(pk, revision + 1, change)
        self._table.transact([guard, *puts, audit])
        self._audit_log(audit_line(model, audit.item))

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
