"""State machines of a template, executed by the local AWS server with Lambda tasks over HTTP."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from local.aws.provision import local_session, provision
from local.aws.server import HOST
from local.template import Template

PATIENCE_S = 120.0
TEMPLATE = """
Resources:
  Count:
    Type: AWS::Serverless::Function
    Properties: {Handler: count.handler, CodeUri: .}
  Loop:
    Type: AWS::Serverless::StateMachine
    Properties:
      Role: arn:aws:iam::123456789012:role/loop
      Definition:
        StartAt: Wait
        States:
          Wait: {Type: Wait, SecondsPath: $.wait_seconds, Next: Task}
          Task:
            Type: Task
            Resource: arn:aws:states:::lambda:invoke
            Parameters: {FunctionName: !GetAtt Count.Arn, "Payload.$": $}
            OutputPath: $.Payload
            Retry: [{ErrorEquals: [States.ALL], IntervalSeconds: 1, MaxAttempts: 2}]
            Next: Continues
          Continues:
            Type: Choice
            Choices: [{Variable: $.continues, BooleanEquals: true, Next: Wait}]
            Default: Over
          Over: {Type: Succeed}
Outputs:
  LoopArn: {Value: !Ref Loop}
"""


class Invocations(ThreadingHTTPServer):
    """Lambda's Invoke API for a function that fails once, and asks for three runs."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.paths: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert isinstance(self.server, Invocations)
        self.server.paths.append(self.path)
        run = len(self.server.paths)
        self.send_response(200)
        if run == 1:
            self.send_header("x-amz-function-error", "Unhandled")
            answer: dict[str, Any] = {"errorType": "Unavailable", "errorMessage": "no table"}
        else:
            answer = {**event, "runs": run, "continues": run < 4}
        body = json.dumps(answer).encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no line per request."""


@pytest.fixture
def functions() -> Iterator[Invocations]:
    with Invocations() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def aws(
    functions: Invocations, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Any, str]]:
    """Start the server with the template's resources; return a client and the machine's ARN."""
    monkeypatch.setenv("MAYFLY_LAMBDA_URL", f"http://{HOST}:{functions.server_port}")
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    command = [sys.executable, "-m", "local.aws.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout
        url = f"http://{HOST}:{json.loads(process.stdout.readline())['port']}"
        template = Template.load(tmp_path / "template.yaml")
        deployed = provision(template, local_session(), url)
        client: Any = boto3.client(
            "stepfunctions", endpoint_url=url, config=Config(proxies={}), region_name="us-east-1"
        )
        yield client, deployed.outputs["LoopArn"]
        process.terminate()


def test_an_execution_loops_over_a_lambda_task_until_it_says_so(
    aws: tuple[Any, str], functions: Invocations
) -> None:
    client, arn = aws
    start = {"stateMachineArn": arn, "name": "c1", "input": json.dumps({"wait_seconds": 1})}
    execution = client.start_execution(**start)["executionArn"]

    assert client.start_execution(**start)["executionArn"] == execution  # a repeated start
    with pytest.raises(ClientError, match="ExecutionAlreadyExists"):
        client.start_execution(**{**start, "input": "{}"})
    ended = _wait_ended(client, execution)

    assert (ended["status"], json.loads(ended["output"])["runs"]) == ("SUCCEEDED", 4)
    assert len(functions.paths) == 4  # one of them failed, and was tried again
    assert all("function%3ACount/" in path for path in functions.paths)
    with pytest.raises(ClientError, match="ExecutionAlreadyExists"):
        client.start_execution(**start)


def _wait_ended(client: Any, execution: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        description: dict[str, Any] = client.describe_execution(executionArn=execution)
        if description["status"] != "RUNNING":
            return description
        time.sleep(0.1)
    raise AssertionError(f"the execution ran for {PATIENCE_S:.0f} s")
