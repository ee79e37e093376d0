"""Model registry stored in a DynamoDB table, through boto3."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from functions.adapters.aws_errors import ErrorKind, classify_response
from functions.adapters.dynamodb_table import ItemTable, OperationFailed
from functions.core.errors import Unavailable


class DynamoTable(ItemTable):
    """Model registry's DynamoDB table, read and written through a boto3 client.

    The client does the retries.
    """

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(partial(_call, client), name)


def _call(client: Any, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one DynamoDB operation with boto3 and return its reply.

    Implements `dynamodb_table.Call`.
    """
    try:
        reply: dict[str, Any] = getattr(client, xform_name(operation))(**request)
    except ClientError as error:
        if classify_response(error.response) is ErrorKind.TRANSIENT:
            raise Unavailable("the registry does not answer; try again") from error
        raise _operation_failed(error) from error
    except ParamValidationError:  # a bug, which no repetition mends
        raise
    except BotoCoreError as error:  # connection, timeout, missing credentials
        raise Unavailable("the registry cannot be reached; try again") from error
    return reply


def _operation_failed(error: ClientError) -> OperationFailed:
    details = error.response["Error"]
    reasons = error.response.get("CancellationReasons", [])
    codes = [reason.get("Code", "None") for reason in reasons]
    return OperationFailed(details["Code"], details.get("Message", ""), codes)
