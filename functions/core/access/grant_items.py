"""Permissions of access keys as DynamoDB items: what infer reads.

A key has one item with all that is known about it (access_key.py), and one item for each of its
secrets. The latter is found by the secret's SHA-256, so an unknown key and a wrong secret are the
same read of an item that does not exist, and no secrets are compared. The table leaves out a
secret that has ended, so a revoked, replaced or expired key is the same read, too.
"""

from functions.core.access.grants import Grant, Scope
from functions.core.registry.table import Table
from functions.core.usage.quota import read_quota


def key_pk(key_id: str) -> str:
    """Return the DynamoDB partition key of an access key."""
    return f"KEY#{key_id}"


def secret_sk(sha256: str) -> str:
    """Return the DynamoDB sort key of a secret."""
    return f"SECRET#{sha256}"


def grant_key(key_id: str, sha256: str) -> tuple[str, str]:
    """Return the DynamoDB key of a secret's permissions."""
    return key_pk(key_id), secret_sk(sha256)


def read_grant(table: Table, key_id: str, sha256: str, now_s: float) -> Grant | None:
    """Read the permissions of a key's secret at a Unix time.

    None if it is unknown or has ended. A key with a quota takes a second read, of its month.
    """
    item = table.get_valid(*grant_key(key_id, sha256), now_s)
    if item is None:
        return None
    scopes = frozenset(map(Scope, item["scopes"]))
    monthly = item.get("monthly_requests")
    quota = None if monthly is None else read_quota(table, key_id, monthly, now_s)
    models, valid_until = tuple(item["models"]), item["valid_until"]
    return Grant(key_id, scopes, models, valid_until, quota, item.get("max_tokens"))
