"""Fake Lambda Runtime API on loopback that plays a script and records what it receives.

Trailers, chunks and connections are recorded as they arrive. When the script is over, a request
for the next event is held open, as Lambda holds an idle environment.
"""

import json
import os
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
ARN = "arn:aws:lambda:us-east-1:123456789012:function:Tested"
PATIENCE_S = 60.0  # generous: a busy machine makes no test fail
TIMEOUT_S = 30.0  # of an invocation that names no other


@dataclass(frozen=True)
class Event:
    """Next event in a script, and how the API treats its delivery and its reply."""

    body: bytes = b"{}"
    headers: Mapping[str, str | None] = field(default_factory=dict)
    remaining_s: float = TIMEOUT_S
    chunk_bytes: int = 0  # above 0: delivered in chunks of this size
    status: int = 200
    # Connections closed before this event is delivered, and before its reply is acknowledged.
    broken_deliveries: int = 0
    broken_replies: int = 0
    reply_status: int = 202
    closing: bool = False  # the acknowledgement closes the connection
    # Chunks of a streamed reply after which the connection is closed, or nothing more is read.
    hang_up_after: int = 0
    reset_after: int = 0  # the connection is reset
    answer_after: int = 0  # the API answers with `reply_status` and reads no more
    stop_reading_after: int = 0
    pieces: int = 1  # writes in which head and body arrive


@dataclass
class Post:
    """Request that reached the API: a reply, an error, or an error of INIT."""

    path: str
    headers: dict[str, str]
    connection: int
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    arrived_at: float = field(default_factory=time.time)

    @property
    def kind(self) -> str:
        """Return the last segment of the path: response, error."""
        return self.path.rpartition("/")[2]

    @property
    def json(self) -> object:
        return json.loads(self.body)


class FakeRuntimeApi:
    """Runtime API with a thread for each connection; one function process at a time."""

    def __init__(self, script: Iterable[Event] = ()) -> None:
        self._script = list(script)
        self._delivered = 0
        self._deliveries_broken = 0
        self._replies_broken = 0
        self.posts: list[Post] = []
        self.asked = 0  # requests for the next event
        self.connections = 0
        self.user_agents: set[str] = set()
        self.idle = threading.Event()  # the script is over, and the next event was asked for
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on what was received holds."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), "it did not come true"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(connection)
            self.connections += 1
            arguments = (connection, self.connections)
            threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as reader:
            while request := _read_head(reader):
                method, path, headers = request
                self.user_agents.add(headers.get("user-agent", ""))
                if method == "GET":
                    go_on = self._deliver(connection)
                else:
                    go_on = self._receive(connection, reader, Post(path, headers, number))
                if not go_on:
                    connection.shutdown(socket.SHUT_RDWR)
                    return

    def _deliver(self, connection: socket.socket) -> bool:
        self.asked += 1
        if self._delivered == len(self._script):
            self.idle.set()
            return _wait_for_end(connection)
        event = self._script[self._delivered]
        if self._deliveries_broken < event.broken_deliveries:
            self._deliveries_broken += 1
            return False
        self._delivered += 1
        self._deliveries_broken = self._replies_broken = 0
        values = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": f"request-{self._delivered}",
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + event.remaining_s) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
            "Lambda-Runtime-Trace-Id": f"Root=1-0-{self._delivered};Sampled=0",
            **event.headers,
        }
        headers = {name: value for name, value in values.items() if value is not None}
        if event.chunk_bytes:
            headers["Transfer-Encoding"] = "chunked"
            body = _chunked(event.body, event.chunk_bytes)
        else:
            headers["Content-Length"] = str(len(event.body))
            body = event.body
        message = _head(event.status, headers) + body
        step = -(-len(message) // event.pieces)
        for start in range(0, len(message), step):
            connection.sendall(message[start : start + step])
            if event.pieces > 1:
                time.sleep(0.001)  # so that the client meets a part of the message
        return True

    def _receive(self, connection: socket.socket, reader: BinaryIO, post: Post) -> bool:
        event = self._script[self._delivered - 1] if self._delivered else Event()
        with self._changed:
            self.posts.append(post)
            self._changed.notify_all()
        if post.headers.get("transfer-encoding") == "chunked":
            if not self._receive_chunks(connection, reader, post, event):
                return False
        else:
            post.body = reader.read(int(post.headers["content-length"]))
        with self._changed:
            post.complete = True
            self._changed.notify_all()
        if self._replies_broken < event.broken_replies:
            self._replies_broken += 1
            return False
        status = event.reply_status if post.kind == "response" else 202
        body = b'{"status":"OK"}\n'
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        headers |= {"Connection": "close"} if event.closing else {}
        connection.sendall(_head(status, headers) + body)
        return not event.closing

    def _receive_chunks(
        self, connection: socket.socket, reader: BinaryIO, post: Post, event: Event
    ) -> bool:
        while size := int(reader.readline() or b"0", 16):
            chunk = reader.read(size)
            reader.readline()
            with self._changed:
                post.chunks.append(chunk)
                self._changed.notify_all()
            if len(post.chunks) == event.hang_up_after:
                return False
            if len(post.chunks) == event.reset_after:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                return False
            if len(post.chunks) == event.answer_after:
                connection.sendall(_head(event.reply_status, {"Content-Length": "0"}))
                return _wait_for_end(connection)
            if len(post.chunks) == event.stop_reading_after:
                return _wait_for_end(connection)
        while (line := reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            post.trailers[name.lower()] = value.strip()
        post.body = b"".join(post.chunks)
        return line == b"\r\n"


def _read_head(reader: BinaryIO) -> tuple[str, str, dict[str, str]] | None:
    first = reader.readline().decode()
    if not first:
        return None
    method, path, _ = first.split()
    headers = {}
    while (line := reader.readline().decode().strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return method, path, headers


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} As Planned", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "\r\n"]).encode()


def _chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _wait_for_end(connection: socket.socket) -> bool:
    """Wait until a connection is shut down or broken, without reading from it."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll(PATIENCE_S * 1000)
    return False


@dataclass(frozen=True)
class Ended:
    """Ended function process: its exit status, None if it had to be ended, and its output."""

    status: int | None
    output: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


AWS, MAYFLY = "aws", "mayfly"


def command(client: str) -> list[str]:
    """Return the command with which Lambda starts a function under a runtime client."""
    original = [sys.executable, "-m", "awslambdaric"]
    return original if client == AWS else [str(ROOT / "functions/runtime/start"), *original]


def environment(client: str, api: str, handler: str, root: Path, **more: str) -> dict[str, str]:
    """Return the variables that Lambda sets for a function process."""
    packages = sysconfig.get_path("purelib")
    return {
        "PATH": os.environ["PATH"],
        "LANG": "en_US.UTF-8",
        "PYTHONPATH": os.pathsep.join((str(root), str(ROOT), packages)),
        "LAMBDA_TASK_ROOT": str(ROOT if client == MAYFLY else root),
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_NAME": "Tested",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/Tested",
        "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
        "AWS_LAMBDA_RUNTIME_API": api,
        "_HANDLER": handler,
        **more,
    }


@dataclass
class FunctionProcess:
    """Process of a function under a runtime client; its output goes to a file."""

    process: subprocess.Popen[bytes]
    _output: BinaryIO

    def output(self) -> str:
        """Return what the process has written to standard output and error."""
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def has_ended(self, idle: threading.Event) -> bool:
        """Wait until the process ends or the script is over; return True if it ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return True
            if idle.wait(0.005):
                return False
        raise TimeoutError(f"neither ended nor idle: {self.output()}")


@contextmanager
def started(
    client: str,
    api: FakeRuntimeApi,
    handler: str,
    root: Path = ROOT,
    descriptors: tuple[int, ...] = (),
    **more: str,
) -> Iterator[FunctionProcess]:
    """Start a function process under a runtime client, connected to a fake Runtime API."""
    variables = environment(client, api.address, handler, root, **more)
    with running([*command(client), handler], variables, api, root, descriptors) as function:
        yield function


@contextmanager
def running(
    arguments: Sequence[str],
    variables: Mapping[str, str],
    api: FakeRuntimeApi,
    folder: Path = ROOT,
    descriptors: tuple[int, ...] = (),
) -> Iterator[FunctionProcess]:
    """Run a function's process; end it and the Runtime API at the end."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            arguments,
            env=variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield FunctionProcess(process, output)
        finally:
            process.kill()
            process.wait()
            api.close()


def play(
    client: str, handler: str, script: Iterable[Event] = (), root: Path = ROOT, **more: str
) -> tuple[FakeRuntimeApi, Ended]:
    """Run a function until its script is over or its process ends; return what was recorded."""
    api = FakeRuntimeApi(script)
    with started(client, api, handler, root, **more) as function:
        ended = function.has_ended(api.idle)
        status = function.wait() if ended else None
        return api, Ended(status, function.output())
