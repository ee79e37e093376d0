"""Streamed responses from a function to an HTTP client, through the whole local stack."""

import base64
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.client import RunningStack, start_stack
from local.execution.processes import ROOT
from tests.integration.local.test_stack import until

pytestmark = pytest.mark.timeout(240)
STREAMS = 50  # at once

CODE = '''
import json, pathlib, time
from functions.runtime.replies import StreamedReply

def numbers(do):
    """Yield numbered lines; wait for a file before one of them, or fail."""
    while do.get("waits_silently") and not pathlib.Path(do["file"]).exists():
        time.sleep(0.01)
    for number in range(do["chunks"]):
        if number == do.get("waits_before"):
            yield b""  # sends the head
            while not pathlib.Path(do["file"]).exists():
                time.sleep(0.01)
        if number == do.get("fails_at"):
            raise ValueError("the tenth is missing")
        yield b"%d\\n" % number
        time.sleep(do.get("pause_s", 0))
    print("made all")

def talk(event, context):
    do = json.loads(event["body"] or '{"chunks": 2}') if "body" in event else event
    if "plain" in do:
        return {"statusCode": 200, "body": do["plain"]}
    kind = {"Content-Type": "text/event-stream"}
    return StreamedReply(do.get("status", 201), kind, numbers(do), **do.get("head", {}))
'''
TEMPLATE = """
Globals:
  Function:
    Handler: code.talk
    Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /var/task/functions/runtime/start}}
Resources:
  Talk:
    Type: AWS::Serverless::Function
    Properties:
      Timeout: 600
      Events:
        Stream:
          Type: Api
          Properties:
            Path: /stream
            Method: ANY
            ResponseTransferMode: RESPONSE_STREAM
            TimeoutInMillis: 900000
        Short:
          Type: Api
          Properties: {Path: /short, Method: POST, ResponseTransferMode: RESPONSE_STREAM}
        Whole: {Type: Api, Properties: {Path: /whole, Method: POST, TimeoutInMillis: 29000}}
  Brief:
    Type: AWS::Serverless::Function
    Properties:
      Timeout: 2
      Events:
        Stream:
          Type: Api
          Properties:
            Path: /brief
            Method: POST
            ResponseTransferMode: RESPONSE_STREAM
            TimeoutInMillis: 29000
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    project = tmp_path_factory.mktemp("project")
    (project / "template.yaml").write_text(TEMPLATE)
    (project / "code.py").write_text(CODE)
    (project / "functions").symlink_to(ROOT / "functions")
    limits = ("--concurrency", str(STREAMS), "--api-timeout", "5")
    with start_stack(
        project / "template.yaml",
        state_dir=project / "state",
        arguments=("--code-root", str(project), *limits),
    ) as running:
        yield running


@contextlib.contextmanager
def post(
    stack: RunningStack, path: str = "/stream", **do: Any
) -> Iterator[http.client.HTTPResponse]:
    """Send a request; yield the response, whose body is still to be read."""
    connection = http.client.HTTPConnection(stack.root_url.split("/")[2], timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(do))
        yield connection.getresponse()


def lines(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(count))


def test_the_first_chunk_arrives_before_the_tenth_is_made(
    stack: RunningStack, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    do = {"chunks": 200, "pause_s": 0.01, "waits_before": 9, "file": str(seen)}
    with post(stack, **do) as response:
        first = response.readline()
        seen.touch()  # without this file, the function makes no tenth chunk
        rest = response.read()

    assert response.status == 201
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["transfer-encoding"] == "chunked"
    assert {"x-amzn-requestid", "x-amz-apigw-id"} <= {name.lower() for name in response.headers}
    assert first + rest == lines(200)


def test_the_head_arrives_before_the_first_chunk_is_made(
    stack: RunningStack, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    head = {"cookies": ["a=1", "b=2"], "multi_value_headers": {"x-many": ["1", "2"]}}
    with post(stack, chunks=1, waits_before=0, file=str(seen), head=head) as response:
        seen.touch()
        body = response.read()

    assert body == lines(1)
    assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert response.headers.get_all("x-many") == ["1", "2"]


def test_a_response_without_a_body_drops_the_stream(stack: RunningStack) -> None:
    connection = http.client.HTTPConnection(stack.root_url.split("/")[2], timeout=120)
    with contextlib.closing(connection):
        replies = []
        for method, status in (("HEAD", 201), ("POST", 204), ("POST", 201)):  # on one connection
            connection.request(method, "/stream", json.dumps({"chunks": 2, "status": status}))
            response = connection.getresponse()
            replies.append((response.status, response.read()))

    assert replies == [(201, b""), (204, b""), (201, lines(2))]


def test_an_error_in_the_middle_breaks_the_stream(stack: RunningStack) -> None:
    with (
        post(stack, chunks=20, fails_at=10) as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()

    assert error.value.partial == lines(10)
    until(lambda: "the response stream broke" in stack.log("Talk"))
    assert '"errorMessage": "the tenth is missing"' in stack.log("Talk")
    with post(stack, chunks=1) as response:
        assert response.read() == lines(1)


def test_a_functions_timeout_breaks_the_stream(stack: RunningStack, tmp_path: Path) -> None:
    do = {"chunks": 20, "waits_before": 10, "file": str(tmp_path / "never")}
    with (
        post(stack, "/brief", **do) as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()

    assert error.value.partial == lines(10)
    until(lambda: "Runtime.StreamTimedOut" in stack.log("Brief"))


def test_many_streams_run_at_once(stack: RunningStack, tmp_path: Path) -> None:
    go = tmp_path / "go"

    def read_first(number: int) -> tuple[contextlib.ExitStack, http.client.HTTPResponse, bytes]:
        exits = contextlib.ExitStack()
        do = {"chunks": 20, "waits_before": 1, "file": str(go)}
        response = exits.enter_context(post(stack, **do))
        return exits, response, response.readline()

    with ThreadPoolExecutor(STREAMS) as threads:
        streams = list(threads.map(read_first, range(STREAMS)))
        assert [first for _, _, first in streams] == [b"0\n"] * STREAMS
        assert {each["state"] for each in stack.environments("Talk")} == {"busy"}
        go.touch()
        for exits, response, first in streams:
            with exits:
                assert first + response.read() == lines(20)


def test_a_function_goes_on_when_its_client_has_gone(stack: RunningStack, tmp_path: Path) -> None:
    stack.recycle("Talk")
    seen = tmp_path / "seen"
    before = stack.log("Talk").count("made all")
    with post(stack, chunks=2000, waits_before=1, file=str(seen)) as response:
        response.readline()
    seen.touch()

    until(lambda: stack.log("Talk").count("made all") > before)
    until(lambda: [each["state"] for each in stack.environments("Talk")] == ["idle"])
    with post(stack, chunks=3) as response:
        assert response.read() == lines(3)
    assert len(stack.environments("Talk")) == 1


def test_a_client_that_leaves_before_the_head_is_no_error(
    stack: RunningStack, tmp_path: Path
) -> None:
    stack.recycle("Talk")
    go = tmp_path / "go"
    host, _, port = stack.root_url.split("/")[2].partition(":")
    body = json.dumps({"chunks": 1, "waits_silently": True, "file": str(go)}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: [each["state"] for each in stack.environments("Talk")] == ["busy"])
    until(lambda: client_connections(stack, port) == 0)
    go.touch()

    until(lambda: [each["state"] for each in stack.environments("Talk")] == ["idle"])
    assert "Traceback" not in (stack.log_dir.parent / "stack.log").read_text()


def client_connections(stack: RunningStack, port: str) -> int:
    connections = psutil.Process(stack.pid).net_connections(kind="tcp")
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == int(port)
        for each in connections
    )


def test_a_stream_may_outlast_the_default_timeout(stack: RunningStack, tmp_path: Path) -> None:
    go, never = tmp_path / "go", tmp_path / "never"
    with post(stack, chunks=2, waits_before=1, file=str(go)) as response:
        first = response.readline()
        with (
            post(stack, "/short", chunks=2, waits_before=1, file=str(never)) as cut,
            pytest.raises(http.client.IncompleteRead),  # after --api-timeout
        ):
            cut.read()
        go.touch()
        never.touch()
        assert first + response.read() == lines(2)


def test_replies_of_the_other_transfer_mode(stack: RunningStack) -> None:
    for path, do, status, body in (
        ("/stream", {"plain": "x"}, 502, b'{"message":"Internal server error"}'),
        ("/whole", {"plain": "x"}, 200, b"x"),
        ("/whole", {"chunks": 3}, 502, b'{"message":"Internal server error"}'),
    ):
        with post(stack, path, **do) as response:
            assert (response.status, response.read()) == (status, body), (path, do)


def test_an_invocation_returns_a_stream_as_a_whole(stack: RunningStack) -> None:
    payload = json.dumps({"chunks": 3, "status": 204}).encode()
    answer = stack.client("lambda").invoke(FunctionName="Talk", Payload=payload)

    assert "FunctionError" not in answer
    metadata, _, body = answer["Payload"].read().partition(bytes(8))
    assert (json.loads(metadata)["statusCode"], body) == (204, lines(3))


def test_boto3_reads_the_events_of_a_stream(stack: RunningStack, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    payload = {"chunks": 5, "waits_before": 2, "file": str(seen), "fails_at": 4}
    answer = stack.client("lambda").invoke_with_response_stream(
        FunctionName="Talk", Payload=json.dumps(payload).encode(), LogType="Tail"
    )
    events = iter(answer["EventStream"])
    metadata, first = (next(events)["PayloadChunk"]["Payload"] for _ in range(2))
    seen.touch()
    *chunks, complete = events

    assert metadata.endswith(bytes(8))
    payloads = [chunk["PayloadChunk"]["Payload"] for chunk in chunks]
    assert b"".join([first, *payloads]) == lines(4)
    end = complete["InvokeComplete"]
    assert end["ErrorCode"] == "ValueError"
    assert json.loads(end["ErrorDetails"])["errorMessage"] == "the tenth is missing"
    assert b"the response stream broke" in base64.b64decode(end["LogResult"])


def test_boto3_reads_an_ordinary_reply_as_one_event(stack: RunningStack) -> None:
    answer = stack.client("lambda").invoke_with_response_stream(
        FunctionName="Talk", Payload=b'{"plain": "x"}'
    )
    chunk, complete = answer["EventStream"]

    assert json.loads(chunk["PayloadChunk"]["Payload"])["body"] == "x"
    assert complete == {"InvokeComplete": {}}


def test_no_connection_is_left_behind(stack: RunningStack) -> None:
    for function in ("Talk", "Brief"):
        stack.recycle(function)

    def connections() -> list[Any]:
        established = psutil.Process(stack.pid).net_connections(kind="tcp")
        return [each for each in established if each.status == psutil.CONN_ESTABLISHED]

    until(lambda: not connections())
    assert stack.environments("Talk") == []
