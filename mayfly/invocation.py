"""Direct invocations of a stack's manage function."""

import json
from typing import Any

import boto3
from botocore.exceptions import ClientError

OUTPUT = "ManageFunctionName"


class Failed(Exception):
    """Failure of a command; the text says what to change."""


def find_function(stack: str) -> str:
    """Return the name of a stack's manage function, from the stack's outputs.

    Raises:
        Failed: there is no such stack, or it has no such output.
    """
    try:
        [description] = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"].get("Code") != "ValidationError":
            raise
        raise Failed(
            f"there is no stack {stack} in this account and region: name it with --stack, "
            "or on the local stack with --function ManageFunction"
        ) from error
    outputs = {row["OutputKey"]: row["OutputValue"] for row in description.get("Outputs", ())}
    if OUTPUT not in outputs:
        raise Failed(f"stack {stack} has no output {OUTPUT}: deploy it again, or name --function")
    return str(outputs[OUTPUT])


def invoke(function: str, event: dict[str, Any]) -> Any:
    """Invoke a Lambda function and return its reply.

    Raises:
        Failed: the function failed, or refused the event.
    """
    payload = json.dumps(event).encode()
    reply = boto3.client("lambda").invoke(FunctionName=function, Payload=payload)
    document = json.loads(reply["Payload"].read())
    if "FunctionError" in reply:
        raise Failed(f"{function} failed: {document.get('errorMessage', 'see its log')}")
    if "error" in document:
        raise Failed(document["error"])
    return document
