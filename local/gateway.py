"""API Gateway REST proxy on loopback, with AWS's limits and error replies."""

import asyncio
import base64
import binascii
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from local import events
from local.execution.pool import FunctionPool, PayloadTooLarge, Throttled
from local.template import Api, GatewayResponse

REQUEST_LIMIT = 10 * 1024 * 1024
TIMEOUT_S = 29.0
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

    def app(self) -> web.Application:
        """Return the web application that answers the API's requests."""
        app = web.Application(client_max_size=REQUEST_LIMIT)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Answer an HTTP request by invoking its route's Lambda function."""
        request_id = str(uuid.uuid4())
        try:
            response = await self._call(request, request_id)
        except Refused as refusal:
            response = gateway_response(self.api, refusal.kind, request_id)
        response.headers["x-amzn-RequestId"] = request_id
        response.headers["x-amz-apigw-id"] = uuid.uuid4().hex[:15] + "="
        return response

    async def _call(self, request: web.Request, request_id: str) -> web.Response:
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
        try:
            call = self.pools[route.function].invoke(json.dumps(event).encode())
            result = await asyncio.wait_for(call, self.timeout_s)
        except PayloadTooLarge as error:
            raise Refused("REQUEST_TOO_LARGE") from error
        except Throttled as error:
            raise Refused("THROTTLED") from error
        except TimeoutError as error:
            raise Refused("INTEGRATION_TIMEOUT") from error
        if result.error:
            raise Refused("INTEGRATION_FAILURE")
        return proxy_response(self.api, result.payload, request.headers.get("Accept", ""))


def proxy_response(api: Api, payload: bytes, accept: str) -> web.Response:
    """Convert a Lambda proxy response to an HTTP response.

    Raises:
        Refused: the reply is no valid Lambda proxy response.
    """
    try:
        answer = json.loads(payload)
        if not isinstance(answer, dict):
            raise TypeError(f"{type(answer).__name__} is no proxy response")
        status = int(answer["statusCode"])
        body = _body(api, answer, accept)
        headers = [(name, _text(value)) for name, value in (answer.get("headers") or {}).items()]
        multi = answer.get("multiValueHeaders") or {}
        headers = [
            pair for pair in headers if pair[0].lower() not in {name.lower() for name in multi}
        ]
        headers += [(name, _text(value)) for name, values in multi.items() for value in values]
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise Refused("INTEGRATION_FAILURE") from error
    response = web.Response(status=status, body=body)
    response.headers.popall("Content-Type", None)
    for name, value in headers:
        if name.lower() in REMAPPED:
            name = f"x-amzn-Remapped-{name}"
        if name.lower() not in DROPPED:
            response.headers.add(name, value)
    response.headers.setdefault("Content-Type", "application/json")
    return response


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
