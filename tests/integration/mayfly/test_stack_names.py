"""Commands that find a stack by its name, with IAM: URL, key and logs."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.fault_server import FaultServer, ReceivedRequest, ServerConnection, fault_server
from tests.integration.mayfly.conftest import Run


class LogGroupMissing(Exception):
    """Error of CloudWatch Logs for an unknown group."""


class Cloud:
    """CloudFormation, Lambda and CloudWatch Logs of one stack."""

    class exceptions:  # noqa: N801 (boto3's name)
        ResourceNotFoundException = LogGroupMissing

    def __init__(self, url: str) -> None:
        self.url = url
        self.events: list[dict[str, Any]] = []
        self.pages: list[list[str]] | None = [["one\n", "two\n"], ["three\n"]]
        self.groups: list[str] = []

    def describe_stacks(self, StackName: str) -> Any:  # noqa: N803 (boto3's names)
        assert StackName == "blue"
        outputs = {"ApiUrl": self.url, "ManageFunctionName": "blue-Manage"}
        return {"Stacks": [{"Outputs": [
            {"OutputKey": name, "OutputValue": value} for name, value in outputs.items()
        ]}]}  # fmt: skip

    def describe_stack_resource(self, StackName: str, LogicalResourceId: str) -> Any:  # noqa: N803
        name = f"{StackName}-{LogicalResourceId}"
        return {"StackResourceDetail": {"PhysicalResourceId": name}}

    def invoke(self, FunctionName: str, Payload: bytes) -> Any:  # noqa: N803
        assert FunctionName == "blue-Manage"
        self.events.append(json.loads(Payload))
        return {"Payload": io.BytesIO(b'{"id": "abc", "key": "mfy_abc_secret"}')}

    def filter_log_events(self, logGroupName: str, startTime: int, nextToken: str = "0") -> Any:  # noqa: N803
        self.groups.append(logGroupName)
        if self.pages is None:
            raise LogGroupMissing
        at = int(nextToken)
        lines = [
            {"eventId": text, "timestamp": startTime + at, "message": text}
            for text in self.pages[at]
        ]
        more = {"nextToken": str(at + 1)} if at + 1 < len(self.pages) else {}
        return {"events": lines, **more}


def answer(seen: ReceivedRequest, line: ServerConnection) -> None:
    line.answer(200, b'{"name": "mayfly", "models": [], "next_cursor": null}')


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server(answer) as server:
        server.signed = False
        yield server


@pytest.fixture
def cloud(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud = Cloud(server.url)
    monkeypatch.setattr(boto3, "client", lambda service: cloud)
    return cloud


def test_a_command_makes_a_key_of_minutes(run: Run, cloud: Cloud, server: FaultServer) -> None:
    assert run("models", "--stack", "blue")[0] == 0

    [event] = cloud.events
    assert (event["operation"], event["scopes"]) == ("create-key", ["admin"])
    assert {seen.headers["x-api-key"] for seen in server.seen} == {"mfy_abc_secret"}


def test_a_key_of_the_environment_is_used(
    run: Run, cloud: Cloud, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAYFLY_KEY", "mfy_mine_secret")

    assert run("models", "--stack", "blue")[0] == 0
    assert cloud.events == []
    assert server.seen[0].headers["x-api-key"] == "mfy_mine_secret"


def test_login_by_iam_stores_url_and_key(run: Run, cloud: Cloud, server: FaultServer) -> None:
    assert run("login", "--stack", "blue", "--expires", "1d")[0] == 0

    stored = json.loads(Path(os.environ["MAYFLY_CONFIG"]).read_text())
    assert stored == {"url": server.url, "key": "mfy_abc_secret"}


def test_logs_are_printed_to_the_last_page(run: Run, cloud: Cloud) -> None:
    code, text, _ = run("logs", "--stack", "blue", "--function", "register")

    assert (code, text) == (0, "one\ntwo\nthree\n")
    assert cloud.groups == ["/aws/lambda/blue-RegisterFunction"] * 2


def test_a_function_without_a_log_is_named(run: Run, cloud: Cloud) -> None:
    cloud.pages = None
    code, _, error = run("logs", "--stack", "blue")

    assert (code, error) == (3, "mayfly: blue-InferFunction has written no log yet\n")
