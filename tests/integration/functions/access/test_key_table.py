"""Access keys on moto's DynamoDB, with the table that template.yaml declares."""

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
from functions.core.access.keys import new_id, new_key, parse_key
from functions.core.errors import Unauthenticated
from local.aws.provision import Deployed


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


def test_unknown_and_wrong_keys_send_the_same_requests(
    client: Any, table: DynamoTable, store: KeyStore
) -> None:
    """The replies are the same, too: no item, whether the id exists or not."""
    key_id, text = create(store)
    calls: list[tuple[str, list[str], bool]] = []

    def count(params: dict[str, Any], model: Any, **_: Any) -> None:
        [request] = params["RequestItems"].values()
        calls.append((model.name, sorted(request["Keys"][0]), request["ConsistentRead"]))

    replies: list[Any] = []
    client.meta.events.register("provide-client-params.dynamodb", count)
    client.meta.events.register(
        "after-call.dynamodb", lambda parsed, **_: replies.append(parsed["Responses"])
    )
    unknown, wrong = new_key(new_id()), new_key(key_id)
    for key in (unknown, wrong):
        with pytest.raises(Unauthenticated):
            Gate(partial(read_grant, table), 60.0, Elapsed()).verify(key)

    assert parse_key(wrong) == parse_key(text)
    assert calls == [("BatchGetItem", ["pk", "sk"], True)] * 2
    assert replies[0] == replies[1]
