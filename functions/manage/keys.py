"""Access keys of the control plane, for HTTP and direct invocations."""

from collections.abc import Callable

from functions.core.access.key_store import KeyStore
from functions.manage.cursors import decode_cursor, encode_cursor
from functions.manage.documents.keys import (
    ChangeKey,
    CreateKey,
    KeyDocument,
    KeyPage,
    NewKeyDocument,
    RotateKey,
    describe_key,
)


class KeysApi:
    """Requests about access keys, from documents to documents.

    `actor` names whoever asks, for the audit records.
    """

    def __init__(
        self, store: KeyStore, now: Callable[[], float], used: Callable[[str], int]
    ) -> None:
        """Use `store`.

        `now` returns Unix time, `used` the requests of a key in this month.
        """
        self._store = store
        self._used = used
        self._now = now

    def create(self, request: CreateKey, actor: str) -> NewKeyDocument:
        """Create an access key and return it with its text."""
        expires_at = request.expires_at
        key, text = self._store.create(
            request.name,
            scopes=request.scopes,
            models=request.models,
            actor=actor,
            valid_until=int(expires_at.timestamp()) if expires_at else None,
            monthly_requests=request.monthly_requests,
            max_tokens=request.max_tokens,
        )
        return NewKeyDocument(**describe_key(key, self._now()), key=text)

    def page(self, limit: int, cursor: str) -> KeyPage:
        """Return a page of access keys: the first, or a cursor's."""
        keys, position = self._store.page(decode_cursor(cursor), limit)
        now_s = self._now()
        documents = [KeyDocument(**describe_key(key, now_s)) for key in keys]
        return KeyPage(keys=documents, next_cursor=encode_cursor(position))

    def read(self, key_id: str) -> KeyDocument:
        """Return an access key."""
        return KeyDocument(**describe_key(self._store.read(key_id), self._now()))

    def change(self, key_id: str, request: ChangeKey, actor: str) -> KeyDocument:
        """Change an access key's limits."""
        limits = request.changes()
        key = self._store.read(key_id)  # a key that does not exist costs no sum of the month
        begins = limits.get("monthly_requests") is not None and key.monthly_requests is None
        used = self._used(key_id) if begins else 0
        key = self._store.change_limits(key_id, limits, used, actor=actor)
        return KeyDocument(**describe_key(key, self._now()))

    def rotate(self, key_id: str, request: RotateKey, actor: str) -> NewKeyDocument:
        """Give an access key a new text and return it."""
        key, text = self._store.rotate(key_id, request.overlap_seconds, actor=actor)
        return NewKeyDocument(**describe_key(key, self._now()), key=text)

    def revoke(self, key_id: str, actor: str) -> KeyDocument:
        """End an access key for good."""
        key = self._store.revoke(key_id, actor=actor)
        return KeyDocument(**describe_key(key, self._now()))
