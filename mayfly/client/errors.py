"""Errors of the client: whose fault, and does retrying help?

MayflyError
├── NotConfigured     no URL or key is set
├── InvalidInput      an input or another field of the request is wrong   400, 405, 501
│   └── TooLarge      the request or the reply exceeds a limit            413
├── Unauthorized      no key, or one that is mistyped, revoked, expired   401
├── Forbidden         the key lacks a scope                               403
├── NotFound          no such upload, key or path                         404
│   └── ModelNotFound no such model, version or alias, or not for this key
├── Conflict          the state has changed, or forbids it                409
├── Rejected          an upload became no version that can be called
├── QuotaExceeded     too many requests                                   429
├── Unavailable       the service cannot answer now                       502, 503
│   ├── Disconnected  no connection, or it broke before the whole reply
│   └── TimedOut      no answer within the time limit                     504
└── ServerError       a bug of the service; report its request id         500
"""

from collections.abc import Mapping, Sequence
from typing import Any


class MayflyError(Exception):
    """Base class; the text names the cause and the next step.

    `status` is that of the HTTP reply, 0 without one. `code` is the service's stable code, and
    `request_id` finds the request in its log. `details` lists each wrong field of a change, with
    `path` and `message`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        details: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.details = details or ()


class NotConfigured(MayflyError):
    """No URL or key is set."""


class InvalidInput(MayflyError, ValueError):
    """Input, or another field of the request, that the caller must change.

    `input` is the name of the model's input, or of the field of a chat or of embeddings; "" where
    the fault is elsewhere.
    """

    def __init__(self, message: str, *, input: str = "", **reply: Any) -> None:  # noqa: A002
        super().__init__(message, **reply)
        self.input = input


class TooLarge(InvalidInput):
    """Request or reply that exceeds a limit: send fewer rows."""


class Unauthorized(MayflyError):
    """Key that is missing, mistyped, revoked or expired."""


class Forbidden(MayflyError):
    """Key that lacks a scope; the text names it."""


class NotFound(MayflyError):
    """Path, upload or key that does not exist."""


class ModelNotFound(NotFound):
    """Model, version or alias that this key cannot see."""


class Conflict(MayflyError):
    """Change that the present state forbids.

    `revision` is the present one if the change expected another; read again, then repeat.
    """

    def __init__(self, message: str, *, revision: int | None = None, **reply: Any) -> None:
        super().__init__(message, **reply)
        self.revision = revision


class Rejected(MayflyError):
    """Upload that was refused; the text is the reason.

    `model` and `version` name the rejected version; `version` is None if it got no number.
    """

    def __init__(self, message: str, *, model: str = "", version: int | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.version = version


class QuotaExceeded(MayflyError):
    """Too many requests; `retry_after` is in seconds, or None."""

    def __init__(self, message: str, *, retry_after: float | None = None, **reply: Any) -> None:
        super().__init__(message, **reply)
        self.retry_after = retry_after


class Unavailable(MayflyError):
    """Service that cannot answer now; `retry_after` is in seconds, or None."""

    def __init__(self, message: str, *, retry_after: float | None = None, **reply: Any) -> None:
        super().__init__(message, **reply)
        self.retry_after = retry_after


class Disconnected(Unavailable):
    """Connection that was refused, or broke before the whole reply.

    `sent` is False if the service cannot have seen the request.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class TimedOut(Unavailable):
    """No answer within the time limit."""


class ServerError(MayflyError):
    """Bug of the service, or a reply that is not the service's."""
