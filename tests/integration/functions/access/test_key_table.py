"""Access keys on moto's DynamoDB, with the table that template.yaml declares."""

import time
from functools import partial
from typing import Any

import boto3
import pytest

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import Elapsed, utc_now
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.grants import Scope
from functions.core.access.key_store import KeyStore
from functions.core.access.keys import new_id, new_key
from functions.core.errors import Unauthenticated
from local.aws.provision import Deployed

VALUES = "ExpressionAttributeValues"  # of a request: the key's id and digest, and the time


@pytest.fixture
def client(deployed: Deployed) -> Any:
    return boto3.client("dynamodb")


@pytest.fixture
def table(client: Any, deployed: Deployed) -> DynamoTable:
    return DynamoTable(client, deployed.outputs["RegistryTableName"])


@pytest.fixture
def store(table: DynamoTable) -> KeyStore:
    return KeyStore(table, utc_now)


def create(store: KeyStore, name: str = "ci") -> tuple[str, str]:
    key, text = store.create(name, scopes=[Scope.INFER], models=["digits", "fraud-*"], actor="anna")
    return key.id, text


def test_a_key_is_verified_rotated_and_revoked(table: DynamoTable, store: KeyStore) -> None:
    gate = Gate(partial(read_grant, table), 0.0, Elapsed())
    key_id, first = create(store)
    grant = gate.verify(first)
    assert (grant.key_id, grant.scopes, grant.models) == (
        key_id,
        frozenset({Scope.INFER}),
        ("digits", "fraud-*"),
    )

    _, second = store.rotate(key_id, 60, actor="anna")
    assert gate.verify(first).valid_until is not None
    assert gate.verify(second).valid_until is None
    store.revoke(key_id, actor="anna")
    for text in (first, second):
        with pytest.raises(Unauthenticated):
            gate.verify(text)
    assert store.read(key_id).revoked_at is not None


def test_keys_are_listed_in_pages_of_any_size(store: KeyStore) -> None:
    ids = [create(store, f"key {n}")[0] for n in range(7)]

    for size in (1, 3, 7, 100):
        listed: list[str] = []
        position = ""
        for _ in range(len(ids) + 1):
            keys, position = store.page(position, size)
            listed += [key.id for key in keys]
            if not position:
                break
        assert sorted(listed) == sorted(ids)


def refused_keys(store: KeyStore) -> dict[str, str]:
    """Return a well-formed key of each kind that is refused."""
    key_id, _ = create(store)
    revoked_id, revoked = create(store)
    store.revoke(revoked_id, actor="anna")
    replaced_id, replaced = create(store)
    store.rotate(replaced_id, 0, actor="anna")
    _, expired = store.create(
        "ci", scopes=[Scope.INFER], models=["*"], actor="anna", valid_until=int(time.time()) + 1
    )
    time.sleep(1.1)  # until it has expired, by the clock of the gates below
    kinds = {"unknown": new_key(new_id()), "wrong": new_key(key_id), "revoked": revoked}
    return {**kinds, "replaced": replaced, "expired": expired}


def test_refused_keys_send_the_same_requests_and_get_the_same_replies(
    client: Any, table: DynamoTable, store: KeyStore
) -> None:
    """No item comes, whether the id or the secret exists or not."""
    keys = refused_keys(store)
    requests: list[Any] = []
    replies: list[Any] = []

    def keep_request(params: dict[str, Any], model: Any, **_: Any) -> None:
        values = {name: value for name, value in params.items() if name != VALUES}
        requests.append((model.name, values, sorted(params[VALUES])))

    def keep_reply(parsed: dict[str, Any], **_: Any) -> None:
        replies.append((parsed["Items"], parsed["Count"], sorted(parsed)))

    client.meta.events.register("provide-client-params.dynamodb", keep_request)
    client.meta.events.register("after-call.dynamodb", keep_reply)
    for key in keys.values():
        with pytest.raises(Unauthenticated):
            Gate(partial(read_grant, table), 60.0, Elapsed()).verify(key)

    assert requests == [requests[0]] * len(keys)
    assert replies == [replies[0]] * len(keys)
    assert replies[0][:2] == ([], 0)
