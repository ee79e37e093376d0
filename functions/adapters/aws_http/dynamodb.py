"""DynamoDB's operations as JSON over the lean client, for `adapters.items.ItemTable`"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

from functions.adapters.aws_http.client import Client, Patience, Refused, Request
from functions.adapters.aws_http.connection import Broken, Reply
from functions.adapters.dynamodb_table import OperationFailed
from functions.core.errors import Unavailable

ANSWER_LIMIT = 20 * 1024 * 1024  # bytes; BatchGetItem answers up to 16 MB
TRANSACT = "TransactWriteItems"


class DynamoCalls:
    """`adapters.items.Call` over a lean client."""

    def __init__(self, client: Client, patience: Patience = Patience()) -> None:  # noqa: B008 (immutable)
        self._client = client
        self._patience = patience

    def __call__(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if operation == TRANSACT:  # so that an attempt whose answer was lost is not applied twice
            request = {"ClientRequestToken": os.urandom(16).hex(), **request}
        body = json.dumps(request, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/x-amz-json-1.0",
            "x-amz-target": f"DynamoDB_20120810.{operation}",
        }
        prepared = Request("POST", "/", headers, body, hashlib.sha256(body).hexdigest())
        try:
            return self._client.call(lambda: prepared, _answer, self._patience)
        except Refused as error:
            if error.is_transient:
                raise Unavailable("the registry does not answer; try again") from error
            reasons = error.details.get("CancellationReasons") or []
            message = (
                error.details.get("message") or error.details.get("Message") or ""
            )  # each operation its own
            raise OperationFailed(
                error.code, message, [one.get("Code", "None") for one in reasons]
            ) from error
        except Broken as error:
            raise Unavailable("the registry cannot be reached; try again") from error


def _answer(reply: Reply) -> dict[str, Any]:
    body = reply.read(ANSWER_LIMIT)
    checksum = reply.headers.get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise Broken("an answer of DynamoDB arrived corrupted")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise Broken("an answer of DynamoDB is no JSON") from error
    if not isinstance(answer, dict):
        raise Broken("an answer of DynamoDB is no JSON object")
    return answer
