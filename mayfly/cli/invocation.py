"""Calls of AWS: a stack's outputs, its manage function, its logs."""

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mayfly.cli.times import time_after
from mayfly.client.errors import MayflyError, NotConfigured, NotFound

OUTPUT = "ManageFunctionName"


class Failed(MayflyError):
    """Failure of a command; the text says what to change."""


def client(service: str) -> Any:
    """Return a boto3 client.

    Raises:
        NotConfigured: boto3 is not installed.
    """
    try:
        import boto3
    except ImportError:
        raise NotConfigured(
            "IAM needs boto3: pip install boto3, or use --url and MAYFLY_KEY"
        ) from None
    return boto3.client(service)


@contextmanager
def aws_errors() -> Iterator[None]:
    """Turn errors of the AWS SDK into ours, with the next step.

    Raises:
        NotConfigured: region or credentials are missing.
        Failed: AWS refused the call.
    """
    try:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            NoRegionError,
        )
    except ImportError:
        yield
        return
    try:
        yield
    except NoRegionError:
        raise Failed("no AWS region is set: export AWS_DEFAULT_REGION, e.g. us-east-1") from None
    except NoCredentialsError:
        raise Failed(
            "there are no AWS credentials: run aws configure, or export AWS_PROFILE"
        ) from None
    except (BotoCoreError, ClientError) as error:
        raise Failed(str(error)) from error


def find_output(stack: str, output: str) -> str:
    """Return an output of a stack.

    Raises:
        Failed: there is no such stack, or it has no such output.
    """
    with aws_errors():
        cloudformation = client("cloudformation")
        try:
            [description] = cloudformation.describe_stacks(StackName=stack)["Stacks"]
        except cloudformation.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "ValidationError":
                raise
            raise Failed(
                f"there is no stack {stack} in this account and region: name it with --stack, "
                "or on the local stack with --function ManageFunction"
            ) from error
    outputs = {row["OutputKey"]: row["OutputValue"] for row in description.get("Outputs", ())}
    if output not in outputs:
        raise Failed(f"stack {stack} has no output {output}: deploy it again, or name --function")
    return str(outputs[output])


def find_function(stack: str) -> str:
    """Return the name of a stack's manage function."""
    return find_output(stack, OUTPUT)


def invoke(function: str, event: dict[str, Any]) -> Any:
    """Invoke a Lambda function and return its reply.

    Raises:
        Failed: the function failed, or refused the event.
    """
    payload = json.dumps(event).encode()
    with aws_errors():
        reply = client("lambda").invoke(FunctionName=function, Payload=payload)
    document = json.loads(reply["Payload"].read())
    if "FunctionError" in reply:
        raise Failed(f"{function} failed: {document.get('errorMessage', 'see its log')}")
    if "error" in document:
        raise Failed(document["error"])
    return document


def new_key(stack: str, name: str, seconds: int) -> str:
    """Create an admin key by IAM and return its text."""
    event = {
        "operation": "create-key",
        "actor": getpass.getuser(),
        "name": name,
        "scopes": ["admin"],
        "expires_at": time_after(seconds),
    }
    return str(invoke(find_function(stack), event)["key"])


def short_key(stack: str, minutes: int) -> str:
    """Create an access key for one command."""
    return new_key(stack, f"command line of {getpass.getuser()}", minutes * 60)


def log_events(function: str, start_ms: int) -> list[dict[str, Any]]:
    """Return a Lambda function's log events since a time, oldest first.

    Raises:
        NotFound: the function has written no log.
    """
    events: list[dict[str, Any]] = []
    options: dict[str, Any] = {"logGroupName": f"/aws/lambda/{function}", "startTime": start_ms}
    with aws_errors():
        logs = client("logs")
        while True:
            try:
                page = logs.filter_log_events(**options)
            except logs.exceptions.ResourceNotFoundException:
                raise NotFound(f"{function} has written no log yet") from None
            events += page["events"]
            if "nextToken" not in page:
                return events
            options["nextToken"] = page["nextToken"]


def find_physical(stack: str, resource: str) -> str:
    """Return the name that a stack's resource has in the account.

    Raises:
        Failed: there is no such stack, or it has no such resource.
    """
    with aws_errors():
        cloudformation = client("cloudformation")
        try:
            reply = cloudformation.describe_stack_resource(
                StackName=stack, LogicalResourceId=resource
            )
        except cloudformation.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "ValidationError":
                raise
            raise Failed(
                f"there is no stack {stack} with a {resource} in this account and region: name it "
                "with --stack; the local stack writes its logs to .local/logs"
            ) from error
    return str(reply["StackResourceDetail"]["PhysicalResourceId"])
