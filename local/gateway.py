"""API Gateway REST proxy on loopback, with AWS's limits and error replies."""

import asyncio
import base64
import binascii
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from local import events
from local.execution.pool import FunctionPool, PayloadTooLarge, Throttled
from local.execution.responses import StreamBroken
from local.template import Api, GatewayResponse, Route

REQUEST_LIMIT = 10 * 1024 * 1024
TIMEOUT_S = 29.0  # for routes without TimeoutInMillis
IDLE_S = 300.0  # between two chunks of a regional API's stream
STATUSES = range(200, 600)  # a response with another one is not complete, or not HTTP
HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
BODILESS = {204, 304}  # statuses of responses without a body
DELIMITER = bytes(8)  # between the metadata of a stream and its payload
METADATA_LIMIT = 16 << 10  # bytes, with the delimiter
# API Gateway sets these itself and renames the function's.
REMAPPED = {"date", "server", "www-authenticate", "host"}
DROPPED = {"connection", "content-length", "transfer-encoding", "keep-alive", "trailer", "upgrade"}
DEFAULTS = {  # replies for which the template has no GatewayResponse
    "MISSING_AUTHENTICATION_TOKEN": (403, "Missing Authentication Token"),
    "REQUEST_TOO_LARGE": (413, "Request Too Long"),
    "THROTTLED": (429, "Too Many Requests"),
    "INTEGRATION_FAILURE": (502, "Internal server error"),
    "INTEGRATION_TIMEOUT": (504, "Endpoint request timed out"),
}
FAILURES: dict[type[Exception], str] = {  # before a response has begun
    PayloadTooLarge: "REQUEST_TOO_LARGE",
    Throttled: "THROTTLED",
    TimeoutError: "INTEGRATION_TIMEOUT",
    StreamBroken: "INTEGRATION_FAILURE",
}


class Refused(Exception):
    """Request that API Gateway itself rejects; `kind` is its response type."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Gateway:
    """Emulation of API Gateway for one REST API of the template.

    `prefix` precedes every path: "/<stage>", or "" as under a custom domain.
    """

    api: Api
    pools: Mapping[str, FunctionPool]
    prefix: str
    timeout_s: float = TIMEOUT_S
    idle_s: float = IDLE_S

    def app(self) -> web.Application:
        """Return the web application that answers the API's requests."""
        app = web.Application(client_max_size=REQUEST_LIMIT)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer an HTTP request by invoking its route's Lambda function."""
        request_id = str(uuid.uuid4())
        headers = {"x-amzn-RequestId": request_id, "x-amz-apigw-id": uuid.uuid4().hex[:15] + "="}
        try:
            route, event = await self._event(request, request_id)
            if route.streams:
                return await self._stream(request, route, event, headers)
            response = await self._buffer(request, route, event)
        except Refused as refusal:
            response = gateway_response(self.api, refusal.kind, request_id)
        except tuple(FAILURES) as error:
            response = gateway_response(self.api, FAILURES[type(error)], request_id)
        response.headers.update(headers)
        return response

    async def _event(self, request: web.Request, request_id: str) -> tuple[Route, bytes]:
        """Return a request's route, and the event for its function."""
        raw_path, _, query = request.raw_path.partition("?")
        if not (raw_path + "/").startswith(self.prefix + "/"):
            raise Refused("MISSING_AUTHENTICATION_TOKEN")
        path = raw_path.removeprefix(self.prefix) or "/"
        matched = events.match(self.api.routes, path)
        route = (
            events.find_route(self.api.routes, request.method, matched.resource)
            if matched
            else None
        )
        if matched is None or route is None:
            raise Refused("MISSING_AUTHENTICATION_TOKEN")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise Refused("REQUEST_TOO_LARGE") from error
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers
        ]
        received = events.Request(
            request.method, path, raw_path, query, headers, body, request.remote or "127.0.0.1"
        )
        event = events.proxy_event(self.api, received, matched, request_id)
        return route, json.dumps(event).encode()

    async def _buffer(self, request: web.Request, route: Route, event: bytes) -> web.Response:
        """Return a response of the function's whole reply."""
        async with asyncio.timeout(route.timeout_s or self.timeout_s):
            result = await self.pools[route.function].invoke(event)
        if result.error:
            raise Refused("INTEGRATION_FAILURE")
        return proxy_response(self.api, result.payload, request.headers.get("Accept", ""))

    async def _stream(
        self, request: web.Request, route: Route, event: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer with the function's reply, each chunk as it arrives.

        Source: docs.aws.amazon.com/apigateway/latest/developerguide/response-transfer-mode.html.
        """
        deadline = asyncio.get_running_loop().time() + (route.timeout_s or self.timeout_s)
        async with asyncio.timeout_at(deadline):
            call = await self.pools[route.function].open(event)
        async with contextlib.aclosing(call.chunks()) as chunks:
            async with asyncio.timeout_at(deadline):
                response, payload = await streamed_response(chunks)
            response.headers.update(headers)
            await self._relay(request, response, payload, chunks, deadline)
        return response

    async def _relay(
        self,
        request: web.Request,
        response: web.StreamResponse,
        payload: bytes,
        chunks: AsyncIterator[bytes],
        deadline: float,
    ) -> None:
        """Write a stream to the client; close its connection on an error."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + self.idle_s)) as limit:
                await response.prepare(request)
                if request.method == "HEAD" or response.status in BODILESS:
                    return
                if payload:
                    await response.write(payload)
                async for chunk in chunks:
                    limit.reschedule(min(deadline, loop.time() + self.idle_s))
                    await response.write(chunk)
                await response.write_eof()
        except (StreamBroken, TimeoutError):
            if request.transport is not None:
                request.transport.close()  # without the last chunk, by which a client knows
        except ConnectionError:
            pass  # the client has gone; the function goes on


def proxy_response(api: Api, payload: bytes, accept: str) -> web.Response:
    """Convert a Lambda proxy response to an HTTP response.

    Raises:
        Refused: the reply is no valid Lambda proxy response.
    """
    try:
        answer = json.loads(payload)
        if not isinstance(answer, dict):
            raise TypeError(f"{type(answer).__name__} is no proxy response")
        status, headers = _head(answer)
        _check_head(status, headers)
        body = _body(api, answer, accept)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise Refused("INTEGRATION_FAILURE") from error
    response = web.Response(status=status, body=body)
    _add_headers(response, headers)
    return response


async def streamed_response(chunks: AsyncIterator[bytes]) -> tuple[web.StreamResponse, bytes]:
    """Read a stream's metadata; return its response and the payload so far.

    Raises:
        Refused: the stream does not begin with metadata and a delimiter.
    """
    metadata = delimiter = payload = b""
    async for chunk in chunks:
        metadata, delimiter, payload = (metadata + chunk).partition(DELIMITER)
        if delimiter or len(metadata) > METADATA_LIMIT:
            break
    if not delimiter or len(metadata + delimiter) > METADATA_LIMIT:
        raise Refused("INTEGRATION_FAILURE")
    try:
        answer = json.loads(metadata)
        status, headers = _head(answer)
        headers += [("Set-Cookie", str(cookie)) for cookie in answer.get("cookies") or ()]
        _check_head(status, headers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused("INTEGRATION_FAILURE") from error
    response = web.StreamResponse(status=status)
    _add_headers(response, headers)
    return response, payload


def _head(answer: Mapping[str, Any]) -> tuple[int, list[tuple[str, str]]]:
    """Return the status and the headers of a Lambda proxy response."""
    status = int(answer["statusCode"])
    headers = [(name, _text(value)) for name, value in (answer.get("headers") or {}).items()]
    multi = answer.get("multiValueHeaders") or {}
    names = {name.lower() for name in multi}
    headers = [pair for pair in headers if pair[0].lower() not in names]
    headers += [(name, _text(value)) for name, values in multi.items() for value in values]
    return status, headers


def _check_head(status: int, headers: list[tuple[str, str]]) -> None:
    """Check that a status and headers can be sent.

    Raises:
        ValueError: they cannot, by RFC 9110.
    """
    if status not in STATUSES:
        raise ValueError(f"{status} is no status of a whole response")
    for name, value in headers:
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name!r} cannot be sent as a header")


def _add_headers(response: web.StreamResponse, headers: list[tuple[str, str]]) -> None:
    """Add a function's headers to a response as API Gateway does."""
    response.headers.popall("Content-Type", None)
    for name, value in headers:
        if name.lower() in REMAPPED:
            name = f"x-amzn-Remapped-{name}"
        if name.lower() not in DROPPED:
            response.headers.add(name, value)
    response.headers.setdefault("Content-Type", "application/json")


def _body(api: Api, answer: Mapping[str, Any], accept: str) -> bytes:
    body = answer.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise TypeError("body is no string")
    if answer.get("isBase64Encoded") and events.is_binary(api, accept):
        return base64.b64decode(body, validate=True)
    return body.encode()


def gateway_response(api: Api, kind: str, request_id: str) -> web.Response:
    """Return API Gateway's own error reply, from the template's GatewayResponses."""
    default_status, message = DEFAULTS[kind]
    fallback = "DEFAULT_4XX" if default_status < 500 else "DEFAULT_5XX"
    chosen = api.responses.get(kind) or api.responses.get(fallback, GatewayResponse())
    template = chosen.template or '{"message":$context.error.messageString}'
    values = {
        "error.messageString": json.dumps(message),
        "error.message": message,
        "error.responseType": kind,
        "requestId": request_id,
    }
    text = re.sub(r"\$context\.([\w.]+\w)", lambda match: values.get(match[1], ""), template)
    error_type = f"{kind.title().replace('_', '')}Exception"
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error_type, **chosen.headers}
    return web.Response(status=chosen.status or default_status, body=text.encode(), headers=headers)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
