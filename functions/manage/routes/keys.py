"""Routes of access keys."""

from collections.abc import Sequence
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Query

from functions.core.access.grants import Scope
from functions.manage.caller import CurrentCaller
from functions.manage.documents.base import Limit
from functions.manage.documents.keys import (
    ChangeKey,
    CreateKey,
    KeyDocument,
    KeyPage,
    NewKeyDocument,
    RotateKey,
)
from functions.manage.keys import KeysApi
from functions.manage.route import Route


class KeyRoutes:
    """Routes that create, list, rotate and revoke access keys.

    They are refused while Auth is none: a key made by anybody would be valid once keys are asked
    for.
    """

    tag = "keys"

    def __init__(self, keys: KeysApi, current: CurrentCaller) -> None:
        self._keys = keys
        self._current = current

    @property
    def routes(self) -> Sequence[Route]:
        """Routes with their scopes."""
        admin = Scope.ADMIN
        key, once = "/keys/<key_id>", ("key",)
        return (
            Route("POST", "/keys", admin, self.create_key, 201, identified=True, secrets=once),
            Route("GET", "/keys", admin, self.list_keys, identified=True),
            Route("GET", key, admin, self.read_key, identified=True),
            Route("PATCH", key, admin, self.change_key, identified=True),
            Route("POST", f"{key}/rotate", admin, self.rotate_key, identified=True, secrets=once),
            Route("POST", f"{key}/revoke", admin, self.revoke_key, identified=True),
        )

    def create_key(self, body: CreateKey) -> NewKeyDocument:
        """Create an access key. Only this reply holds its text."""
        return self._keys.create(body, self._current.actor)

    def list_keys(
        self, limit: Annotated[Limit, Query()] = 50, cursor: Annotated[str, Query()] = ""
    ) -> KeyPage:
        """List access keys, oldest first."""
        return self._keys.page(limit, cursor)

    def read_key(self, key_id: str) -> KeyDocument:
        """Return an access key without its text."""
        return self._keys.read(key_id)

    def change_key(self, key_id: str, body: ChangeKey) -> KeyDocument:
        """Change an access key's limits.

        Caches of keys make it hold within KeyCacheSeconds, 60 by default. For a monthly quota, what
        the key has used of this month counts.
        """
        return self._keys.change(key_id, body, self._current.actor)

    def rotate_key(self, key_id: str, body: RotateKey | None = None) -> NewKeyDocument:
        """Give an access key a new text.

        The text before stays valid for a while.
        """
        return self._keys.rotate(key_id, body or RotateKey(), self._current.actor)

    def revoke_key(self, key_id: str) -> KeyDocument:
        """End an access key for good."""
        return self._keys.revoke(key_id, self._current.actor)
