# Written by scripts/sync_client.py from mayfly/client/aio: change that.
"""Records of the whole stack: models, uploads, keys, usage, audit, dead letters."""

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any
from urllib.parse import quote

from mayfly.client.http1.messages import listed, with_query
from mayfly.client.records import (
    AuditRecord,
    DeadLetter,
    KeyRecord,
    ModelRecord,
    UploadRecord,
    UsageRecord,
)
from mayfly.client.sync.caller import Caller
from mayfly.client.sync.uploads import WAIT_S, Step, wait


class Administration:
    """Lists of a stack, and its keys."""

    _caller: Caller

    def models(self, search: str = "", state: str = "active") -> Iterator[ModelRecord]:
        """Yield the models by name; `state` is active or archived."""
        path = with_query("/api/v1/models", search=search, state=state)
        for document in self._caller.pages(path, "models"):
            yield ModelRecord.read(document)

    def uploads(self, model: str = "") -> Iterator[UploadRecord]:
        """Yield the uploads of the last 30 days, newest first."""
        path = with_query("/api/v1/uploads", model=model)
        for document in self._caller.pages(path, "uploads"):
            yield UploadRecord.read(document)

    def upload(self, upload_id: str) -> UploadRecord:
        """Return an upload with its state."""
        return UploadRecord.read(self._caller.get(f"/api/v1/uploads/{quote(upload_id)}"))

    def wait(
        self, upload_id: str, timeout: float = WAIT_S, step: Step = lambda _: None
    ) -> UploadRecord:
        """Poll an upload until it is READY.

        Raises:
            Rejected: it became no version that can be called; the text is the reason.
            TimedOut: it has not ended within `timeout` seconds.
        """
        return wait(self._caller, upload_id, timeout, step)

    def usage(self, by: str = "model", *, first: str = "", last: str = "") -> UsageRecord:
        """Return the requests to all models, by model, key or day.

        `first` and `last` are days in UTC, e.g. 2026-11-22; by default the last seven.
        """
        path = with_query("/api/v1/usage", **{"from": first, "to": last, "by": by})
        return UsageRecord.read(self._caller.get(path))

    def audit(self, *, model: str = "", actor: str = "", action: str = "") -> Iterator[AuditRecord]:
        """Yield audit records of models and keys, newest first."""
        path = with_query("/api/v1/audit", model=model, actor=actor, action=action)
        for document in self._caller.pages(path, "records"):
            yield AuditRecord.read(document)

    def dead_letters(self) -> list[DeadLetter]:
        """Return the uploads whose registration failed too often."""
        document = self._caller.get("/api/v1/dead-letters")
        return [DeadLetter.read(row) for row in listed(document, "dead_letters")]

    def redrive(self) -> None:
        """Register the uploads of all dead letters once more."""
        self._caller.change("POST", "/api/v1/dead-letters/redrive", {})

    def keys(self) -> Iterator[KeyRecord]:
        """Yield the access keys, oldest first, without their texts."""
        for document in self._caller.pages("/api/v1/keys", "keys"):
            yield KeyRecord.read(document)

    def create_key(
        self,
        name: str,
        scopes: Sequence[str] = ("infer",),
        *,
        models: Sequence[str] = ("*",),
        expires_at: str | None = None,
        monthly_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> KeyRecord:
        """Create an access key; only this reply has its text, in `key`.

        `monthly_requests` is its quota of inferences in a calendar month, `max_tokens` the
        longest reply of a language model. The text is never stored, so a reply that is lost cannot
        be repeated: revoke that key.
        """
        body: dict[str, Any] = {"name": name, "scopes": list(scopes), "models": list(models)}
        if expires_at is not None:
            body["expires_at"] = expires_at
        if monthly_requests is not None:
            body["monthly_requests"] = monthly_requests
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        reply = self._caller.change("POST", "/api/v1/keys", body, repeatable=False)
        return KeyRecord.read(reply)

    def change_key(
        self,
        key_id: str,
        *,
        monthly_requests: int | EllipsisType | None = ...,
        max_tokens: int | EllipsisType | None = ...,
    ) -> KeyRecord:
        """Change a key's limits, those that are named; None is no limit.

        They hold within the stack's KeyCacheSeconds, 60 by default.
        """
        limits = {"monthly_requests": monthly_requests, "max_tokens": max_tokens}
        body = {name: limit for name, limit in limits.items() if limit is not ...}
        path = f"/api/v1/keys/{quote(key_id)}"
        return KeyRecord.read(self._caller.change("PATCH", path, body))

    def rotate_key(self, key_id: str, overlap_seconds: int = 86_400) -> KeyRecord:
        """Give a key a new text; the old stays valid a while."""
        path, body = f"/api/v1/keys/{quote(key_id)}/rotate", {"overlap_seconds": overlap_seconds}
        return KeyRecord.read(self._caller.change("POST", path, body, repeatable=False))

    def revoke_key(self, key_id: str) -> KeyRecord:
        """End a key for good."""
        path = f"/api/v1/keys/{quote(key_id)}/revoke"
        return KeyRecord.read(self._caller.change("POST", path))
