"""Idempotency keys: stored replies of changes, and refusals."""

from dataclasses import dataclass

from functions.core.errors import StateConflict


@dataclass(frozen=True, slots=True)
class StoredReply:
    """Stored reply of a change: status and JSON text.

    `body` is None if it is too large to be stored.
    """

    status: int
    body: str | None


class KeyReused(StateConflict):
    """Idempotency key that was sent with another request before (409)."""

    code = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__(
            "Idempotency-Key: it came with another request before; send a new one for each change"
        )


class StillRunning(StateConflict):
    """Idempotency key whose first request has not ended (409)."""

    code = "IDEMPOTENCY_IN_PROGRESS"

    def __init__(self) -> None:
        super().__init__(
            "Idempotency-Key: the first request with it is still running; repeat it after the "
            "seconds in Retry-After"
        )

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"retry-after": "1"}


class ReplyTooLarge(StateConflict):
    """Repeat of a change whose reply was too large (409)."""

    code = "IDEMPOTENCY_REPLY_TOO_LARGE"

    def __init__(self) -> None:
        super().__init__(
            "Idempotency-Key: the change was made, and its reply is too large to be repeated; "
            "read what was changed"
        )
