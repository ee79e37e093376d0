"""Execution environments against the behaviour of Lambda's Runtime API."""

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from local.execution.environment import Place
from local.execution.logs import FunctionLog
from local.execution.pool import FunctionPool
from local.execution.processes import Janitor
from local.execution.responses import Answer, ResponseStream, StreamBroken
from local.execution.runtime_api import Caller, Exchange, Invocation, RuntimeApi
from local.template import Template

pytestmark = pytest.mark.timeout(120)
T = TypeVar("T")
PATIENCE_S = 60  # only a broken test waits so long

TEMPLATE = """
Globals: {Function: {Handler: code.act, Timeout: 60}}
Resources:
  Plain: {Type: "AWS::Serverless::Function"}
  Wrapped:
    Type: AWS::Serverless::Function
    Properties: {Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /var/task/bin/start}}}
  Busy:
    Type: AWS::Serverless::Function
    Properties: {Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /var/task/bin/busy}}}
  Brief:
    Type: AWS::Serverless::Function
    Properties:
      Timeout: 2
      Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /var/task/bin/busy}}
  Lost:
    Type: AWS::Serverless::Function
    Properties: {Environment: {Variables: {AWS_LAMBDA_EXEC_WRAPPER: /opt/none}}}
"""
CODE = '''
import http.client, json, os, pathlib, time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]

def answer(context, document):
    """Post an invocation's answer, as a runtime client does."""
    connection = http.client.HTTPConnection(API)
    path = f"/2018-06-01/runtime/invocation/{context.aws_request_id}/response"
    connection.request("POST", path, json.dumps(document))
    return connection

def act(event, context):
    do = event.get("do")
    if do == "answer and exit":
        pathlib.Path(event["ready"]).touch()
        while not pathlib.Path(event["go"]).exists():
            time.sleep(0.01)
        answer(context, {"pid": os.getpid(), "filler": "x" * (1 << 20)})
        os._exit(0)
    if do == "context":
        return {
            "tenant": context.tenant_id,
            "identity": context.identity.cognito_identity_id,
            "client": context.client_context.custom,
        }
    return {"pid": os.getpid(), "variables": dict(os.environ)}
'''
BUSY_CLIENT = """
import http.client, json, os, pathlib, time

api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])

def call(method, path, body=None):
    api.request(method, "/2018-06-01/runtime/invocation/" + path, body)
    response = api.getresponse()
    return response.headers, response.read()

while True:
    headers, event = call("GET", "next")
    request_id = headers["Lambda-Runtime-Aws-Request-Id"]
    if json.loads(event).get("stream"):
        api.putrequest("POST", "/2018-06-01/runtime/invocation/" + request_id + "/response")
        api.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
        api.putheader("Transfer-Encoding", "chunked")
        api.endheaders(b"3\\r\\none\\r\\n")
        time.sleep(600)
    call("POST", request_id + "/response", json.dumps(os.getpid()))
    print("answered", flush=True)
    while not pathlib.Path(json.loads(event)["path"]).exists():
        time.sleep(0.01)
    print("worked", flush=True)
"""
WRAPPER = """#!/bin/sh
export GIVEN="$*"
python=$1
shift
exec "$python" -X utf8 "$@"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A template with the code of its functions and a wrapper script."""
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "busy.py").write_text(BUSY_CLIENT)
    (tmp_path / "bin").mkdir()
    for name, script in (("start", WRAPPER), ("busy", '#!/bin/sh\nexec "$1" busy.py\n')):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def janitor() -> Iterator[Janitor]:
    """The process that ends what a failed test leaves behind."""
    janitor = Janitor()
    yield janitor
    janitor.close()


def run(
    project: Path, janitor: Janitor, function: str, work: Callable[[FunctionPool], Awaitable[T]]
) -> T:
    """Await `work` on a pool of a function of the project's template."""

    async def with_pool() -> T:
        place = Place("http://127.0.0.1:9", project, janitor, project)
        log = FunctionLog(project, function)
        functions = Template.load(project / "template.yaml").functions
        pool = FunctionPool(functions[function], place, log)
        try:
            return await work(pool)
        finally:
            await pool.stop()
            log.close()

    return asyncio.run(with_pool())


async def call(pool: FunctionPool, **event: Any) -> Any:
    return json.loads((await pool.invoke(json.dumps(event).encode())).payload)


def has_ended(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


# --- processes ---


def test_a_wrapper_script_starts_the_function(project: Path, janitor: Janitor) -> None:
    variables = run(project, janitor, "Wrapped", call)["variables"]

    assert variables["GIVEN"].endswith("python -m awslambdaric code.act")
    assert variables["PYTHONPATH"].split(":")[0] == variables["LAMBDA_TASK_ROOT"] == str(project)
    assert "awslambdaric" in {
        each.name for path in variables["PYTHONPATH"].split(":") for each in Path(path).iterdir()
    }


def test_a_missing_wrapper_script_is_named(project: Path, janitor: Janitor) -> None:
    error = run(project, janitor, "Lost", call)

    assert error["errorType"] == "Runtime.InvalidEntrypoint"
    assert error["errorMessage"].endswith("fork/exec /opt/none: No such file or directory")


def test_a_process_may_end_with_its_answer(project: Path, janitor: Janitor) -> None:
    async def calls(pool: FunctionPool) -> list[Any]:
        answers = []
        for number in range(3):
            ready, go = project / f"ready-{number}", project / f"go-{number}"
            event = {"do": "answer and exit", "ready": str(ready), "go": str(go)}
            answer = asyncio.create_task(call(pool, **event))
            while not ready.exists():
                await asyncio.sleep(0.01)
            go.touch()
            while not has_ended(pool.environments()[-1]["pid"]):
                time.sleep(0.01)  # keeps the loop from reading the answer before the exit
            answers.append(await answer)
        return answers

    pids = {answer["pid"] for answer in run(project, janitor, "Plain", calls)}

    assert len(pids) == 3
    assert not any(map(psutil.pid_exists, pids))


def test_the_caller_has_its_answer_while_the_process_works_on(
    project: Path, janitor: Janitor
) -> None:
    log, signal_path = project / "Busy.log", project / "go"

    async def calls(pool: FunctionPool) -> tuple[list[Any], str]:
        pids = [await call(pool, path=str(signal_path))]
        before = log.read_text()
        signal_path.touch()
        pids.append(await call(pool, path=str(signal_path)))
        return pids, before

    pids, before = run(project, janitor, "Busy", calls)

    assert pids[0] == pids[1]
    assert "worked" not in before
    words = [line.split()[0] for line in log.read_text().splitlines()]
    assert words[:6] == ["START", "answered", "worked", "END", "REPORT", "START"]


def test_work_after_the_answer_ends_at_the_timeout(project: Path, janitor: Janitor) -> None:
    async def calls(pool: FunctionPool) -> list[Any]:
        pids = [await call(pool, path=str(project / "never"))]
        await asyncio.wait(pool._running, timeout=PATIENCE_S)
        return [*pids, await call(pool, path=str(project))]

    pids = run(project, janitor, "Brief", calls)

    assert pids[0] != pids[1]
    log = (project / "Brief.log").read_text()
    assert "Task timed out after 2.00 seconds" in log
    assert log.count("Status: timeout") == 1


def test_a_timeout_in_the_middle_breaks_the_stream(project: Path, janitor: Janitor) -> None:
    async def read(pool: FunctionPool) -> tuple[bytes, str]:
        chunks = (await pool.open(b'{"stream": true}')).chunks()
        first = await anext(chunks)
        with pytest.raises(StreamBroken) as error:
            await anext(chunks)
        await asyncio.wait(pool._running, timeout=PATIENCE_S)
        return first, str(error.value)

    chunk, reason = run(project, janitor, "Brief", read)

    assert chunk == b"one"
    assert "Sandbox.Timedout" in reason
    log = (project / "Brief.log").read_text()
    assert "the response stream broke" in log
    assert "Status: timeout" in log


def test_a_functions_context_shows_its_caller(project: Path, janitor: Janitor) -> None:
    caller = Caller('{"custom": {"a": "b"}}', '{"cognitoIdentityId": "id-1"}', "tenant-1")

    async def context(pool: FunctionPool) -> Any:
        return json.loads((await pool.invoke(b'{"do": "context"}', caller)).payload)

    assert run(project, janitor, "Plain", context) == {
        "tenant": "tenant-1",
        "identity": "id-1",
        "client": {"a": "b"},
    }


# --- the protocol ---


class Client:
    """Runtime client that sends raw HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        """Send a request; return the status of its response."""
        self.begin(method, path, **headers, Content_Length=str(len(body)))
        self.writer.write(body)
        return await self.status()

    def begin(self, method: str, path: str, **headers: str) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"{method} /2018-06-01/runtime/{path} HTTP/1.1", "Host: x", *lines, "", ""]
        self.writer.write("\r\n".join(head).encode())

    def begin_stream(self, request_id: str) -> None:
        mode = {"Lambda_Runtime_Function_Response_Mode": "streaming"}
        path = f"invocation/{request_id}/response"
        self.begin("POST", path, **mode, Transfer_Encoding="chunked", Content_Type="text/x")

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self, *trailers: str) -> None:
        self.writer.write("\r\n".join(["0", *trailers, "", ""]).encode())

    async def status(self) -> int:
        """Read a response with its body; return its status."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.headers = dict(line.split(": ", 1) for line in head.splitlines()[1:-1])
        self.body = await self.reader.readexactly(int(self.headers["content-length"]))
        return int(head.split()[1])


Work = Callable[[RuntimeApi, Callable[[], Awaitable[Client]]], Awaitable[T]]


def serve(work: Work[T]) -> T:
    """Await `work` on a Runtime API and a function that connects to it."""

    async def with_api() -> T:
        api = RuntimeApi("arn")
        port = await api.start()
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
            return clients[-1]

        try:
            return await asyncio.wait_for(work(api, connect), PATIENCE_S)
        finally:
            for client in clients:
                client.writer.close()
            await api.close()

    return asyncio.run(with_api())


async def settle() -> None:
    """Let the server and its clients do all that they can do without waiting."""
    for _ in range(10_000):
        await asyncio.sleep(0)


def offer(api: RuntimeApi, request_id: str = "1") -> Exchange:
    exchange = Exchange(Invocation(request_id, b'{"event": 1}', 1.5, "trace"))
    api.offer(exchange)
    return exchange


def test_status_codes_are_lambdas() -> None:
    async def talk(
        api: RuntimeApi, connect: Callable[[], Awaitable[Client]]
    ) -> list[tuple[int, str]]:
        client, replies = await connect(), []

        async def send(*arguments: Any, **headers: str) -> None:
            status = await client.send(*arguments, **headers)
            replies.append((status, json.loads(client.body).get("errorType", "")))

        await send("POST", "invocation/1/response", b"{}")
        exchange = offer(api)
        await send("GET", "invocation/next")
        await send("GET", "invocation/next")
        await send("POST", "invocation/2/response", b"{}")
        mode = {"Lambda_Runtime_Function_Response_Mode": "trickle"}
        await send("POST", "invocation/1/response", b"{}", **mode)
        await send("POST", "invocation/1/response", b"x" * 6_291_557)
        await send("POST", "invocation/1/response", b"{}")
        await send("POST", "init/error", b"{}")
        await send("GET", "anything")
        assert b"Function.ResponseSizeTooLarge" in exchange.answer.result().payload
        return replies

    assert serve(talk) == [
        (400, "InvalidRequestID"),
        (200, ""),
        (403, "InvalidStateTransition"),
        (400, "InvalidRequestID"),
        (400, "InvalidFunctionResponseMode"),
        (413, "RequestEntityTooLarge"),
        (403, "InvalidStateTransition"),
        (403, "InvalidStateTransition"),
        (404, "NotFound"),
    ]


@pytest.mark.parametrize("is_sent", [False, True], ids=["before the event", "after the event"])
def test_an_event_whose_connection_broke_is_delivered_again(is_sent: bool) -> None:
    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> bytes:
        first, second = await connect(), await connect()
        first.begin("GET", "invocation/next")
        await api.ready
        if is_sent:
            exchange = offer(api)
            await first.status()
        first.writer.close()
        await first.reader.read()
        if not is_sent:
            exchange = offer(api)
        assert await second.send("GET", "invocation/next") == 200
        assert second.headers["lambda-runtime-aws-request-id"] == "1"
        assert await second.send("POST", "invocation/1/response", b"done") == 202
        return (await exchange.answer).payload

    assert serve(talk) == b"done"


def test_an_event_goes_to_the_newest_request() -> None:
    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> int:
        first, second = await connect(), await connect()
        for client in (first, second):
            client.begin("GET", "invocation/next")
            await settle()
        offer(api)
        assert await first.reader.read() == b""
        return await second.status()

    assert serve(talk) == 200


def test_a_stream_is_passed_on_chunk_by_chunk() -> None:
    async def talk(
        api: RuntimeApi, connect: Callable[[], Awaitable[Client]]
    ) -> tuple[str, list[bytes]]:
        client, exchange, chunks = await connect(), offer(api), []
        await client.send("GET", "invocation/next")
        client.begin_stream("1")
        stream = await exchange.reply
        assert isinstance(stream, ResponseStream)
        reader = stream.chunks()
        for number in range(3):  # the next chunk is made when the one before was read
            client.chunk(b"%d" % number)
            chunks.append(await anext(reader))
        client.end_stream()
        assert await anext(reader, None) is None
        assert await client.status() == 202
        return stream.content_type, chunks

    assert serve(talk) == ("text/x", [b"0", b"1", b"2"])


def test_a_slow_reader_slows_the_function() -> None:
    chunk, total = bytes(1 << 20), 64

    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> int:
        client, exchange, sent = await connect(), offer(api), []
        await client.send("GET", "invocation/next")
        client.begin_stream("1")

        async def write() -> None:
            for _ in range(total):
                client.chunk(chunk)
                await client.writer.drain()
                sent.append(len(chunk))
            client.end_stream()

        writing = asyncio.create_task(write())
        stream = await exchange.reply
        assert isinstance(stream, ResponseStream)
        await settle()
        lead = sum(sent)
        assert sum([len(part) async for part in stream.chunks()]) == total * len(chunk)
        await writing
        return lead

    assert serve(talk) < 32 << 20


@pytest.mark.parametrize(
    ("trailers", "payload"),
    [
        (
            (
                "Lambda-Runtime-Function-Error-Type: Bad",
                f"Lambda-Runtime-Function-Error-Body: {base64.b64encode(b'{}').decode()}",
            ),
            "{}",
        ),
        (("Lambda-Runtime-Function-Error-Type: Bad",), '{"errorType": "Bad"}'),
        (("Lambda-Runtime-Function-Error-Body: !",), "Runtime.Unknown"),
        (None, "Runtime.TruncatedResponse"),
    ],
    ids=["type and body", "type", "no base64", "connection broke"],
)
def test_a_broken_stream_says_why(trailers: tuple[str, ...] | None, payload: str) -> None:
    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> tuple[bytes, str]:
        client, exchange = await connect(), offer(api)
        await client.send("GET", "invocation/next")
        client.begin_stream("1")
        client.chunk(b"part")
        if trailers is None:
            client.writer.close()
        else:
            client.end_stream(*trailers)
        stream = await exchange.reply
        assert isinstance(stream, ResponseStream)
        reader = stream.chunks()
        chunk = await anext(reader)
        with pytest.raises(StreamBroken) as error:
            await anext(reader)
        return chunk, str(error.value)

    chunk, reason = serve(talk)

    assert chunk == b"part"
    assert payload in reason


def test_an_abandoned_stream_is_read_to_its_end() -> None:
    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> Answer:
        client, exchange = await connect(), offer(api)
        await client.send("GET", "invocation/next")
        client.begin_stream("1")
        stream = await exchange.reply
        assert isinstance(stream, ResponseStream)
        stream.abandon()
        for _ in range(100):
            client.chunk(bytes(1 << 20))
            await client.writer.drain()
        client.end_stream()
        assert await client.status() == 202
        return await exchange.answer

    assert serve(talk) == Answer(b"")


def test_a_closed_api_leaves_no_connection() -> None:
    async def talk(api: RuntimeApi, connect: Callable[[], Awaitable[Client]]) -> socket.socket:
        client = await connect()
        client.begin("GET", "invocation/next")
        await api.ready
        await api.close()
        assert await client.reader.read() == b""
        return client.writer.get_extra_info("socket").family

    assert serve(talk) == socket.AF_INET
