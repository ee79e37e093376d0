"""Decisions about a model's releases: moves, rollbacks, traffic of aliases; archiving.

People and policies decide them through the control plane; the data plane never imports this.
"""

import secrets
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from functions.core.errors import InvalidRequest, ModelNotFound, StateConflict, shown
from functions.core.names import is_alias
from functions.core.records import replace
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_put,
    alias_sk,
    traffic_put,
    version_from_item,
    version_sk,
)
from functions.core.registry.table import Item
from functions.core.registry.transactions import (
    NEWEST_ALIAS,
    Transactions,
    because,
    unknown_version,
)
from functions.core.registry.version import Alias, Change, State, Version
from functions.core.traffic.traffic import Traffic

ALIASES_MAX = 100  # aliases of a model; its META item holds them all
ID_BYTES = 8  # length of a traffic object's random id
NO_FACTS: Item = MappingProxyType({})


class Releases(Transactions):
    """Changes of aliases and versions that people and policies decide.

    Every write raises `Unavailable` if the table fails or other writers interfere too often.
    """

    def move_alias(
        self,
        model: str,
        name: str,
        number: int,
        *,
        actor: str,
        expected: int | None = None,
        action: str = "move_alias",
        facts: Item = NO_FACTS,
    ) -> Alias:
        """Point a model's alias at a READY version, for all requests.

        Nothing changes if it does so already; a split of its traffic ends. `action` and `facts` of
        whoever decides this are kept in the audit record.

        `expected` is the alias's revision as the caller saw it, 0 for an alias that did not exist,
        None for any. `latest` follows the uploads and cannot be moved by callers.

        Raises:
            InvalidRequest: `name` is no alias, or `latest`.
            ModelNotFound: no such model or version.
            StateConflict: the version is not READY or is damaged, or the alias has moved meanwhile.
            Unavailable: the table failed, or too many writers interfered.
        """
        return self._move(model, name, number, actor, expected, action, facts)

    def rollback(self, model: str, name: str, *, actor: str, expected: int | None = None) -> Alias:
        """Undo the latest change of a model's alias.

        A split of its traffic ends, and all requests go to the version that the alias points at.
        Without a split, the alias points back at its previous version; a second rollback undoes the
        first.

        Raises:
            ModelNotFound: no such model, alias or version.
            StateConflict: the alias has never moved; or as for `move_alias`.
            InvalidRequest, Unavailable: as for `move_alias`.
        """
        alias = self.alias(model, name)
        if alias is None:
            raise unknown_alias(model, name)
        target = alias.version if alias.traffic else alias.previous
        if target is None:
            raise StateConflict(
                f"alias {name} of '{model}' has only ever pointed at version {alias.version}"
            )
        seen = alias.revision if expected is None else expected
        return self._move(model, name, target, actor, seen, "rollback", NO_FACTS)

    @retried
    def _move(
        self,
        model: str,
        name: str,
        number: int,
        actor: str,
        expected: int | None,
        action: str,
        facts: Item,
    ) -> Alias:
        _check_movable(name)
        meta, [item, target] = self._read_after_meta(model, alias_sk(name), version_sk(number))
        if target is None:
            raise unknown_version(model, number)
        alias = alias_from_item(item) if item else None
        if alias and alias.version == number and alias.traffic is None:
            return alias
        _check_expected(model, name, alias.revision if alias else 0, expected)
        if alias is None or alias.version != number:
            _check_active(model, meta)
            check_releasable(version_from_item(target))
        if item is None and len(meta.get("aliases", ())) >= ALIASES_MAX:
            raise StateConflict(
                f"model '{model}' has {ALIASES_MAX} aliases, which is the limit: delete one first"
            )
        put = alias_put(model, name, number, item, meta.get("retired", {}).get(name, 0))
        before: dict[str, Any] = {"aliases": {name: alias.version if alias else None}}
        after: dict[str, Any] = {"aliases": {name: number}, **facts}
        if alias and alias.traffic:
            before["traffic"], after["traffic"] = {name: alias.traffic.to_document()}, {name: None}
        self._commit(model, meta, [put], Change(action, actor, number, before, after))
        return alias_from_item(put.item)

    def set_traffic(
        self,
        model: str,
        name: str,
        traffic: Traffic | None,
        *,
        actor: str,
        expected: int | None = None,
        action: str = "set_traffic",
        facts: Item = NO_FACTS,
    ) -> Alias:
        """Replace the traffic object of a model's alias.

        None ends it: all requests go to the alias's version. Nothing changes if the object is the
        same. A new one gets an id, unless it brings one. While a canary runs, only its own steps
        replace it. The arguments besides are those of `move_alias`.

        Raises:
            InvalidRequest: `name` is no alias, or `latest`; or the weights lack its version.
            ModelNotFound: no such model, alias or version.
            StateConflict: a version is not READY or is damaged, the alias has changed meanwhile, or
                a canary runs.
            Unavailable: the table failed, or too many writers interfered.
        """
        return self._set_traffic(model, name, traffic, actor, expected, action, facts)

    @retried
    def _set_traffic(
        self,
        model: str,
        name: str,
        traffic: Traffic | None,
        actor: str,
        expected: int | None,
        action: str,
        facts: Item,
    ) -> Alias:
        _check_movable(name)
        numbers = traffic.versions if traffic else ()
        sks = [version_sk(number) for number in numbers]
        meta, [item, *targets] = self._read_after_meta(model, alias_sk(name), *sks)
        if item is None:
            raise unknown_alias(model, name)
        alias = alias_from_item(item)
        _check_expected(model, name, alias.revision, expected)
        if traffic:
            _check_active(model, meta)
            _check_canary(model, alias, traffic)
        for number, target in zip(numbers, targets, strict=True):
            if target is None:
                raise unknown_version(model, number)
            check_releasable(version_from_item(target))
        arranged = traffic.arranged(alias.version, alias.traffic) if traffic else None
        if arranged and arranged.is_plain:
            arranged = None
        if _are_equal(alias.traffic, arranged):
            return alias
        if arranged and not arranged.id:
            arranged = replace(arranged, id=secrets.token_hex(ID_BYTES))
        put = traffic_put(item, arranged.to_record() if arranged else None)
        self._commit(model, meta, [put], _traffic_change(action, actor, alias, arranged, facts))
        return alias_from_item(put.item)

    @retried
    def archive(self, model: str, number: int, *, actor: str) -> Version:
        """Archive a READY or REJECTED version for good; its stored files remain.

        Nothing changes if it is ARCHIVED already.

        Raises:
            ModelNotFound: no such model or version.
            StateConflict: it is PENDING, or aliases point at it or send traffic to it; the message
                names them.
            Unavailable: the table failed, or too many writers interfered.
        """
        meta, [item] = self._read_after_meta(model, version_sk(number))
        if item is None:
            raise unknown_version(model, number)
        version = version_from_item(item)
        if version.state is State.ARCHIVED:
            return version
        if version.state is State.PENDING:
            raise StateConflict(
                f"version {number} of '{model}' is PENDING: wait for the end of its registration"
            )
        check_unused(version, self.all_aliases(model))
        return self._update(meta, version, "archive", actor, state=State.ARCHIVED)


def unknown_alias(model: str, name: str) -> ModelNotFound:
    """Return the error for an alias that a model does not have."""
    return ModelNotFound(f"Request for unknown model: '{model}' alias {shown(name)} is not found")


def _traffic_change(
    action: str, actor: str, alias: Alias, traffic: Traffic | None, facts: Item
) -> Change:
    """Describe a new traffic object, naming the alias for its history."""
    name, before, after = alias.name, alias.traffic, traffic
    aliases = {"aliases": {name: alias.version}}
    return Change(
        action,
        actor,
        alias.version,
        {**aliases, "traffic": {name: before.to_document() if before else None}},
        {**aliases, "traffic": {name: after.to_document() if after else None}, **facts},
    )


def _are_equal(standing: Traffic | None, traffic: Traffic | None) -> bool:
    """Return True if two traffic objects differ in their ids at most."""
    if standing is None or traffic is None:
        return standing is traffic
    return replace(standing, id=traffic.id) == traffic


def check_unused(version: Version, aliases: Sequence[Alias]) -> None:
    """Accept a version that no alias names.

    Raises:
        StateConflict: an alias points at it, or sends traffic to it.
    """
    number, model = version.number, version.model
    if pointing := [alias.name for alias in aliases if alias.version == number]:
        if pointing == [NEWEST_ALIAS]:
            raise StateConflict(
                f"version {number} of '{model}' has the alias {NEWEST_ALIAS}, which nobody moves: "
                "upload another version, or reject this one first"
            )
        raise StateConflict(
            f"version {number} of '{model}' has the aliases {', '.join(pointing)}: move them first"
        )
    if sending := [alias.name for alias in aliases if number in alias.versions]:
        raise StateConflict(
            f"version {number} of '{model}' is in the traffic of {', '.join(sending)}: "
            "change or end that first"
        )


def _check_expected(model: str, name: str, revision: int, expected: int | None) -> None:
    if expected not in (None, revision):
        raise StateConflict(
            f"alias {name} of '{model}' is at revision {revision}, not {expected}: "
            "look again, then change it",
            revision=revision,
        )


def check_releasable(version: Version) -> None:
    """Accept a version that requests may be sent to."""
    title = f"version {version.number} of '{version.model}'"
    if version.state is not State.READY:
        raise StateConflict(f"{title} is {version.state}, not READY{because(version)}")
    if version.damaged:
        raise StateConflict(f"{title} is damaged: {version.damaged}")


def _check_active(model: str, meta: Item | None) -> None:
    """Accept a model that releases versions; an archived one only ends splits."""
    if meta and meta.get("archived_at"):
        raise StateConflict(f"model '{model}' is archived: restore it first")


def _check_canary(model: str, alias: Alias, traffic: Traffic) -> None:
    """Accept a traffic object that ends no canary."""
    running = alias.traffic.canary if alias.traffic else None
    if running is None or (traffic.canary and traffic.canary["id"] == running["id"]):
        return
    raise StateConflict(
        f"alias {alias.name} of '{model}' has the canary {running['id']} of version"
        f" {running['version']}: stop or promote it first, or wait for its end",
        revision=alias.revision,
    )


def _check_movable(name: str) -> None:
    if not is_alias(name):
        raise InvalidRequest(f"{shown(name)} is no alias: lower case, beginning with a letter")
    if name == NEWEST_ALIAS:
        raise InvalidRequest(
            f"{NEWEST_ALIAS} is the READY version uploaded last, by itself; move another alias"
        )
