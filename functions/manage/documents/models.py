"""JSON documents about models."""

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from functions.core.catalog.summaries import ModelSummary
from functions.core.errors import InvalidRequest
from functions.manage.documents.base import NextCursor, ReplyDocument, RequestDocument
from functions.manage.documents.canaries import CanarySettings
from functions.manage.documents.fields import ExpectedRevision


class ModelState(StrEnum):
    """States of a model."""

    ACTIVE = "active"
    ARCHIVED = "archived"


class Policy(RequestDocument):
    """Rule by which new READY versions become `prod`."""

    kind: Literal["manual", "always", "if_better"] = Field(
        description="manual: a person moves prod. always: each new version. if_better: a version "
        "whose metric is better than that of prod."
    )
    metric: str | None = Field(
        default=None, max_length=100, description="Metric of if_better; by default the primary one."
    )
    higher_is_better: bool | None = Field(
        default=None, description="Direction of `metric`, with which it has to be sent."
    )
    min_gain: float = Field(
        default=0,
        ge=0,
        le=1e9,
        allow_inf_nan=False,
        description="Gain in the metric that is too small.",
    )
    canary: CanarySettings | None = Field(
        default=None, description="Release by a canary instead of at once."
    )

    @model_validator(mode="after")
    def check_kind(self) -> Self:
        """Refuse fields that the kind does not use."""
        compares = self.kind == "if_better"
        if not compares and (self.metric is not None or self.min_gain):
            raise InvalidRequest(f"policy.metric, policy.min_gain: {self.kind} compares no metric")
        if self.metric is None and self.higher_is_better is not None:
            raise InvalidRequest("policy.metric: higher_is_better needs the metric's name")
        if self.kind == "manual" and self.canary is not None:
            raise InvalidRequest("policy.canary: manual releases nothing by itself")
        if self.canary is not None:
            self.canary.settings.check()
        return self


class ChangeModel(RequestDocument):
    """Request to change a model; a missing field stays as it is."""

    description: str | None = Field(default=None, max_length=2000)
    policy: Policy | None = None
    expected_revision: ExpectedRevision = None

    def changes(self) -> dict[str, Any]:
        """Return the fields to change, as they are stored."""
        changes: dict[str, Any] = {}
        if self.description is not None:
            changes["description"] = self.description
        if self.policy is not None:
            if self.policy.metric is not None and self.policy.higher_is_better is None:
                raise InvalidRequest(
                    "policy.higher_is_better: send true or false with a metric; without metric, "
                    "the manifest's primary one is compared in the direction that it states"
                )
            changes["policy"] = self.policy.model_dump(exclude_none=True)
        if not changes:
            raise InvalidRequest("body: nothing to change; send description or policy")
        return changes


class NewestVersion(ReplyDocument):
    """Facts of a model's newest version, in any state."""

    version: int
    state: str
    created_at: str
    finished_at: str | None
    size_bytes: int
    damaged: str | None


class ModelDocument(ReplyDocument):
    """Model with its aliases and its newest version."""

    name: str
    state: ModelState
    description: str
    policy: Policy
    revision: int = Field(description="Number of changes of the model, its versions and aliases.")
    versions: int = Field(description="Versions that were ever uploaded.")
    newest: NewestVersion | None
    aliases: dict[str, int] | None = Field(
        description="Version of each alias; null for a model that has not changed since an update."
    )
    created_at: str | None
    changed_at: str | None
    archived_at: str | None


class ServedModelDocument(ModelDocument):
    """Model as its own page shows it."""

    serving: bool = Field(description="False for a model that was unloaded.")


class ModelPage(ReplyDocument):
    """Page of models by name.

    It may be short, even empty, although others follow.
    """

    models: list[ModelDocument]
    next_cursor: NextCursor


def describe_model(model: ModelSummary) -> dict[str, Any]:
    """Return the fields of a `ModelDocument`."""
    return {
        "name": model.name,
        "state": ModelState.ARCHIVED if model.archived_at else ModelState.ACTIVE,
        "description": model.description,
        "policy": model.policy or {"kind": "manual"},
        "revision": model.revision,
        "versions": model.versions,
        "newest": model.newest,
        "aliases": model.aliases,
        "created_at": model.created_at,
        "changed_at": model.changed_at,
        "archived_at": model.archived_at,
    }
