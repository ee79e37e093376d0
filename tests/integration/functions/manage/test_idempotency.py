"""Idempotency keys in DynamoDB, by Powertools: moto, the table of template.yaml."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from functions.adapters.aws.idempotency import KEPT_S, DynamoReplies
from functions.core.access.keys import key_digest
from functions.core.errors import Unavailable
from functions.core.idempotency import KeyReused, StillRunning, StoredReply
from local.aws.provision import Deployed
from tests.data_plane import Client

KEY = ("key:k", "k1")
REPLY = StoredReply(201, '{"a":"é"}')


@pytest.fixture
def table(deployed: Deployed) -> str:
    return deployed.outputs["RegistryTableName"]


@pytest.fixture
def dynamodb() -> Any:
    return boto3.client("dynamodb", region_name="us-east-1")


@pytest.fixture
def replies(table: str, dynamodb: Any) -> DynamoReplies:
    return DynamoReplies(dynamodb, table)


def items(dynamodb: Any, table: str) -> list[dict[str, Any]]:
    reply = dynamodb.query(
        TableName=table,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": "IDEMPOTENCY"}},
    )
    return list(reply["Items"])


def never() -> StoredReply:
    raise AssertionError("the action ran again")


def test_an_action_runs_once_and_its_reply_is_kept_for_a_day(
    replies: DynamoReplies, dynamodb: Any, table: str
) -> None:
    assert replies.once(KEY, "digest", lambda: REPLY, 1000) == REPLY
    assert replies.once(KEY, "digest", never, 1000) == REPLY

    [item] = items(dynamodb, table)
    assert not [text for text in KEY if text in json.dumps(item)]
    assert int(item["expires_at"]["N"]) > KEPT_S


def test_another_request_or_a_running_one_is_refused(replies: DynamoReplies) -> None:
    replies.once(KEY, "digest", lambda: REPLY, 1000)
    with pytest.raises(KeyReused):
        replies.once(KEY, "another", never, 1000)

    begun, end = threading.Event(), threading.Event()

    def slow() -> StoredReply:
        begun.set()
        assert end.wait(60)
        return REPLY

    other = ("key:k", "k2")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(replies.once, other, "digest", slow, 60_000)
        assert begun.wait(60)
        with pytest.raises(StillRunning):
            replies.once(other, "digest", never, 60_000)
        end.set()
        assert first.result() == REPLY
    assert replies.once(other, "digest", never, 1000) == REPLY


def test_a_failed_action_leaves_nothing(replies: DynamoReplies, dynamodb: Any, table: str) -> None:
    def fail() -> StoredReply:
        raise KeyError("x")

    with pytest.raises(KeyError):
        replies.once(KEY, "digest", fail, 1000)
    assert items(dynamodb, table) == []
    assert replies.once(KEY, "digest", lambda: REPLY, 1000) == REPLY


def test_a_key_is_free_again_after_the_function_died(
    replies: DynamoReplies, dynamodb: Any, table: str
) -> None:
    def die() -> StoredReply:
        raise SystemExit

    with pytest.raises(SystemExit):
        replies.once(KEY, "digest", die, -1000)
    assert len(items(dynamodb, table)) == 1
    assert replies.once(KEY, "digest", lambda: REPLY, 1000) == REPLY


@pytest.mark.parametrize("operation", ["UpdateItem", "PutItem"])
def test_a_failing_table_never_hides_a_change(
    replies: DynamoReplies, dynamodb: Any, operation: str, recwarn: Any
) -> None:
    fail = failing(operation, "ProvisionedThroughputExceededException")
    dynamodb.meta.events.register(f"before-call.dynamodb.{operation}", fail)
    if operation == "PutItem":
        with pytest.raises(Unavailable):
            replies.once(KEY, "digest", never, 1000)
    else:
        assert replies.once(KEY, "digest", lambda: REPLY, 1000) == REPLY


def failing(operation: str, code: str) -> Callable[..., None]:
    def fail(**_: Any) -> None:
        response: Any = {"Error": {"Code": code, "Message": ""}}
        raise ClientError(response, operation)

    return fail


def test_the_text_of_a_key_is_never_in_the_table(
    manage: ModuleType, client: Client, admin: dict[str, str], dynamodb: Any, table: str
) -> None:
    sent = {**admin, "idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    body = {"name": "ci", "scopes": ["infer"]}
    first = client.post("/live/api/v1/keys", body, headers=sent)
    again = client.post("/live/api/v1/keys", body, headers=sent)

    assert (first.status, again.status) == (201, 201)
    assert again.json == {**first.json, "key": None}
    assert again.headers["idempotency-replayed"] == "true"
    text = first.json["key"]
    stored = json.dumps(dynamodb.scan(TableName=table)["Items"])
    assert text not in stored
    assert text.rpartition("_")[2] not in stored
    [reply] = items(dynamodb, table)
    assert key_digest(text) not in json.dumps(reply)
