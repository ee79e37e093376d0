"""The Lambda Invoke API on loopback, as `sam local start-lambda` has it, and what tests need to look inside.

POST   /2015-03-31/functions/<function>/invocations      boto3's lambda.invoke, RequestResponse or Event
GET    /environments               {"InferFunction": [{"pid": 1, "number": 1, "state": "idle"}]}
DELETE /environments/<function>    ends the idle ones
"""

import asyncio
import base64

from aiohttp import web

from local.execution.pool import FunctionPool, PayloadTooLarge, Throttled
from local.execution.runtime_api import PAYLOAD_LIMIT


def make_control_app(pools: dict[str, FunctionPool]) -> web.Application:
    """The application over the functions of a stack."""
    background: set[asyncio.Task[object]] = set()

    def named(request: web.Request) -> str:
        return (
            request.match_info["name"].rsplit(":function:")[-1].split(":")[0]
        )  # an ARN names it, too

    async def invoke(request: web.Request) -> web.Response:
        if (name := named(request)) not in pools:
            known = ", ".join(pools)
            return refusal(
                404, "ResourceNotFoundException", f"Function not found: {name}. There are: {known}"
            )
        called, event = pools[name], await request.read() or b"{}"
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        if kind == "DryRun":
            return web.Response(status=204)
        if kind == "Event":
            task: asyncio.Task[object] = asyncio.create_task(called.invoke(event))
            background.add(task)
            task.add_done_callback(background.discard)
            return web.Response(status=202)
        try:
            result = await called.invoke(
                event, _decoded(request.headers.get("X-Amz-Client-Context"))
            )
        except Throttled as error:
            return refusal(429, "TooManyRequestsException", f"Rate Exceeded. {error}")
        except PayloadTooLarge as error:
            return refusal(
                413, "RequestTooLargeException", f"Request must be smaller than the limit: {error}"
            )
        headers = {"X-Amz-Executed-Version": "$LATEST", "x-amzn-RequestId": result.request_id}
        if result.error:
            headers["X-Amz-Function-Error"] = "Unhandled"
        if request.headers.get("X-Amz-Log-Type") == "Tail":
            headers["X-Amz-Log-Result"] = base64.b64encode(result.log_tail.encode()).decode()
        return web.Response(body=result.payload, headers=headers, content_type="application/json")

    async def environments(_: web.Request) -> web.Response:
        return web.json_response({name: one.environments() for name, one in pools.items()})

    async def recycle(request: web.Request) -> web.Response:
        if (name := named(request)) in pools:
            await pools[name].recycle()
        return web.Response(status=204)

    app = web.Application(client_max_size=2 * PAYLOAD_LIMIT)  # the pool refuses, in Lambda's words
    app.router.add_post("/2015-03-31/functions/{name}/invocations", invoke)
    app.router.add_get("/environments", environments)
    app.router.add_delete("/environments/{name}", recycle)
    return app


def _decoded(client_context: str | None) -> str | None:
    return base64.b64decode(client_context).decode() if client_context else None


def refusal(status: int, error_type: str, message: str) -> web.Response:
    """An error as the Lambda API words it, so that boto3 raises the exception of this name."""
    body = {"Message": message, "message": message}
    return web.json_response(body, status=status, headers={"x-amzn-errortype": error_type})
