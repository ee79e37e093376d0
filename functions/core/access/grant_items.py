"""Permissions of access keys as DynamoDB items: what infer reads.

A key has one item with all that is known about it (access_key.py), and one item for each of its
secrets. The latter is found by the secret's SHA-256, so an unknown key and a wrong secret are the
same read of an item that does not exist, and no secrets are compared.
"""

from functions.core.access.grants import Grant, Scope
from functions.core.registry.table import Table


def key_pk(key_id: str) -> str:
    """Return the DynamoDB partition key of an access key."""
    return f"KEY#{key_id}"


def secret_sk(sha256: str) -> str:
    """Return the DynamoDB sort key of a secret."""
    return f"SECRET#{sha256}"


def read_grant(table: Table, key_id: str, sha256: str) -> Grant | None:
    """Read the permissions of a key's secret, None if unknown."""
    [item] = table.get([(key_pk(key_id), secret_sk(sha256))])
    if item is None:
        return None
    scopes = frozenset(map(Scope, item["scopes"]))
    return Grant(key_id, scopes, tuple(item["models"]), item["valid_until"])
