"""JSON documents about access keys."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, Field

from functions.core.access.access_key import DAY_S, AccessKey, KeyState
from functions.core.access.grants import EVERY_MODEL, Scope
from functions.core.errors import InvalidRequest
from functions.manage.documents.base import NextCursor, ReplyDocument, RequestDocument

OVERLAP_MAX_S = 30 * DAY_S
LIMITS = {"monthly_requests", "max_tokens"}

MonthlyRequests = Annotated[
    int | None,
    Field(ge=0, le=10**12, description="Inferences a calendar month (UTC); null for no limit."),
]

MaxTokens = Annotated[
    int | None,
    Field(ge=1, le=10**9, description="Tokens of one generated reply; null for no limit."),
]


class CreateKey(RequestDocument):
    """Request for a new access key."""

    name: str = Field(description="Name for people; it need not be unique.")
    scopes: list[Scope] = Field(description="Kinds of requests that the key permits.")
    models: list[str] = Field(
        default=[EVERY_MODEL], description="Patterns of model names, e.g. fraud-*."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="End of the key, or null.")
    monthly_requests: MonthlyRequests = None
    max_tokens: MaxTokens = None


def _describe_change(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that a missing field is no null."""
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["minProperties"] = 1


class ChangeKey(RequestDocument):
    """Request to change some limits of an access key.

    A missing field stays as it is.
    """

    model_config = ConfigDict(json_schema_extra=_describe_change)

    monthly_requests: MonthlyRequests = None
    max_tokens: MaxTokens = None

    def changes(self) -> dict[str, int | None]:
        """Return the limits to change by name, None for no limit.

        Raises:
            InvalidRequest: there are none.
        """
        changes = self.model_dump(include=LIMITS, exclude_unset=True)
        if not changes:
            raise InvalidRequest(f"body: nothing to change; send {' or '.join(sorted(LIMITS))}")
        return changes


class RotateKey(RequestDocument):
    """Request for a new secret of an access key."""

    overlap_seconds: int = Field(
        default=DAY_S,
        ge=0,
        le=OVERLAP_MAX_S,
        description="Seconds that the secrets before stay valid.",
    )


class KeyDocument(ReplyDocument):
    """Access key as the control plane shows it, without its text."""

    id: str
    name: str
    state: KeyState
    scopes: list[Scope]
    models: list[str]
    created_at: str
    created_by: str
    expires_at: str | None
    rotated_at: str | None
    revoked_at: str | None
    monthly_requests: MonthlyRequests
    max_tokens: MaxTokens
    previous_valid_until: str | None = Field(
        description="Time until which the secrets before the last rotation are valid, or null."
    )


class NewKeyDocument(KeyDocument):
    """Access key with its text, which is shown only once."""

    key: str | None = Field(
        description="Text of the key; null in a repeat by Idempotency-Key, as it is never stored."
    )


class KeyPage(ReplyDocument):
    """Page of access keys, oldest first."""

    keys: list[KeyDocument]
    next_cursor: NextCursor


def describe_key(key: AccessKey, now_s: float) -> dict[str, Any]:
    """Return the fields of a `KeyDocument` at a Unix time."""
    ends = [secret.valid_until for secret in key.secrets[:-1] if secret.valid_until]
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(now_s),
        "scopes": key.scopes,
        "models": key.models,
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": _iso(key.valid_until),
        "rotated_at": key.rotated_at,
        "revoked_at": key.revoked_at,
        "monthly_requests": key.monthly_requests,
        "max_tokens": key.max_tokens,
        "previous_valid_until": _iso(max((end for end in ends if end > now_s), default=None)),
    }


def _iso(unix_s: int | None) -> str | None:
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
