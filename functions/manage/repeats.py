"""Header Idempotency-Key: a repeated change is answered from its first reply."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from functions.core.errors import InvalidRequest
from functions.core.idempotency import ReplyTooLarge, StoredReply
from functions.core.serving.http import HttpRequest, HttpResponse
from functions.manage.route import Renew

HEADER = "idempotency-key"
REPEATED = {"idempotency-replayed": "true"}
CHANGES = {"POST", "PUT", "PATCH", "DELETE"}
BODY_MAX = 300_000  # bytes of a stored reply in JSON; DynamoDB's limit is 400 KB
_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)


class StoredReplies(Protocol):
    """Store of replies; `adapters/aws/idempotency.py` documents the method."""

    def once(
        self,
        key: tuple[str, str],
        request: str,
        action: Callable[[], StoredReply],
        remaining_ms: int,
    ) -> StoredReply: ...


@dataclass(frozen=True, slots=True)
class Repeats:
    """Replies to changes, each made once for one Idempotency-Key of a caller."""

    store: StoredReplies

    def answer(
        self,
        request: HttpRequest,
        actor: str,
        action: Callable[[], HttpResponse],
        *,
        secrets: tuple[str, ...] = (),
        renew: Renew | None = None,
        remaining_ms: int,
    ) -> HttpResponse:
        """Return a request's reply, from the store for a repeat.

        `secrets` are fields of the reply that are never stored; they are null in a repeat, unless
        `renew` returns them from the stored document and the request's body.

        Raises:
            InvalidRequest: the header's value is none.
            StateConflict: the key came with another request, or its first one is still running.
            PlatformError: as `action` and `renew` do.
        """
        if request.method not in CHANGES or HEADER not in request.headers:
            return action()
        key = actor, _checked(request.headers[HEADER])
        replies: list[HttpResponse] = []

        def run() -> StoredReply:
            replies.append(action())
            return _storable(replies[0], secrets)

        stored = self.store.once(key, _digest(request), run, remaining_ms)
        return replies[0] if replies else _repeated(stored, request, renew)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            "Idempotency-Key: send 1 to 255 visible ASCII characters without spaces, e.g. a UUID"
        )
    return key


def _digest(request: HttpRequest) -> str:
    """Return a SHA-256 of a request: method, path, query and body."""
    head = json.dumps([request.method, request.path.rstrip("/"), sorted(request.query.items())])
    return hashlib.sha256(head.encode("utf-8", "replace") + b"\n" + request.body).hexdigest()


def _storable(response: HttpResponse, secrets: tuple[str, ...]) -> StoredReply:
    body = response.body.decode()
    if secrets:
        document: Mapping[str, Any] = json.loads(body)
        body = json.dumps({**document, **dict.fromkeys(secrets)}, separators=(",", ":"))
    fits = len(json.dumps(body)) <= BODY_MAX
    return StoredReply(response.status, body if fits else None)


def _repeated(stored: StoredReply, request: HttpRequest, renew: Renew | None) -> HttpResponse:
    body = stored.body
    if body is None:
        raise ReplyTooLarge
    if renew is not None:
        document: Mapping[str, Any] = json.loads(body)
        body = json.dumps({**document, **renew(document, request.body)}, separators=(",", ":"))
    headers = {"content-type": "application/json", **REPEATED}
    return HttpResponse(stored.status, body.encode(), headers)
