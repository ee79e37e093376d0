"""DynamoDB operations as JSON over HTTP, without boto3.

For `dynamodb_table.ItemTable`.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

from functions.adapters.aws_errors import ErrorKind
from functions.adapters.aws_http.client import Client, Request, RetryPolicy, ServiceError
from functions.adapters.aws_http.connection import BrokenConnection, Reply
from functions.adapters.dynamodb_table import OperationFailed
from functions.core.errors import Unavailable

ANSWER_LIMIT = 20 * 1024 * 1024  # bytes; BatchGetItem answers up to 16 MB
TRANSACT = "TransactWriteItems"


class DynamoCalls:
    """Callable that runs a DynamoDB operation over HTTP, without boto3.

    Implements `dynamodb_table.Call`.
    """

    def __init__(self, client: Client, policy: RetryPolicy = RetryPolicy()) -> None:  # noqa: B008 (immutable)
        self._client = client
        self._policy = policy

    def __call__(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a DynamoDB operation, e.g. "Query", with retries; return its reply.

        Raises:
            OperationFailed: DynamoDB refuses it.
            Unavailable: it failed, throttled or could not be reached.
        """
        prepared = _prepare(operation, request)
        try:
            return self._client.call(lambda: prepared, _read_reply, self._policy)
        except ServiceError as error:
            if error.kind is ErrorKind.TRANSIENT:
                raise Unavailable("the registry does not answer; try again") from error
            raise _operation_failed(error) from error
        except BrokenConnection as error:
            raise Unavailable("the registry cannot be reached; try again") from error


def _prepare(operation: str, request: Mapping[str, Any]) -> Request:
    if operation == TRANSACT:  # keeps a retry after a lost reply from being applied twice
        request = {"ClientRequestToken": os.urandom(16).hex(), **request}
    body = json.dumps(request, separators=(",", ":")).encode()
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amz-target": f"DynamoDB_20120810.{operation}",
    }
    return Request("POST", "/", headers, body, hashlib.sha256(body).hexdigest())


def _read_reply(reply: Reply) -> dict[str, Any]:
    """Parse DynamoDB's JSON reply and verify its CRC-32."""
    body = reply.read(ANSWER_LIMIT)
    checksum = reply.headers.get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise BrokenConnection("an answer of DynamoDB arrived corrupted")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise BrokenConnection("an answer of DynamoDB is no JSON") from error
    if not isinstance(answer, dict):
        raise BrokenConnection("an answer of DynamoDB is no JSON object")
    return answer


def _operation_failed(error: ServiceError) -> OperationFailed:
    details = error.details
    message = details.get("message") or details.get("Message") or ""  # case differs by operation
    reasons = details.get("CancellationReasons") or []
    codes = [reason.get("Code", "None") for reason in reasons]
    return OperationFailed(error.code, message, codes)
