"""Lambda Invoke API on loopback, with routes for tests to inspect environments.

POST   /2015-03-31/functions/<function>/invocations      boto3's lambda.invoke
POST   /2021-11-15/functions/<function>/response-streaming-invocations
                                   boto3's lambda.invoke_with_response_stream
GET    /environments               {"InferFunction": [{"pid": 1, "number": 1, "state": "idle"}]}
DELETE /environments/<function>    end the idle ones

The header X-Amz-Cognito-Identity (JSON) stands for Cognito credentials, which nothing issues here.
"""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from local.execution.event_stream import CONTENT_TYPE, frame
from local.execution.pool import FunctionPool, PayloadTooLarge, Throttled
from local.execution.responses import PAYLOAD_LIMIT, Answer, StreamBroken
from local.execution.runtime_api import Caller


class UnknownFunction(Exception):
    """Error: the stack has no function of this name."""


class BadClientContext(Exception):
    """Error: the client context is no base64."""


ERRORS: dict[type[Exception], tuple[int, str]] = {
    UnknownFunction: (404, "ResourceNotFoundException"),
    BadClientContext: (400, "InvalidRequestContentException"),
    Throttled: (429, "TooManyRequestsException"),
    PayloadTooLarge: (413, "RequestTooLargeException"),
}


def make_control_app(pools: Mapping[str, FunctionPool]) -> web.Application:
    """Return the web application that serves the Lambda Invoke API."""
    control = Control(pools)
    limit = 2 * PAYLOAD_LIMIT  # above the pool's own limit
    app = web.Application(client_max_size=limit, middlewares=[_report_errors])
    app.router.add_post("/2015-03-31/functions/{name}/invocations", control.invoke)
    streaming = "/2021-11-15/functions/{name}/response-streaming-invocations"
    app.router.add_post(streaming, control.stream)
    app.router.add_get("/environments", control.environments)
    app.router.add_delete("/environments/{name}", control.recycle)
    return app


@web.middleware
async def _report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer an error in the Lambda API's shape, which boto3 understands."""
    try:
        return await handler(request)
    except tuple(ERRORS) as error:
        status, error_type = ERRORS[type(error)]
        body = {"Message": str(error), "message": str(error)}
        headers = {"x-amzn-errortype": error_type}
        return web.json_response(body, status=status, headers=headers)


@dataclass
class Control:
    """Routes of the Lambda Invoke API."""

    pools: Mapping[str, FunctionPool]
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    async def invoke(self, request: web.Request) -> web.Response:
        """Invoke a function and answer with its whole response."""
        pool, event = self._pool(request), await request.read() or b"{}"
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        if kind == "DryRun":
            return web.Response(status=204)
        if kind == "Event":
            task = asyncio.create_task(pool.invoke(event))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return web.Response(status=202)
        tail = _asks_for_log(request)
        result = await pool.invoke(event, _caller(request), tail)
        headers = {"X-Amz-Executed-Version": "$LATEST", "x-amzn-RequestId": result.request_id}
        if result.error:
            headers["X-Amz-Function-Error"] = "Unhandled"
        if tail:
            headers["X-Amz-Log-Result"] = _encoded(result.log_tail)
        return web.Response(body=result.payload, headers=headers, content_type="application/json")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Invoke a function and answer with its response, chunk by chunk."""
        pool, event = self._pool(request), await request.read() or b"{}"
        call = await pool.open(event, _caller(request))
        headers = {"X-Amz-Executed-Version": "$LATEST", "x-amzn-RequestId": call.request_id}
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE, **headers})
        await response.prepare(request)
        end: dict[str, str] = {}
        async with contextlib.aclosing(call.chunks()) as chunks:
            try:
                async for chunk in chunks:
                    await response.write(frame("PayloadChunk", chunk, "application/octet-stream"))
            except StreamBroken as error:
                end = _error_details(error.answer)
        if _asks_for_log(request):
            end["LogResult"] = _encoded(await asyncio.shield(call.log_tail))
        complete = frame("InvokeComplete", json.dumps(end).encode(), "application/json")
        await response.write(complete)
        return response

    async def environments(self, _: web.Request) -> web.Response:
        """Answer with each function's execution environments."""
        return web.json_response({name: pool.environments() for name, pool in self.pools.items()})

    async def recycle(self, request: web.Request) -> web.Response:
        """End a function's idle environments."""
        await self._pool(request).recycle()
        return web.Response(status=204)

    def _pool(self, request: web.Request) -> FunctionPool:
        name_or_arn = request.match_info["name"]
        name = name_or_arn.rsplit(":function:")[-1].split(":")[0]
        if name not in self.pools:
            raise UnknownFunction(f"Function not found: {name}. There are: {', '.join(self.pools)}")
        return self.pools[name]


def _asks_for_log(request: web.Request) -> bool:
    return request.headers.get("X-Amz-Log-Type") == "Tail"


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _caller(request: web.Request) -> Caller:
    """Return what a request tells about its caller.

    Raises:
        BadClientContext: its client context is no base64.
    """
    try:
        client_context = base64.b64decode(request.headers.get("X-Amz-Client-Context", "")).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise BadClientContext(f"X-Amz-Client-Context: {error}") from error
    return Caller(
        client_context or None,
        request.headers.get("X-Amz-Cognito-Identity"),
        request.headers.get("X-Amz-Tenant-Id"),
    )


def _error_details(answer: Answer) -> dict[str, str]:
    """Return how InvokeComplete reports a function's error."""
    details = answer.payload.decode(errors="replace")
    try:
        code = str(json.loads(details)["errorType"])
    except (ValueError, KeyError, TypeError):
        code = "Unhandled"
    return {"ErrorCode": code, "ErrorDetails": details}
