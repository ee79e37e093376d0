"""Routes of aliases."""

from collections.abc import Sequence
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.trail import AuditFilter, Trail
from functions.core.registry.releases import Releases, unknown_alias
from functions.core.registry.table import Item
from functions.manage.caller import CurrentCaller
from functions.manage.cursors import decode_cursor, encode_cursor
from functions.manage.documents.aliases import (
    AliasDocument,
    AliasHistory,
    AliasList,
    AliasMove,
    Expectation,
    MoveAlias,
    Removal,
    describe_alias,
)
from functions.manage.documents.fields import AliasName, Cursor, ModelName, PageLimit
from functions.manage.route import Route

Expected = Annotated[
    int | None, Query(ge=0, description="Revision that the caller saw: another one is 409.")
]


class AliasRoutes:
    """Routes that list, move, roll back and delete aliases."""

    tag = "aliases"

    def __init__(
        self,
        catalog: Catalog,
        trail: Trail,
        releases: Releases,
        decisions: Decisions,
        current: CurrentCaller,
    ) -> None:
        self._catalog = catalog
        self._trail = trail
        self._releases = releases
        self._decisions = decisions
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        aliases = "/models/<model>/aliases"
        alias = f"{aliases}/<alias>"
        return (
            Route("GET", aliases, Scope.READ, self.list_aliases),
            Route("GET", alias, Scope.READ, self.read_alias),
            Route("GET", f"{alias}/history", Scope.READ, self.read_alias_history),
            Route("PUT", alias, Scope.DEPLOY, self.move_alias),
            Route("DELETE", alias, Scope.DEPLOY, self.delete_alias),
            Route("POST", f"{alias}/rollback", Scope.DEPLOY, self.roll_back_alias),
        )

    def list_aliases(self, model: ModelName) -> AliasList:
        """List a model's aliases by name."""
        aliases = self._catalog.aliases(model)
        return AliasList(aliases=[AliasDocument(**describe_alias(model, a)) for a in aliases])

    def read_alias(self, model: ModelName, alias: AliasName) -> AliasDocument:
        """Return an alias."""
        stored = self._catalog.alias(model, alias)
        if stored is None:
            raise unknown_alias(model, alias)
        return AliasDocument(**describe_alias(model, stored))

    def read_alias_history(
        self,
        model: ModelName,
        alias: AliasName,
        limit: PageLimit = 50,
        cursor: Cursor = "",
    ) -> AliasHistory:
        """List the changes of an alias, newest first.

        A deleted alias keeps its history.
        """
        records, position = self._trail.model_page(
            model, AuditFilter(alias=alias), decode_cursor(cursor), limit
        )
        if not records and not cursor:
            self.read_alias(model, alias)
        moves = [_move(record, alias) for record in records]
        return AliasHistory(history=moves, next_cursor=encode_cursor(position))

    def move_alias(self, model: ModelName, alias: AliasName, body: MoveAlias) -> AliasDocument:
        """Point an alias at a READY version, or create one."""
        moved = self._releases.move_alias(
            model,
            alias,
            body.version,
            actor=self._current.actor,
            expected=body.expected_revision,
        )
        return AliasDocument(**describe_alias(model, moved))

    def delete_alias(
        self, model: ModelName, alias: AliasName, expected_revision: Expected = None
    ) -> Removal:
        """Delete an alias; prod and latest stay."""
        self._decisions.delete_alias(
            model, alias, actor=self._current.actor, expected=expected_revision
        )
        return Removal(model=model, alias=alias, deleted=True)

    def roll_back_alias(
        self, model: ModelName, alias: AliasName, body: Expectation | None = None
    ) -> AliasDocument:
        """Point an alias back at the version before its last move."""
        expected = body.expected_revision if body else None
        self.read_alias(model, alias)
        moved = self._releases.rollback(model, alias, actor=self._current.actor, expected=expected)
        return AliasDocument(**describe_alias(model, moved))


def _move(record: Item, alias: str) -> AliasMove:
    return AliasMove(
        at=record["at"],
        actor=record["actor"],
        action=record["action"],
        from_version=record["before"].get("aliases", {}).get(alias),
        to_version=record["after"]["aliases"][alias],
        from_traffic=record["before"].get("traffic", {}).get(alias),
        to_traffic=record["after"].get("traffic", {}).get(alias),
    )
