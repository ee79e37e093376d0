"""Decisions about a model's releases: moves and rollbacks of aliases, archiving.

People and policies decide them through the control plane; the data plane never imports this.
"""

from functions.core.errors import InvalidRequest, ModelNotFound, StateConflict, shown
from functions.core.names import is_alias
from functions.core.registry.contention import retried
from functions.core.registry.items import (
    alias_from_item,
    alias_put,
    alias_sk,
    version_from_item,
    version_sk,
)
from functions.core.registry.transactions import (
    NEWEST_ALIAS,
    Transactions,
    because,
    unknown_version,
)
from functions.core.registry.version import Alias, Change, State, Version


class Releases(Transactions):
    """Changes of aliases and versions that people and policies decide.

    Every write raises `Unavailable` if the table fails or other writers interfere too often.
    """

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
            raise unknown_version(model, number)
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
                f"version {number} of '{model}' is {version.state}, not READY{because(version)}"
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
            raise unknown_version(model, number)
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


def _check_movable(name: str) -> None:
    if not is_alias(name):
        raise InvalidRequest(f"{shown(name)} is no alias: lower case, beginning with a letter")
    if name == NEWEST_ALIAS:
        raise InvalidRequest(
            f"{NEWEST_ALIAS} is the READY version uploaded last, by itself; move another alias"
        )
