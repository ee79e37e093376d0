"""Decisions of people about models and versions: approval, notes, policy, archive."""

from collections.abc import Mapping
from typing import Any

from functions.core.errors import StateConflict
from functions.core.records import replace
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_put,
    alias_sk,
    model_pk,
    version_from_item,
    version_sk,
    version_to_item,
)
from functions.core.registry.releases import check_unused, unknown_alias
from functions.core.registry.table import Delete, Item, Put, Write
from functions.core.registry.transactions import (
    DEFAULT_ALIAS,
    NEWEST_ALIAS,
    Transactions,
    because,
    unknown_model,
    unknown_version,
)
from functions.core.registry.version import Change, Reason, State, Version

BY_A_PERSON = "REJECTED_BY_PERSON"  # code of the reason of a READY version that was rejected


class Decisions(Transactions):
    """Changes of models and versions that people decide.

    Every write raises `Unavailable` if the table fails or other writers interfere too often.
    """

    @retried
    def describe(
        self,
        model: str,
        changes: Mapping[str, Any],
        *,
        actor: str,
        expected: int | None = None,
    ) -> None:
        """Change a model's `description` or `policy`.

        Nothing changes if they are so already.

        `expected` is the model's revision as the caller saw it, None for any.

        Raises:
            ModelNotFound: there is no such model.
            StateConflict: the model has another revision.
        """
        meta = self._meta(model)
        if expected not in (None, meta["revision"]):
            raise StateConflict(
                f"model '{model}' is at revision {meta['revision']}, not {expected}: "
                "read it again, then change it",
                revision=meta["revision"],
            )
        before = {name: meta.get(name) for name in changes}
        if before != changes:
            change = Change("describe", actor, None, before, dict(changes))
            self._commit(model, meta, [], change, **changes)

    def archive_model(self, model: str, *, actor: str) -> None:
        """Take a model out of service and of lists.

        Nothing changes if it is archived.

        Raises:
            ModelNotFound: there is no such model.
        """
        self._set_archived(model, True, actor)

    def restore_model(self, model: str, *, actor: str) -> None:
        """Put an archived model back into service.

        Nothing changes if it is not archived.

        Raises:
            ModelNotFound: there is no such model.
        """
        self._set_archived(model, False, actor)

    @retried
    def _set_archived(self, model: str, archive: bool, actor: str) -> None:
        meta = self._meta(model)
        before = meta.get("archived_at")
        if archive == bool(before):
            return
        after = self._now() if archive else None
        action = "archive_model" if archive else "restore_model"
        change = Change(action, actor, None, {"archived_at": before}, {"archived_at": after})
        self._commit(model, meta, [], change, archived_at=after)

    @retried
    def approve(self, model: str, number: int, *, actor: str, note: str = "") -> Version:
        """Approve a version that is READY or rejected by a person.

        The latter is READY again.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is PENDING or ARCHIVED, or registration has rejected it.
        """
        meta, version = self._read_version(model, number)
        if version.state is not State.READY and not _is_rejected_by_person(version):
            raise StateConflict(
                f"version {number} of '{model}' is {version.state}{because(version)}: "
                "only a READY version can be approved"
            )
        return self._decide(meta, version, "approve", actor, note, State.READY)

    @retried
    def reject(self, model: str, number: int, *, actor: str, note: str = "") -> Version:
        """Reject a READY version: nothing serves it, no alias takes it.

        `latest` moves to the READY version uploaded before, if it points there.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is not READY, or other aliases point at it; the message names them.
        """
        meta, version = self._read_version(model, number)
        if _is_rejected_by_person(version):
            return version
        if version.state is not State.READY:
            raise StateConflict(
                f"version {number} of '{model}' is {version.state}{because(version)}: "
                "only a READY version can be rejected"
            )
        return self._decide(meta, version, "reject", actor, note, State.REJECTED)

    def _decide(
        self, meta: Item, version: Version, action: str, actor: str, note: str, state: State
    ) -> Version:
        rejects = state is State.REJECTED
        text = note or f"a person rejected it ({actor})"
        approval = {"decision": action, "by": actor, "at": self._now(), "note": note}
        decided = replace(
            version,
            state=state,
            approval=approval,
            reason=Reason(BY_A_PERSON, text) if rejects else None,
        )
        moves = self._latest_moves(decided)
        before = {"state": version.state.value, "approval": version.approval}
        after: dict[str, Any] = {"state": state.value, "approval": approval}
        if moves:
            before["aliases"] = {NEWEST_ALIAS: moves[0].item["previous"]}
            after["aliases"] = {NEWEST_ALIAS: moves[0].item["version"]}
        put = Put(version_to_item(decided), {"state": version.state.value})
        change = Change(action, actor, version.number, before, after)
        self._commit(version.model, meta, [put, *moves], change)
        return decided

    def _latest_moves(self, decided: Version) -> list[Put]:
        """Return the move of `latest` that a decision causes, if any.

        It points at the READY version uploaded last.

        Raises:
            StateConflict: other aliases point at a version that is READY no more.
        """
        model = decided.model
        versions = {version.number: version for version in self.versions(model)}
        versions[decided.number] = decided
        if decided.state is not State.READY:
            movable = [a for a in self.all_aliases(model) if a.name != NEWEST_ALIAS]
            check_unused(decided, movable)
        newest: Version | None = None
        for version in versions.values():
            if version.state is State.READY and (
                newest is None or version.is_written_after(newest, lambda *_: None)
            ):
                newest = version
        [item] = self._table.get([(model_pk(model), alias_sk(NEWEST_ALIAS))])
        if newest is None or item is None or item["version"] == newest.number:
            return []
        return [alias_put(model, NEWEST_ALIAS, newest.number, item)]

    @retried
    def note(self, model: str, number: int, note: str, *, actor: str) -> Version:
        """Set the note of a version; an equal one changes nothing.

        Raises:
            ModelNotFound: no such model or version.
        """
        meta, version = self._read_version(model, number)
        if version.note == note:
            return version
        return self._update(meta, version, "note", actor, note=note)

    @retried
    def delete_alias(
        self, model: str, name: str, *, actor: str, expected: int | None = None
    ) -> None:
        """Remove an alias. Its history stays in the audit records.

        Raises:
            ModelNotFound: no such model or alias.
            StateConflict: it is `prod` or `latest`, or has another revision than expected.
        """
        meta, [item] = self._read_after_meta(model, alias_sk(name))
        if name in (DEFAULT_ALIAS, NEWEST_ALIAS):
            raise StateConflict(f"alias {name} cannot be deleted: every model keeps it")
        if item is None:
            raise unknown_alias(model, name)
        alias = alias_from_item(item)
        if expected not in (None, alias.revision):
            raise StateConflict(
                f"alias {name} of '{model}' is at revision {alias.revision}, not {expected}: "
                "look again, then delete it",
                revision=alias.revision,
            )
        # A new alias of this name continues the count, so that no revision is seen twice.
        retired = {**meta.get("retired", {}), name: alias.revision}
        removal: Write = Delete((item["pk"], item["sk"]), {"revision": alias.revision})
        before: dict[str, Any] = {"aliases": {name: alias.version}}
        after: dict[str, Any] = {"aliases": {name: None}}
        if alias.traffic:
            before["traffic"], after["traffic"] = {name: alias.traffic.to_document()}, {name: None}
        change = Change("delete_alias", actor, alias.version, before, after)
        self._commit(model, meta, [removal], change, retired=retired)

    def _meta(self, model: str) -> Item:
        [meta] = self._table.get([(model_pk(model), "META")])
        if meta is None:
            raise unknown_model(model)
        return meta

    def _read_version(self, model: str, number: int) -> tuple[Item, Version]:
        meta, [item] = self._read_after_meta(model, version_sk(number))
        if item is None:
            raise unknown_version(model, number)
        return meta, version_from_item(item)


def _is_rejected_by_person(version: Version) -> bool:
    reason = version.reason
    return version.state is State.REJECTED and bool(reason and reason.code == BY_A_PERSON)
