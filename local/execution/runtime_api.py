"""Lambda Runtime API of one execution environment, on its own port.

Sources: docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html; status codes and error types from
aws/aws-lambda-runtime-interface-emulator. awslambdaric accepts only a host and a port, so each
environment has its own server.
"""

import asyncio
import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

import h11

from local.execution.connection import READ_SIZE, Connection, Headers, headers_of
from local.execution.responses import (
    RESPONSE_LIMIT,
    STREAM_LIMIT,
    Answer,
    ResponseStream,
    failure,
    too_large,
)

HOST = "127.0.0.1"
PREFIX = "/2018-06-01/runtime"
INVOCATION = re.compile(rf"{PREFIX}/invocation/([^/]+)/(response|error)")
MODE = "lambda-runtime-function-response-mode"
ERROR_TYPE = "lambda-runtime-function-error-type"
ERROR_BODY = "lambda-runtime-function-error-body"  # base64 of Lambda's error JSON


@dataclass(frozen=True, slots=True)
class Caller:
    """Facts about a function's caller that its context shows."""

    client_context: str | None = None  # JSON
    identity: str | None = None  # JSON, of a caller with Cognito credentials
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """Lambda event with the metadata that the Runtime API adds."""

    request_id: str
    event: bytes
    deadline: float  # seconds since the epoch
    trace_id: str
    caller: Caller = Caller()

    def headers(self, function_arn: str) -> Headers:
        """Return the headers that precede the event in the Runtime API."""
        headers = {
            "Lambda-Runtime-Aws-Request-Id": self.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(self.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": function_arn,
            "Lambda-Runtime-Trace-Id": self.trace_id,
        }
        optional = {
            "Lambda-Runtime-Client-Context": self.caller.client_context,
            "Lambda-Runtime-Cognito-Identity": self.caller.identity,
            "Lambda-Runtime-Aws-Tenant-Id": self.caller.tenant_id,
        }
        return headers | {name: value for name, value in optional.items() if value}


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


@dataclass
class Exchange:
    """Invocation between the Runtime API and the function's process."""

    invocation: Invocation
    # The response, or its stream as soon as that begins.
    reply: "asyncio.Future[Answer | ResponseStream]" = field(default_factory=_future)
    # The same response once it is complete.
    answer: "asyncio.Future[Answer]" = field(default_factory=_future)
    # Done when the process asks for the next event.
    asks_again: "asyncio.Future[Answer | None]" = field(default_factory=_future)
    is_answered: bool = False  # the process has begun to answer

    def begin_answer(self) -> None:
        """Note that the process answers, which it may do once.

        Raises:
            RequestRefused: it already has.
        """
        if self.is_answered:
            raise _wrong_state("InvocationResponse", "InvocationResponse")
        self.is_answered = True

    def complete(self, answer: Answer) -> None:
        """Resolve the answer and the reply; end its stream."""
        if self.answer.done():
            return
        self.answer.set_result(answer)
        if not self.reply.done():
            self.reply.set_result(answer)
        elif isinstance(stream := self.reply.result(), ResponseStream):
            stream.end(answer)


class RequestRefused(Exception):
    """Request of the function's process that the Runtime API rejects."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"errorMessage": message, "errorType": error_type}


class RuntimeApi:
    """Runtime API server of one function process."""

    def __init__(self, function_arn: str) -> None:
        loop = asyncio.get_running_loop()
        # None once the process asks for its first event, or the error of its init.
        self.ready: asyncio.Future[Answer | None] = loop.create_future()
        self._arn = function_arn
        self._exchange: Exchange | None = None
        self._asker: Connection | None = None
        self._offered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Serve on a free port of loopback; return the port."""
        self._server = await asyncio.start_server(self._accept, HOST, 0, limit=READ_SIZE)
        return cast(int, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop serving and close all connections."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def offer(self, exchange: Exchange) -> None:
        """Give an invocation to the process as soon as it asks."""
        self._exchange = exchange
        self._offered.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Connection(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        try:
            while (request := await connection.request()) is not None:
                await self._handle(connection, request)
        except (h11.RemoteProtocolError, ConnectionError):
            pass  # the process broke the connection off
        finally:
            connection.close()

    async def _handle(self, connection: Connection, request: h11.Request) -> None:
        method = request.method.decode()
        path = request.target.decode("latin-1").partition("?")[0]
        try:
            if (method, path) == ("GET", f"{PREFIX}/invocation/next"):
                await self._next(connection)
                return
            if (method, path) == ("POST", f"{PREFIX}/init/error"):
                await self._init_error(connection, headers_of(request))
            elif method == "POST" and (match := INVOCATION.fullmatch(path)):
                await self._result(connection, match[1], match[2], headers_of(request))
            else:
                raise RequestRefused(404, "NotFound", f"{method} {path} is no Runtime API call")
        except RequestRefused as error:
            await connection.respond(error.status, json.dumps(error.body).encode(), {})
        else:
            await connection.respond(202, b'{"status":"OK"}', {})

    async def _next(self, connection: Connection) -> None:
        _resolve(self.ready)
        if self._exchange is not None and not self._offered.is_set():
            if self._exchange.is_answered:
                _resolve(self._exchange.asks_again)
            elif self._asker is connection:
                raise _wrong_state("Running", "Ready")
            else:
                self._offered.set()  # the event was lost with its connection: deliver it again
        self._asker = connection
        await self._offered.wait()
        if self._asker is not connection:
            connection.close()  # the process has asked again on a newer connection
            return
        self._offered.clear()
        exchange = cast(Exchange, self._exchange)
        headers = exchange.invocation.headers(self._arn)
        await connection.respond(200, exchange.invocation.event, headers)

    async def _init_error(self, connection: Connection, headers: Headers) -> None:
        body, _ = await _body(connection)
        if self.ready.done():
            raise _wrong_state("Ready", "InitError")
        self.ready.set_result(_error(headers.get(ERROR_TYPE), body, fatal=True))

    async def _result(
        self, connection: Connection, request_id: str, kind: str, headers: Headers
    ) -> None:
        exchange = self._exchange
        if exchange is None or request_id != exchange.invocation.request_id:
            raise RequestRefused(400, "InvalidRequestID", "Invalid request ID")
        mode = headers.get(MODE, "buffered")
        if mode not in ("buffered", "streaming"):
            message = "Invalid function response mode"
            raise RequestRefused(400, "InvalidFunctionResponseMode", message)
        if kind == "response" and mode == "streaming":
            await _stream(connection, exchange, headers)
            return
        body, size = await _body(connection)
        exchange.begin_answer()
        if size > RESPONSE_LIMIT:
            exchange.complete(too_large(size, RESPONSE_LIMIT))
            raise _entity_too_large(RESPONSE_LIMIT)
        if kind == "error":
            exchange.complete(_error(headers.get(ERROR_TYPE), body))
        else:
            exchange.complete(Answer(body))


async def _body(connection: Connection) -> tuple[bytes, int]:
    """Return a request's body, up to Lambda's limit, and its size."""
    parts, size = [], 0
    async for chunk in connection.chunks():
        size += len(chunk)
        if size <= RESPONSE_LIMIT:
            parts.append(chunk)
    return b"".join(parts), size


async def _stream(connection: Connection, exchange: Exchange, headers: Headers) -> None:
    """Pass a response on chunk by chunk, with its trailers."""
    stream = ResponseStream(headers.get("content-type", "application/octet-stream"))
    exchange.begin_answer()
    exchange.reply.set_result(stream)
    size = 0
    try:
        async for chunk in connection.chunks():
            size += len(chunk)
            if size > STREAM_LIMIT:
                exchange.complete(too_large(size, STREAM_LIMIT))
                raise _entity_too_large(STREAM_LIMIT)
            await stream.put(chunk)
    except (h11.RemoteProtocolError, ConnectionError):
        message = "The response stream ended before it was complete."
        exchange.complete(failure("Runtime.TruncatedResponse", message, fatal=False))
        raise
    error_type = connection.trailers.get(ERROR_TYPE)
    error_body = connection.trailers.get(ERROR_BODY, "")
    if error_type or error_body:
        exchange.complete(_error(error_type, _decoded(error_body)))
    exchange.complete(Answer(b""))


def _resolve(future: "asyncio.Future[Answer | None]") -> None:
    if not future.done():
        future.set_result(None)


def _decoded(error_body: str) -> bytes:
    try:
        return base64.b64decode(error_body, validate=True)
    except binascii.Error as error:
        message = f"trailer Lambda-Runtime-Function-Error-Body is no base64: {error}"
        return json.dumps({"errorType": "Runtime.Unknown", "errorMessage": message}).encode()


def _error(error_type: str | None, body: bytes, fatal: bool = False) -> Answer:
    """Return an error as an answer; its body defaults to its type."""
    document = body or json.dumps({"errorType": error_type or "Runtime.Unknown"}).encode()
    return Answer(document, error=True, fatal=fatal)


def _wrong_state(state: str, new_state: str) -> RequestRefused:
    message = (
        f"State transition from {state} to {new_state} failed for runtime."
        " Error: State transition is not allowed"
    )
    return RequestRefused(403, "InvalidStateTransition", message)


def _entity_too_large(limit: int) -> RequestRefused:
    message = f"Exceeded maximum allowed payload size ({limit} bytes)."
    return RequestRefused(413, "RequestEntityTooLarge", message)
