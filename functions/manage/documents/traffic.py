"""JSON documents about the traffic of aliases."""

from typing import Annotated, Any, Literal

from pydantic import Field

from functions.core.registry.version import Alias
from functions.core.traffic.traffic import VERSIONS_MAX, Traffic, Weight, read_traffic
from functions.manage.documents.base import ReplyDocument, RequestDocument
from functions.manage.documents.fields import ExpectedRevision, Number

Percent = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, description="Per cent, in steps of 0.01.")
]
Sticky = Annotated[
    Literal["auto", "user", "request"],
    Field(
        description="auto: a caller stays on one side, by x-mayfly-user, else by the key. "
        "user: by x-mayfly-user alone. request: nobody stays."
    ),
]


class WeightDocument(RequestDocument):
    """Version with its share of the requests."""

    version: Number
    weight: Percent


class ShadowDocument(RequestDocument):
    """Version that runs copies of some requests, after their replies."""

    version: Number
    percent: Percent


class SetTraffic(RequestDocument):
    """Traffic object that replaces the one before as a whole."""

    weights: list[WeightDocument] = Field(
        min_length=1,
        max_length=VERSIONS_MAX,
        description="Shares with the sum 100, that of the alias's own version among them.",
    )
    shadow: ShadowDocument | None = None
    sticky: Sticky = "auto"
    expected_revision: ExpectedRevision = None

    def traffic(self) -> Traffic:
        """Return the traffic object that is asked for."""
        return read_traffic(self.model_dump(exclude={"expected_revision"}))


class AgreementDocument(ReplyDocument):
    """Copies of requests that the shadow ran, and how many differ."""

    compared: int = Field(description="Copies whose answers were compared, or that it refused.")
    differing: int = Field(description="Of these, copies with another answer or none.")


class TrafficDocument(ReplyDocument):
    """Traffic of an alias.

    An alias without a traffic object has one weight and no id.
    """

    model: str
    alias: str
    version: int
    revision: int
    id: str | None = Field(description="Under this id the versions' requests are counted.")
    weights: list[WeightDocument]
    shadow: ShadowDocument | None
    sticky: Sticky
    canary: dict[str, Any] | None = Field(description="Canary that set this, if one did.")
    agreement: AgreementDocument | None = Field(
        default=None, description="Of the shadow since it was set; only where it is read."
    )


def describe_traffic(model: str, alias: Alias) -> TrafficDocument:
    """Return an alias's traffic as a document."""
    plain = Traffic((Weight(alias.version, 10_000),))
    document = (alias.traffic or plain).to_document()
    return TrafficDocument(
        model=model,
        alias=alias.name,
        version=alias.version,
        revision=alias.revision,
        **{**document, "id": document["id"] or None},
    )
