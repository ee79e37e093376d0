"""Requests that boto3 refuses to send: bugs, which no repetition mends."""

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyPersistenceLayerError,
)
from botocore.exceptions import ParamValidationError

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.idempotency import DynamoReplies
from functions.adapters.aws.lambda_function import LambdaFunction
from functions.adapters.aws.s3 import S3Uploads
from functions.adapters.aws.sqs import SqsDeadLetters
from functions.adapters.aws.step_functions import StateMachine
from functions.core.idempotency import StoredReply


def client(service: str) -> Any:
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
    endpoint = "http://127.0.0.1:1"  # nobody listens, and no request is sent
    return boto3.client(service, region_name="eu-nowhere-1", endpoint_url=endpoint, **keys)


def reply_once() -> object:
    replies = DynamoReplies(client("dynamodb"), "")
    return replies.once(("ann", "key"), "request", lambda: StoredReply(200, ""), 1000)


@pytest.mark.parametrize(
    "send",
    [
        lambda: DynamoTable(client("dynamodb"), "").get([("pk", "sk")]),
        lambda: LambdaFunction(client("lambda"), "").call({}),
        lambda: S3Uploads(client("s3")).pin("bucket", "", None),
        lambda: SqsDeadLetters(client("sqs"), None, "arn").peek(1),  # type: ignore[arg-type]
        lambda: StateMachine(client("stepfunctions"), "arn").start("", {}),
    ],
    ids=["dynamodb", "lambda", "s3", "sqs", "stepfunctions"],
)
def test_a_refused_parameter_is_no_failure_of_the_service(send: Callable[[], object]) -> None:
    with pytest.raises(ParamValidationError):
        send()


def test_a_refused_parameter_of_a_stored_reply_is_a_bug() -> None:
    with pytest.raises(IdempotencyPersistenceLayerError) as raised:
        reply_once()

    assert isinstance(raised.value.__cause__, ParamValidationError)
