"""JSON documents about aliases."""

from typing import Any

from pydantic import Field

from functions.core.registry.version import Alias
from functions.manage.documents.base import NextCursor, ReplyDocument, RequestDocument
from functions.manage.documents.fields import ExpectedRevision, Number


class MoveAlias(RequestDocument):
    """Request to point an alias at a version.

    The revision 0 expects that there is no such alias.
    """

    version: Number
    expected_revision: ExpectedRevision = None


class Expectation(RequestDocument):
    """Request that may name the revision that the caller saw."""

    expected_revision: ExpectedRevision = None


class AliasDocument(ReplyDocument):
    """Alias with the version it points at."""

    model: str
    alias: str
    version: int
    previous: int | None = Field(description="Version before the last move: rollback's target.")
    revision: int = Field(description="Number of changes of the alias and its traffic.")
    traffic: dict[str, Any] | None = Field(
        description="Traffic object; without one, `version` gets every request."
    )


class AliasList(ReplyDocument):
    """Every alias of a model, by name."""

    aliases: list[AliasDocument]


class Removal(ReplyDocument):
    """Confirmation that an alias is gone."""

    model: str
    alias: str
    deleted: bool


class AliasMove(ReplyDocument):
    """Change of an alias: which versions, when, by whom and how."""

    at: str
    actor: str
    action: str
    from_version: int | None
    to_version: int | None = Field(description="Null where the alias was deleted.")
    from_traffic: dict[str, Any] | None = Field(description="Traffic object before, if any.")
    to_traffic: dict[str, Any] | None = Field(description="Traffic object after, if any.")


class AliasHistory(ReplyDocument):
    """Page of an alias's changes, newest first.

    It may be short although others follow.
    """

    history: list[AliasMove]
    next_cursor: NextCursor


def describe_alias(model: str, alias: Alias) -> dict[str, Any]:
    """Return the fields of an `AliasDocument`."""
    return {
        "model": model,
        "alias": alias.name,
        "version": alias.version,
        "previous": alias.previous,
        "revision": alias.revision,
        "traffic": alias.traffic.to_document() if alias.traffic else None,
    }
