"""Base of the control plane's documents, and shared fields."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from functions.core.access.key_store import PAGE_MAX

Limit = Annotated[int, Field(ge=1, le=PAGE_MAX, description="Items in the reply.")]
NextCursor = Annotated[
    str | None, Field(description="Cursor of the next page, null on the last one.")
]


class ReplyDocument(BaseModel):
    """Base of replies.

    Its validator is built at first use, not in a cold start.
    """

    model_config = ConfigDict(defer_build=True)


class RequestDocument(BaseModel):
    """Base of requests: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class Problem(ReplyDocument):
    """Wrong field of a request."""

    path: str = Field(description="Place of the field, e.g. scopes[0].")
    message: str


class ErrorDocument(ReplyDocument):
    """Error of the control plane."""

    error: str = Field(description="One sentence for people.")
    code: str = Field(description="Stable code for programs, e.g. INVALID_REQUEST.")
    request_id: str
    details: list[Problem] | None = Field(default=None, description="Each wrong field.")
    revision: int | None = Field(
        default=None, description="The current revision, if another one was expected."
    )
