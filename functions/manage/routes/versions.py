"""Routes of versions."""

from collections.abc import Sequence
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.differences import compare
from functions.core.names import parse_version
from functions.core.registry.releases import Releases
from functions.core.registry.version import State
from functions.manage.caller import CurrentCaller
from functions.manage.cursors import decode_cursor, encode_cursor, no_page
from functions.manage.documents.fields import Cursor, ModelName, Number, PageLimit, PathNumber
from functions.manage.documents.versions import (
    DiffDocument,
    Remark,
    SetNote,
    VersionDocument,
    VersionPage,
    VersionRow,
    describe_row,
    describe_version,
    spelled,
)
from functions.manage.route import Route


class VersionRoutes:
    """Routes that list, read, compare and judge versions."""

    tag = "versions"

    def __init__(
        self, catalog: Catalog, decisions: Decisions, releases: Releases, current: CurrentCaller
    ) -> None:
        self._catalog = catalog
        self._decisions = decisions
        self._releases = releases
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        versions = "/models/<model>/versions"
        version = f"{versions}/<number>"
        return (
            Route("GET", versions, Scope.READ, self.list_versions),
            Route("GET", version, Scope.READ, self.read_version),
            Route("GET", "/models/<model>/diff", Scope.READ, self.compare_versions),
            Route("PATCH", version, Scope.DEPLOY, self.change_version),
            Route("POST", f"{version}/approve", Scope.DEPLOY, self.approve_version),
            Route("POST", f"{version}/reject", Scope.DEPLOY, self.reject_version),
            Route("POST", f"{version}/archive", Scope.DEPLOY, self.archive_version),
        )

    def list_versions(
        self,
        model: ModelName,
        state: Annotated[State | None, Query(description="State of the versions.")] = None,
        limit: PageLimit = 50,
        cursor: Cursor = "",
    ) -> VersionPage:
        """List a model's versions, newest first."""
        versions, position = self._catalog.versions(model, state, _number(cursor), limit)
        documents = [VersionRow(**describe_row(version)) for version in versions]
        next_cursor = encode_cursor(str(position)) if position else None
        return VersionPage(versions=documents, next_cursor=next_cursor)

    def read_version(self, model: ModelName, number: PathNumber) -> VersionDocument:
        """Return the whole card of a version."""
        version, summary = self._catalog.version(model, number)
        return VersionDocument(**describe_version(version, summary))

    def compare_versions(
        self,
        model: ModelName,
        old: Annotated[Number, Query(alias="from", description="Version, e.g. 7.")],
        new: Annotated[Number, Query(alias="to", description="Version, e.g. 8.")],
    ) -> DiffDocument:
        """Return the differences of two versions."""
        differences = spelled(compare(*self._catalog.pair(model, old, new)))
        return DiffDocument(model=model, from_version=old, to_version=new, differences=differences)

    def change_version(
        self, model: ModelName, number: PathNumber, body: SetNote
    ) -> VersionDocument:
        """Replace the note of a version."""
        self._decisions.note(model, number, body.note, actor=self._current.actor)
        return self.read_version(model, number)

    def approve_version(
        self, model: ModelName, number: PathNumber, body: Remark | None = None
    ) -> VersionDocument:
        """Approve a READY version, or take a person's rejection back."""
        note = body.note if body else ""
        self._decisions.approve(model, number, actor=self._current.actor, note=note)
        return self.read_version(model, number)

    def reject_version(
        self, model: ModelName, number: PathNumber, body: Remark | None = None
    ) -> VersionDocument:
        """Reject a READY version: nothing serves it, no alias takes it."""
        note = body.note if body else ""
        self._decisions.reject(model, number, actor=self._current.actor, note=note)
        return self.read_version(model, number)

    def archive_version(
        self, model: ModelName, number: PathNumber, body: Remark | None = None
    ) -> VersionDocument:
        """Archive a version for good; its files remain."""
        self._releases.archive(model, number, actor=self._current.actor)
        if body and body.note:
            self._decisions.note(model, number, body.note, actor=self._current.actor)
        return self.read_version(model, number)


def _number(cursor: str) -> int | None:
    position = decode_cursor(cursor)
    if not position:
        return None
    number = parse_version(position)
    if number is None:
        raise no_page()
    return number
