"""Lambda Invoke API on loopback, with routes for tests to inspect environments.

POST   /2015-03-31/functions/<function>/invocations      boto3's lambda.invoke
GET    /environments               {"InferFunction": [{"pid": 1, "number": 1, "state": "idle"}]}
DELETE /environments/<function>    end the idle ones

The header X-Amz-Cognito-Identity (JSON) stands for Cognito credentials, which nothing issues here.
"""

import asyncio
import base64

from aiohttp import web

from local.execution.pool import FunctionPool, PayloadTooLarge, Throttled
from local.execution.responses import PAYLOAD_LIMIT
from local.execution.runtime_api import Caller


def make_control_app(pools: dict[str, FunctionPool]) -> web.Application:
    """Return the web application that serves the Lambda Invoke API."""
    background: set[asyncio.Task[object]] = set()

    def function_name(request: web.Request) -> str:
        name_or_arn = request.match_info["name"]
        return name_or_arn.rsplit(":function:")[-1].split(":")[0]

    async def invoke(request: web.Request) -> web.Response:
        if (name := function_name(request)) not in pools:
            message = f"Function not found: {name}. There are: {', '.join(pools)}"
            return error_response(404, "ResourceNotFoundException", message)
        pool, event = pools[name], await request.read() or b"{}"
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        if kind == "DryRun":
            return web.Response(status=204)
        if kind == "Event":
            task: asyncio.Task[object] = asyncio.create_task(pool.invoke(event))
            background.add(task)
            task.add_done_callback(background.discard)
            return web.Response(status=202)
        tail = request.headers.get("X-Amz-Log-Type") == "Tail"
        try:
            result = await pool.invoke(event, _caller(request), tail)
        except Throttled as error:
            return error_response(429, "TooManyRequestsException", f"Rate Exceeded. {error}")
        except PayloadTooLarge as error:
            message = f"Request must be smaller than the limit: {error}"
            return error_response(413, "RequestTooLargeException", message)
        headers = {"X-Amz-Executed-Version": "$LATEST", "x-amzn-RequestId": result.request_id}
        if result.error:
            headers["X-Amz-Function-Error"] = "Unhandled"
        if tail:
            headers["X-Amz-Log-Result"] = base64.b64encode(result.log_tail.encode()).decode()
        return web.Response(body=result.payload, headers=headers, content_type="application/json")

    async def environments(_: web.Request) -> web.Response:
        return web.json_response({name: pool.environments() for name, pool in pools.items()})

    async def recycle(request: web.Request) -> web.Response:
        if (name := function_name(request)) in pools:
            await pools[name].recycle()
        return web.Response(status=204)

    app = web.Application(client_max_size=2 * PAYLOAD_LIMIT)  # above the pool's own limit
    app.router.add_post("/2015-03-31/functions/{name}/invocations", invoke)
    app.router.add_get("/environments", environments)
    app.router.add_delete("/environments/{name}", recycle)
    return app


def _caller(request: web.Request) -> Caller:
    """Return what a request tells about its caller."""
    client_context = request.headers.get("X-Amz-Client-Context")
    return Caller(
        base64.b64decode(client_context).decode() if client_context else None,
        request.headers.get("X-Amz-Cognito-Identity"),
        request.headers.get("X-Amz-Tenant-Id"),
    )


def error_response(status: int, error_type: str, message: str) -> web.Response:
    """Return an error in the Lambda API's shape, which boto3 understands."""
    body = {"Message": message, "message": message}
    return web.json_response(body, status=status, headers={"x-amzn-errortype": error_type})
