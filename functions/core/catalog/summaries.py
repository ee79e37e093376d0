"""Summary of a model, read from its META item alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functions.core.registry.table import Item


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Model as lists show it.

    `aliases` are None in an item that an earlier release wrote, until the reconciler has seen it;
    `newest` and `created_at` may be None for the same reason.
    """

    name: str
    revision: int  # number of changes of the model, its versions and aliases
    versions: int  # versions that were ever registered
    description: str
    policy: Mapping[str, Any] | None
    archived_at: str | None
    created_at: str | None
    changed_at: str | None
    aliases: Mapping[str, int] | None
    newest: Mapping[str, Any] | None


def summary_from_item(meta: Item) -> ModelSummary:
    """Parse a model's summary from its META item."""
    return ModelSummary(
        name=meta["model"],
        revision=meta["revision"],
        versions=meta["next_version"] - 1,
        description=meta.get("description", ""),
        policy=meta.get("policy"),
        archived_at=meta.get("archived_at"),
        created_at=meta.get("created_at"),
        changed_at=meta.get("changed_at"),
        aliases=meta.get("aliases"),
        newest=meta.get("newest"),
    )
