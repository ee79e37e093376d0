"""Model registry: registration, resolving, reconciliation and serving switches.

The layout of its table and the rules of its writes: `transactions.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from functions.core.errors import (
    ModelNotFound,
    NotReady,
    NotServable,
)
from functions.core.names import is_model_name
from functions.core.records import replace
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_put,
    alias_sk,
    blob_pk,
    blob_put,
    failure_from_item,
    failure_sk,
    failure_to_item,
    ignored_clear,
    ignored_key,
    ignored_to_item,
    model_facts,
    model_pk,
    reason_to_record,
    source_put,
    source_sk,
    source_to_record,
    switch_pk,
    traffic_put,
    version_from_item,
    version_sk,
    version_to_item,
)
from functions.core.registry.table import Item, Put
from functions.core.registry.transactions import (
    DEFAULT_ALIAS,
    NEWEST_ALIAS,
    Transactions,
    because,
    unknown_model,
    unknown_version,
)
from functions.core.registry.version import (
    Alias,
    Change,
    Failure,
    IsNewer,
    Reason,
    Release,
    ReleaseRule,
    Resolved,
    Source,
    State,
    Version,
)

NOTE_DAYS = 30  # longer than the 14 days for which SQS keeps a dead letter
IGNORED_DAYS = 7  # enough for an uploader to look
IGNORED_LISTED = 100  # notes on ignored uploads in one answer
ARCHIVED_READ = 100_000  # archived models that lists leave out
IGNORED_READ = 1000  # notes that are looked through for those a caller may see


class Registry(Transactions):
    """Model registry: what registration, inference and the reconciler read and write.

    Every method raises `Unavailable` if the table fails, and every write also if other writers
    interfere too often.
    """

    # --- reads

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
        """Return the subset of `models` that are archived or unloaded."""
        names = dict.fromkeys(models)
        archived = {row["listed"] for row in self._table.listed("ARCHIVED", "", ARCHIVED_READ)}
        switches = self._read_all([(switch_pk(model), "SWITCH") for model in names])
        off = [item["pk"] for item in switches if item and not item["serving"]]
        return {pk.removeprefix(switch_pk("")) for pk in off} | archived & names.keys()

    def default_versions(self, models: Iterable[str]) -> list[Version]:
        """Return the versions at the default aliases of models."""
        aliases = self._read_all([(model_pk(name), alias_sk(DEFAULT_ALIAS)) for name in models])
        keys = [(item["pk"], version_sk(item["version"])) for item in aliases if item]
        return [version_from_item(item) for item in self._read_all(keys) if item]

    def resolve(self, model: str, reference: int | str | None) -> Resolved:
        """Resolve a version number, alias or None to a READY version.

        `reference` is a version number, an alias, or None for the default alias.

        Raises:
            ModelNotFound: no such model, version or alias.
            NotReady: the version is pending, or the model is unloaded.
            NotServable: the version is rejected or archived, or the model is archived.
            Unavailable: the table failed.
        """
        meta, item, switch = self._table.get(resolution_keys(model, reference))
        if meta is None:
            raise unknown_model(model)
        if meta.get("archived_at"):
            raise NotServable(
                f"Model version not ready: '{model}' is archived: restore it, or ask its owner"
            )
        if item is None:
            raise self._unresolved(model, reference, meta)
        alias = item.get("alias")
        if alias and item.get("traffic"):
            resolved = self._resolve_split(model, alias_from_item(item))
        else:
            version = self._stored(model, item["version"]) if alias else version_from_item(item)
            resolved = Resolved(version, alias)
        version = resolved.version
        if version.state is not State.READY:
            raise _refusal(version)
        if switch is not None and not switch["serving"]:
            raise NotReady(
                f"Model version not ready: '{model}' is unloaded; load it first", retry_after_s=5
            )
        return resolved

    def _resolve_split(self, model: str, alias: Alias) -> Resolved:
        """Read the versions of an alias's traffic object by one request."""
        numbers, traffic = alias.versions, alias.traffic
        items = self._table.get([(model_pk(model), version_sk(number)) for number in numbers])
        versions = {item["version"]: version_from_item(item) for item in items if item}
        if traffic is None or len(versions) < len(numbers):
            raise LookupError(f"the traffic of {alias.name} of {model} names a missing version")
        candidates = [*traffic.candidates]
        shadow = versions[traffic.shadow.version] if traffic.shadow else None
        sides = {
            number: Resolved(versions[number], alias.name, traffic, "candidate")
            for number in candidates
        }
        stable = versions[alias.version]
        return Resolved(stable, alias.name, traffic, "stable", sides, shadow)

    def _unresolved(self, model: str, reference: int | str | None, meta: Item) -> Exception:
        """Return the error for a version or alias that cannot be resolved."""
        if reference is None:  # no version was ever READY: the newest one says why
            return _refusal(self._stored(model, meta["next_version"] - 1))
        kind = "version" if isinstance(reference, int) else "version or alias"
        return ModelNotFound(
            f"Request for unknown model: '{model}' {kind} '{reference}' is not found"
        )

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
        keys = [(pk, "META"), (pk, source_sk(source)), ignored_key(source.key), _upload_key(source)]
        meta, claim, ignored, record = self._table.get(keys)
        if claim is None:
            also = [*ignored_clear(ignored), self._received(record, source, model)]
            return self._claim_new(model, source, meta, also, actor)
        version = self._stored(model, claim["version"])
        if version.state is not State.PENDING:
            return version
        return self._claim_again(version, meta, actor)

    def _claim_new(
        self, model: str, source: Source, meta: Item | None, also: Sequence[Put], actor: str
    ) -> Version:
        number = meta["next_version"] if meta else 1
        now = self._now()
        version = Version(model, number, State.PENDING, source, created_at=now, claimed_at=now)
        puts = [source_put(model, source, number), Put(version_to_item(version), None), *also]
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
        release: ReleaseRule | None = None,
    ) -> Version:
        """End a registration as READY or REJECTED; return the stored version.

        Only the first end counts; later ones change nothing. In the same transaction, a READY
        version becomes `latest` if its upload was written last and `prod` if it is the first that
        is READY, and its blobs are recorded: no reader sees one without the other. `is_newer` is
        asked about two uploads of one key and second (`Version.is_written_after`), and `release`
        about `prod` if the model has a policy and the version becomes `latest`.

        Raises:
            Unavailable: the table, `is_newer` or `release` failed, or too many writers interfered.
        """
        ended = replace(version, finished_at=self._now())
        return self._finish(version.model, ended, actor, is_newer, release)

    @retried
    def _finish(
        self,
        model: str,
        version: Version,
        actor: str,
        is_newer: IsNewer,
        release: ReleaseRule | None,
    ) -> Version:
        pk = model_pk(model)
        sks = ("META", version_sk(version.number), alias_sk(NEWEST_ALIAS), alias_sk(DEFAULT_ALIAS))
        meta, stored, latest, prod = self._table.get([(pk, sk) for sk in sks])
        if meta is None or stored is None:
            raise LookupError(f"version {version.number} of {model} was never claimed")
        if stored["state"] != State.PENDING:
            return version_from_item(stored)
        # Another worker may have claimed the version since this one did.
        claims = {name: stored[name] for name in ("attempts", "claimed_at")}
        # A person may have written the note meanwhile.
        version = replace(version, **claims, note=stored.get("note", ""))
        end = Put(version_to_item(version), {"state": State.PENDING.value, **claims})
        if version.state is State.READY:
            moves = self._moves_at_ready(version, meta, latest, prod, is_newer)
            decision = None
            if release and prod and NEWEST_ALIAS in moves:
                decision = self._release(version, meta, prod, release)
            if decision and decision.moves:
                moves[DEFAULT_ALIAS] = prod
            self._commit_ready(version, end, meta, moves, actor, prod, decision)
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
        prod: Item | None,
        release: Release | None,
    ) -> None:
        """Commit a READY version with its blob records, alias moves and release."""
        puts = [end]
        puts += [
            alias_put(version.model, name, version.number, item) for name, item in moves.items()
        ]
        puts += [blob_put(blob) for blob in version.blobs]
        targets = {name: item["version"] if item else None for name, item in moves.items()}
        before: dict[str, Any] = {"state": State.PENDING.value, "aliases": targets}
        moved = dict.fromkeys(moves, version.number)
        after: dict[str, Any] = {"state": version.state.value, "aliases": moved}
        if release:
            after["policy"] = release.reason
        if release and release.traffic and prod:
            puts.append(traffic_put(prod, release.traffic.to_record()))
            before["traffic"] = {DEFAULT_ALIAS: None}
            after["traffic"] = {DEFAULT_ALIAS: release.traffic.to_document()}
            before["aliases"] = {**targets, DEFAULT_ALIAS: prod["version"]}
            after["aliases"] = {**moved, DEFAULT_ALIAS: prod["version"]}
        change = Change("finish", actor, version.number, before, after)
        self._commit(version.model, meta, puts, change, ready=meta.get("ready", 0) + 1)

    def _release(
        self, version: Version, meta: Item, prod: Item, rule: ReleaseRule
    ) -> Release | None:
        """Ask a model's policy about a READY version; None if people decide."""
        policy = meta.get("policy") or {}
        if policy.get("kind", "manual") == "manual" or meta.get("archived_at"):
            return None
        standing = self._stored(version.model, prod["version"])
        return rule(policy, version, standing, alias_from_item(prod))

    def _moves_at_ready(
        self,
        version: Version,
        meta: Item,
        latest: Item | None,
        prod: Item | None,
        is_newer: IsNewer,
    ) -> dict[str, Item | None]:
        """Return the aliases that move to a newly READY model version.

        Values are the aliases' stored items, None for a new alias. `prod` does not move here: a
        person or a policy decides, and a policy never decides on an older upload that is READY
        later.
        """
        moves = {}
        newest = self._stored(version.model, latest["version"]) if latest else None
        if newest is None or version.is_written_after(newest, is_newer):
            moves[NEWEST_ALIAS] = latest
        if prod is None and not meta.get("ready", 0):
            moves[DEFAULT_ALIAS] = prod
        return moves

    # --- reconciliation

    def note_ignored(self, key: str, reason: Reason, source: Source | None = None) -> None:
        """Store the reason why an uploaded S3 object is ignored.

        The object's next event overwrites it; a version made from the object removes it. With
        `source`, also in the record of the upload.
        """
        at = self._now()
        items = [ignored_to_item(key, reason, at, _days_after(at, IGNORED_DAYS))]
        if source is not None:
            [stored] = self._table.get([_upload_key(source)])
            folder = key.removeprefix("models/").partition("/")[0]
            model = folder if is_model_name(folder) else ""
            items.append(self._received(stored, source, model, reason).item)
        self._overwrite("the list of ignored uploads", *items)

    def note_part(self, source: Source) -> None:
        """Store that a part of a package has arrived."""
        [stored] = self._table.get([_upload_key(source)])
        if stored is not None:
            item = self._received(stored, source, "").item
            self._overwrite("the record of an upload", item)

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
        stored, record = self._table.get([key, _upload_key(source)])
        attempts = stored["attempts"] + 1 if stored else 1
        failure = Failure(source, reason, attempts, at=self._now())
        items = [failure_to_item(model, failure, _days_after(failure.at, NOTE_DAYS))]
        if source.object_version or record:  # an upload without version has no record of its own
            items.append(self._received(record, source, model).item)
        self._overwrite(key[0], *items)

    def _received(
        self, stored: Item | None, source: Source, model: str, ignored: Reason | None = None
    ) -> Put:
        """Return the write of an upload's record when registration handles its event."""
        from functions.core.upload_record import received_item  # not at the top: see `_days_after`

        address = source.bucket, source.key, source.object_version
        reason = (ignored.code, ignored.message) if ignored else ("", "")
        return Put(received_item(stored, address, self._now(), model=model, ignored=reason), {})

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

    def unlisted_models(self, after: str, limit: int) -> tuple[list[str], str]:
        """Return models that lists lack, and the next position.

        Their META items are of an earlier release. A page covers `limit` versions, as for
        `ready_after`.
        """
        rows = list(self._table.listing(after, limit))
        names = dict.fromkeys(row["listed"].rpartition("#")[0] for row in rows)
        metas = self._read_all([(model_pk(name), "META") for name in names])
        unlisted = [meta["model"] for meta in metas if meta and "aliases" not in meta]
        return unlisted, rows[-1]["listed"] if len(rows) == limit else ""

    @retried
    def list_model(self, model: str) -> None:
        """Complete a META item of an earlier release, without a revision."""
        [meta] = self._table.get([(model_pk(model), "META")])
        if meta is None or "aliases" in meta:
            return
        newest = self._stored(model, meta["next_version"] - 1)
        item = {**meta, "aliases": self.aliases(model)}
        facts = model_facts(item, [Put(version_to_item(newest), {})])
        # A writer that has read the item before overwrites this: the next run adds it again.
        self._table.transact([Put({**item, **facts}, {"revision": meta["revision"]})])

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
            raise unknown_version(model, number)
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
        guard = Put(item, {"revision": revision} if switch else None)
        self._transact(model, guard, [], change, self._now())


def resolution_keys(model: str, reference: int | str | None) -> list[tuple[str, str]]:
    """Return the keys of the items that `Registry.resolve` reads first."""
    pk = model_pk(model)
    if isinstance(reference, int):
        sk = version_sk(reference)
    else:
        sk = alias_sk(reference or DEFAULT_ALIAS)
    return [(pk, "META"), (pk, sk), (switch_pk(model), "SWITCH")]


def _upload_key(source: Source) -> tuple[str, str]:
    """Return the DynamoDB primary key of an upload's record."""
    from functions.core.upload_record import upload_id, upload_key  # not at the top, either

    return upload_key(upload_id(source.bucket, source.key, source.object_version))


def _days_after(at: str, days: int) -> int:
    """Add days to an ISO 8601 time; return Unix epoch seconds."""
    from datetime import datetime, timedelta  # not at the top: infer starts without it

    return int((datetime.fromisoformat(at) + timedelta(days=days)).timestamp())


def _refusal(version: Version) -> NotReady | NotServable:
    """Return the error for calling a model version that is not READY."""
    text = (
        f"Model version not ready: version {version.number} of '{version.model}' "
        f"is {version.state}{because(version)}"
    )
    if version.state is State.PENDING:
        return NotReady(text, retry_after_s=5)
    return NotServable(text)
