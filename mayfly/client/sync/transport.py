"""HTTP/1.1 over sockets, with keep-alive and a deadline per exchange.

Ours rather than httpx2: a call takes a third of its CPU, and bytes that drip in do not extend the
time limit. Reasons and numbers: docs/decisions/0046-client.md.
"""

import os
import select
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress

from mayfly.client.errors import Disconnected
from mayfly.client.http1 import address
from mayfly.client.http1.messages import Body, Reply, Request, error_of
from mayfly.client.http1.replies import BadReply, ReplyParser
from mayfly.client.http1.requests import Writer, late

IDLE_S = 50.0  # API Gateway and most proxies close an idle connection after a minute
ONE_SEND_BYTES = 16_384  # a head and a body up to this size are sent by one call
RECEIVE_BYTES = 262_144

sleep = time.sleep


class Transport:
    """Connections to one base URL, reused LIFO; safe for threads."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.address = address.parse(url)
        self._writer = Writer(self.address, headers)
        self._idle: deque[_Connection] = deque()
        self._pid = os.getpid()

    def send(self, request: Request, deadline: float) -> Reply:
        """Send a request and return its whole reply, until `deadline` (of time.monotonic).

        Raises:
            Disconnected: the connection failed or broke.
            TimedOut: the deadline passed.
            NotConfigured: the server's certificate is not trusted, or a header cannot be sent.
        """
        head = self._writer.head(request)
        connection = self._reusable() or self._connect(deadline)
        try:
            reply, keep = connection.exchange(head, request.body, deadline)
        except TimeoutError:
            connection.close()
            raise late(request) from None
        except (OSError, BadReply) as error:
            connection.close()
            raise self._writer.broken(error) from error
        except BaseException:  # e.g. KeyboardInterrupt: the reply would answer the next request
            connection.close()
            raise
        if keep:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def stream(self, request: Request, deadline: float) -> Iterator[bytes]:
        """Send a request and yield its reply's body as it arrives.

        Whoever stops early closes the connection.

        Raises:
            MayflyError: the reply is an error, or the connection fails as in `send`.
        """
        head = self._writer.head(request)
        connection = self._reusable() or self._connect(deadline)
        keep = False
        try:
            keep = yield from connection.stream(head, request.body, deadline)
        except TimeoutError:
            raise late(request) from None
        except (OSError, BadReply) as error:
            raise self._writer.broken(error) from error
        finally:
            if keep:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self.close()

    def _reusable(self) -> "_Connection | None":
        if self._pid != os.getpid():  # a fork shares its parent's sockets: leave them
            self._idle, self._pid = deque(), os.getpid()
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.usable():
                    return connection
                connection.close()
        return None

    def _connect(self, deadline: float) -> "_Connection":
        try:
            connected = socket.create_connection(self._writer.peer, timeout=_left(deadline))
            try:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Connection(self._secured(connected, deadline))
            except BaseException:
                connected.close()
                raise
        except OSError as error:
            raise self._writer.connect_error(error) from error

    def _secured(self, connected: socket.socket, deadline: float) -> socket.socket:
        """Return the socket under TLS, through the proxy if any."""
        context = self._writer.tls
        if context is None:
            return connected
        if self._writer.proxy:
            tunnel = _Connection(connected)
            reply, _ = tunnel.exchange(self._writer.connect_head(), b"", deadline, to_head=True)
            if reply.status != 200:
                raise Disconnected(f"the proxy answered {reply.status} to CONNECT", sent=False)
        connected.settimeout(_left(deadline))
        return context.wrap_socket(connected, server_hostname=self.address.host)


class _Connection:
    """Connected socket with the time of its last use."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._used = time.monotonic()

    def usable(self) -> bool:
        """Tell if an idle connection is young and still open."""
        if time.monotonic() - self._used > IDLE_S:
            return False
        if hasattr(select, "poll"):  # select refuses file numbers over 1023
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return not poll.poll(0)
        return not select.select([self._socket], [], [], 0)[0]

    def exchange(
        self, head: bytes, body: Body, deadline: float, *, to_head: bool = False
    ) -> tuple[Reply, bool]:
        """Return the reply, and if the connection can be used again."""
        failure = self._send(head, body, deadline)
        parser = ReplyParser(to_head=to_head or head.startswith(b"HEAD "))
        try:
            while True:
                self._socket.settimeout(_left(deadline))
                if parser.feed(self._socket.recv(RECEIVE_BYTES)):
                    break
        except (ConnectionError, BadReply) as error:
            raise failure or error from None
        self._used = time.monotonic()
        assert parser.reply is not None  # noqa: S101 (feed said so)
        return parser.reply, parser.keep and failure is None

    def stream(self, head: bytes, body: Body, deadline: float) -> Generator[bytes, None, bool]:
        """Yield the body's parts; return if the connection can be used again."""
        failure = self._send(head, body, deadline)
        parser = ReplyParser()
        whole = False
        while not whole:
            self._socket.settimeout(_left(deadline))
            try:
                whole = parser.feed(self._socket.recv(RECEIVE_BYTES))
            except (ConnectionError, BadReply) as error:
                raise failure or error from None
            if parser.status < 400 and (part := parser.take()):
                yield part
        self._used = time.monotonic()
        assert parser.reply is not None  # noqa: S101 (feed said so)
        if parser.status >= 400:
            raise error_of(parser.reply)
        if parser.reply.body:
            yield parser.reply.body
        return parser.keep and failure is None

    def _send(self, head: bytes, body: Body, deadline: float) -> OSError | None:
        """Send a request; return a failure that a reply may explain."""
        self._socket.settimeout(_left(deadline))
        try:
            if len(body) <= ONE_SEND_BYTES:
                self._socket.sendall(head + body)
            else:
                self._socket.sendall(head)
                self._socket.sendall(body)
        except ConnectionError as error:
            return error
        return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
