"""Access key as the registry stores it, and its DynamoDB items."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from functions.core.access.grant_items import key_pk, secret_sk
from functions.core.access.grants import Scope
from functions.core.registry.table import Item, Put

DAY_S = 86_400


class KeyState(StrEnum):
    """States of an access key."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Secret:
    """SHA-256 of a key's text, with the end of its validity."""

    sha256: str
    valid_until: int | None = None  # Unix seconds; None for ever


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Access key without its text: name, permissions, validity and history.

    Times are ISO 8601 in UTC, except `valid_until`, which is Unix seconds. The last secret is the
    current one; those before it were replaced by rotations and have not run out yet.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...]
    secrets: tuple[Secret, ...]
    created_at: str
    created_by: str
    valid_until: int | None = None
    rotated_at: str | None = None
    revoked_at: str | None = None
    revision: int = 1
    monthly_requests: int | None = None  # quota; None for no limit
    max_tokens: int | None = None  # longest generated reply; None for no limit

    def state(self, now_s: float) -> KeyState:
        """Return the key's state at a Unix time."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        expired = self.valid_until is not None and self.valid_until <= now_s
        return KeyState.EXPIRED if expired else KeyState.ACTIVE

    @property
    def listed(self) -> str:
        """Sort key in the listing of all keys: oldest first."""
        return f"{self.created_at}#{self.id}"


def key_to_item(key: AccessKey) -> Item:
    """Convert an access key to its DynamoDB item.

    `kind` and `listed` put it in the index `listing`.
    """
    return {
        "pk": key_pk(key.id),
        "sk": "RECORD",
        "kind": "KEY",
        "listed": key.listed,
        "id": key.id,
        "name": key.name,
        "scopes": [scope.value for scope in key.scopes],
        "models": list(key.models),
        "secrets": [asdict(secret) for secret in key.secrets],
        "created_at": key.created_at,
        "created_by": key.created_by,
        "valid_until": key.valid_until,
        "rotated_at": key.rotated_at,
        "revoked_at": key.revoked_at,
        "revision": key.revision,
        "monthly_requests": key.monthly_requests,
        "max_tokens": key.max_tokens,
    }


def key_from_item(item: Item) -> AccessKey:
    """Parse an access key from its DynamoDB item."""
    return AccessKey(
        id=item["id"],
        name=item["name"],
        scopes=tuple(map(Scope, item["scopes"])),
        models=tuple(item["models"]),
        secrets=tuple(Secret(**secret) for secret in item["secrets"]),
        created_at=item["created_at"],
        created_by=item["created_by"],
        valid_until=item["valid_until"],
        rotated_at=item["rotated_at"],
        revoked_at=item["revoked_at"],
        revision=item["revision"],
        monthly_requests=item.get("monthly_requests"),
        max_tokens=item.get("max_tokens"),
    )


def secret_puts(key: AccessKey, secrets: Sequence[Secret]) -> list[Put]:
    """Return the DynamoDB writes of some of a key's secrets.

    DynamoDB deletes an item a day after it ran out.
    """
    return [Put(_secret_to_item(key, secret), {}) for secret in secrets]


def _secret_to_item(key: AccessKey, secret: Secret) -> Item:
    item: dict[str, Any] = {
        "pk": key_pk(key.id),
        "sk": secret_sk(secret.sha256),
        "scopes": [scope.value for scope in key.scopes],
        "models": list(key.models),
        "valid_until": secret.valid_until,
        "monthly_requests": key.monthly_requests,
        "max_tokens": key.max_tokens,
    }
    if secret.valid_until is not None:
        item["expires_at"] = secret.valid_until + DAY_S
    return item
