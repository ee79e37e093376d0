"""HTTP/1.1 over asyncio, with keep-alive and a deadline per exchange.

Ours rather than httpx2, which takes three times tritonclient's CPU. Reasons and numbers:
docs/decisions/0046-client.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from mayfly.client.errors import Disconnected
from mayfly.client.http1 import address
from mayfly.client.http1.messages import Body, Reply, Request, error_of
from mayfly.client.http1.replies import BadReply, ReplyParser
from mayfly.client.http1.requests import Writer, late

IDLE_S = 50.0  # API Gateway and most proxies close an idle connection after a minute
CLOSE_S = 1.0  # the loop closes sockets in its next round

sleep = asyncio.sleep


class Transport:
    """Connections to one base URL within one event loop, reused LIFO."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.address = address.parse(url)
        self._writer = Writer(self.address, headers)
        self._idle: deque[_Connection] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, request: Request, deadline: float) -> Reply:
        """Send a request and return its whole reply, until `deadline` (of time.monotonic).

        Raises:
            Disconnected: the connection failed or broke.
            TimedOut: the deadline passed.
            NotConfigured: the server's certificate is not trusted, or a header cannot be sent.
        """
        head = self._writer.head(request)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                connection = self._reusable() or await self._connect()
                try:
                    reply, keep = await connection.exchange(head, request.body)
                except BaseException:  # also cancelled: the reply would answer the next request
                    connection.close()
                    raise
        except TimeoutError:
            raise late(request) from None
        except (OSError, BadReply) as error:
            raise self._writer.broken(error) from error
        if keep:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def stream(self, request: Request, deadline: float) -> AsyncIterator[bytes]:
        """Send a request and yield its reply's body as it arrives.

        Whoever stops early closes the connection.

        Raises:
            MayflyError: the reply is an error, or the connection fails as in `send`.
        """
        head = self._writer.head(request)
        connection, keep = None, False
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                connection = self._reusable() or await self._connect()
            async for part in connection.stream(head, request.body, deadline):
                yield part
            keep = connection.keep
        except TimeoutError:
            raise late(request) from None
        except (OSError, BadReply) as error:
            raise self._writer.broken(error) from error
        finally:
            if connection is not None and keep:
                self._idle.append(connection)
            elif connection is not None:
                connection.close()

    async def close(self) -> None:
        """Close the idle connections."""
        while self._loop is asyncio.get_running_loop() and self._idle:
            connection = self._idle.pop()
            connection.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await connection.lost.wait()

    def _reusable(self) -> "_Connection | None":
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # connections of a loop before are of no use
            self._idle, self._loop = deque(), loop
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.usable():
                    return connection
                connection.close()
        return None

    async def _connect(self) -> "_Connection":
        loop, tls = asyncio.get_running_loop(), self._writer.tls
        direct = tls if not self._writer.proxy else None
        name = self.address.host if direct else None
        try:
            _, connection = await loop.create_connection(
                _Connection, *self._writer.peer, ssl=direct, server_hostname=name
            )
            if tls and self._writer.proxy:
                await self._tunnel(connection)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._writer.connect_error(error) from error
        return connection

    async def _tunnel(self, connection: "_Connection") -> None:
        """Ask the proxy for a tunnel, and put TLS into it."""
        loop, tls = asyncio.get_running_loop(), self._writer.tls
        reply, _ = await connection.exchange(self._writer.connect_head(), b"", to_head=True)
        if reply.status != 200 or tls is None:
            connection.close()
            raise Disconnected(f"the proxy answered {reply.status} to CONNECT", sent=False)
        secured = await loop.start_tls(
            connection.transport, connection, tls, server_hostname=self.address.host
        )
        if secured is None:
            raise Disconnected("the connection was closed during the TLS handshake", sent=False)
        connection.transport = secured


class _Connection(asyncio.Protocol):
    """Connection that carries one exchange at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._used = time.monotonic()
        self._parser: ReplyParser | None = None
        self._whole: asyncio.Future[None] | None = None
        self._closed = False
        self._arrived = asyncio.Event()
        self.lost = asyncio.Event()
        self.keep = False  # may be used again after a stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._whole is None or self._whole.done():
            self._closed = True  # bytes that no request asked for
            self.transport.close()
            return
        try:
            if self._parser.feed(data):
                self._whole.set_result(None)
        except BadReply as error:
            self._whole.set_exception(error)
        self._arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._arrived.set()
        self.lost.set()
        if self._parser is None or self._whole is None or self._whole.done():
            return
        try:
            if error is not None:
                raise error
            self._parser.feed(b"")
            self._whole.set_result(None)
        except (OSError, BadReply) as failure:
            self._whole.set_exception(failure)

    def usable(self) -> bool:
        """Tell if an idle connection is young and still open."""
        return not self._closed and time.monotonic() - self._used <= IDLE_S

    async def exchange(
        self, head: bytes, body: Body, *, to_head: bool = False
    ) -> tuple[Reply, bool]:
        """Return the reply, and if the connection can be used again."""
        self._whole = asyncio.get_running_loop().create_future()
        self._parser = parser = ReplyParser(to_head=to_head or head.startswith(b"HEAD "))
        self.transport.writelines([head, body] if body else [head])
        await self._whole
        self._used = time.monotonic()
        self._parser = self._whole = None
        assert parser.reply is not None  # noqa: S101 (the future says so)
        return parser.reply, parser.keep and not self._closed

    async def stream(self, head: bytes, body: Body, deadline: float) -> AsyncIterator[bytes]:
        """Yield the body's parts, then set `keep`."""
        self._whole = whole = asyncio.get_running_loop().create_future()
        self._parser = parser = ReplyParser()
        self.transport.writelines([head, body] if body else [head])
        try:
            while not whole.done():
                self._arrived.clear()
                if parser.status < 400 and (part := parser.take()):
                    yield part
                    continue
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._arrived.wait()
            await whole
        finally:
            whole.cancel()  # if the reply is not whole, nobody asks for its error
        self._used = time.monotonic()
        self._parser = self._whole = None
        assert parser.reply is not None  # noqa: S101 (the future says so)
        if parser.status >= 400:
            raise error_of(parser.reply)
        if parser.reply.body:
            yield parser.reply.body
        self.keep = parser.keep and not self._closed

    def close(self) -> None:
        """Close the connection, without TLS's last round trip."""
        self._closed = True
        self.transport.abort()
