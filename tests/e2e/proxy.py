"""Proxy in front of AWS that counts calls and can kill the caller at one of them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

HOST = "127.0.0.1"
# Headers that describe one connection and are not forwarded.
CONNECTION_HEADERS = {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Proxy:
    """Proxy that forwards calls to `upstream`.

    While it is armed, the caller is killed at call number `at` (from 1; 0 is never): before the
    call is forwarded or, if `applied`, after its reply has come.
    """

    url: str = ""
    upstream: str = ""
    armed: bool = False
    at: int = 0
    applied: bool = False
    kill: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)

    def arm(self, at: int, *, applied: bool, kill: Callable[[], None]) -> None:
        """Start counting calls from 1, and `kill` at call `at`."""
        self.calls = []
        self.at, self.applied, self.kill, self.armed = at, applied, kill, True

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fatal = False
        if self.armed:
            self.calls.append(
                request.headers.get("X-Amz-Target", request.method + " " + request.path)
            )
            fatal = len(self.calls) == self.at
        if fatal and not self.applied:
            return await self._end(request)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in CONNECTION_HEADERS
        }
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            url = self.upstream + request.raw_path
            async with session.request(request.method, url, data=body, headers=headers) as reply:
                content = await reply.read()
        if fatal:
            return await self._end(request)
        reply_headers = {
            name: value
            for name, value in reply.headers.items()
            if name.lower() not in CONNECTION_HEADERS
        }
        if request.method == "HEAD":
            reply_headers["Content-Length"] = reply.headers.get("Content-Length", "0")
        return web.Response(status=reply.status, body=content, headers=reply_headers)

    async def _end(self, request: web.Request) -> web.StreamResponse:
        self.armed = False
        await asyncio.to_thread(self.kill)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # the caller is dead


@contextmanager
def proxy() -> Iterator[Proxy]:
    """Run a proxy within the block."""
    made, ready = Proxy(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", made.handle)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        made.url = f"http://{HOST}:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60), "the proxy did not start"
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
