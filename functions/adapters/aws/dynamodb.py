"""The registry's table in DynamoDB, through boto3"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

from functions.adapters.dynamodb_table import ItemTable, OperationFailed
from functions.core.errors import Unavailable

# What a second try can mend, in DynamoDB's words.
_TRANSIENT = {
    "InternalServerError",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
}


class DynamoTable(ItemTable):
    """`ItemTable` over a DynamoDB client of boto3, whose own retries it relies on."""

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(partial(_call, client), name)


def _call(client: Any, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """`adapters.items.Call`."""
    try:
        answer: dict[str, Any] = getattr(client, xform_name(operation))(**request)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _TRANSIENT:
            raise Unavailable("the registry does not answer; try again") from error
        reasons = error.response.get("CancellationReasons", [])
        message = error.response["Error"].get("Message", "")
        raise OperationFailed(
            code, message, [reason.get("Code", "None") for reason in reasons]
        ) from error
    except BotoCoreError as error:  # connections, timeouts, missing credentials
        raise Unavailable("the registry cannot be reached; try again") from error
    return answer
