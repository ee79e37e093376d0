"""JSON documents about audit records."""

from typing import Any

from pydantic import Field

from functions.core.catalog.trail import audited_model
from functions.core.registry.table import Item
from functions.manage.documents.base import NextCursor, ReplyDocument


class AuditRecord(ReplyDocument):
    """Change of a model or key: actor, action, values before and after."""

    at: str
    actor: str = Field(description="E.g. key:<id>, iam:<user>, register, reconcile.")
    action: str
    model: str | None
    key: str | None
    version: int | None
    revision: int = Field(description="Number of the change among those of its subject.")
    before: dict[str, Any]
    after: dict[str, Any]


class AuditPage(ReplyDocument):
    """Page of audit records, newest first.

    It may be short although others follow.
    """

    records: list[AuditRecord]
    next_cursor: NextCursor


def describe_record(record: Item) -> AuditRecord:
    """Return an audit record as a document."""
    kind, _, name = record["pk"].partition("#")
    fields = ("at", "actor", "action", "version", "revision", "before", "after")
    return AuditRecord(
        **{field: record[field] for field in fields},
        model=audited_model(record),
        key=name if kind == "KEY" else None,
    )
