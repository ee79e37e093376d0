"""HTTP/1.1 client over one kept connection, for the Lambda Runtime API.

A message is first peeked at, so that its body can be received into one `bytes` object, without a
copy however large it is.
"""

import select
import socket

Bytes = bytes | bytearray | memoryview

HEAD_BYTES_MAX = 65536
PEEK_BYTES = 16384  # first look at a message: most events fit with their headers
ATTEMPTS = 3  # times that a request is sent while its connection breaks
_END = b"\r\n\r\n"
_WAIT = socket.MSG_WAITALL


class BrokenConnection(ConnectionError):
    """Error: the peer closed the connection or sent no valid HTTP message."""


class Response:
    """HTTP response with lower-case header names.

    `repeated` is True if the request was sent again, because the connection broke.
    """

    __slots__ = ("body", "headers", "repeated", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.repeated = False


class Connection:
    """Kept HTTP connection to a host and port, reopened when it breaks."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))  # an IPv6 address has brackets
        self._head = bytearray(HEAD_BYTES_MAX)
        self._view = memoryview(self._head)
        self._socket: socket.socket | None = None
        self._parts: tuple[Bytes, ...] = ()  # the request whose response is due
        self._attempts = 0  # times that it was sent

    def connect(self) -> socket.socket:
        """Open the connection unless it is open; return its socket."""
        if self._socket is None:
            # socket.create_connection would import a codec for names, which takes a millisecond.
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.connect(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = connection
        return self._socket

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, *parts: Bytes) -> Response:
        """Send a request, given in parts, and return the response.

        Raises:
            OSError: as `post` and `answer`.
        """
        self.post(*parts)
        return self.answer()

    def post(self, *parts: Bytes) -> None:
        """Send a request, given in parts, whose response `answer` returns.

        It is sent again if the connection breaks before the response. The Runtime API allows that:
        an event that was not received is delivered again, a repeated reply is refused.

        Raises:
            OSError: the connection broke ATTEMPTS times, or nobody listens.
        """
        self._parts, self._attempts = parts, 0
        self._post_again()

    def answer(self) -> Response:
        """Return the response to the request that was posted last.

        Raises:
            OSError: the connection broke ATTEMPTS times, or nobody listens.
        """
        while True:
            try:
                response = self.receive()
            except OSError as error:
                self._give_up(error)
                self._post_again()
            else:
                response.repeated = self._attempts > 1
                self._parts = ()
                return response

    def _post_again(self) -> None:
        while True:
            self._attempts += 1
            try:
                self.send(*self._parts)
            except OSError as error:
                self._give_up(error)
            else:
                return

    def _give_up(self, error: OSError) -> None:
        """Close a broken connection; raise its error after the last attempt."""
        self.close()
        if self._attempts >= ATTEMPTS:
            raise error

    def send(self, *parts: Bytes) -> None:
        """Send parts of a message one after the other, without joining them."""
        connection = self.connect()
        rest = connection.sendmsg(parts)
        for part in parts:
            if rest < len(part):
                connection.sendall(memoryview(part)[rest:])
            rest = max(0, rest - len(part))

    def receive(self) -> Response:
        """Receive an HTTP response.

        Raises:
            BrokenConnection: it is incomplete or malformed.
        """
        connection = self.connect()
        arrived = connection.recv_into(self._view, PEEK_BYTES, socket.MSG_PEEK)
        while (end := self._head.find(_END, 0, arrived)) < 0:
            arrived = self._peek_more(connection, arrived)
        start = end + len(_END)
        first, *lines = str(self._view[:end], "utf-8", "surrogateescape").split("\r\n")
        status, headers = _status(first), dict(map(_header, lines))
        if (length := headers.get("content-length")) is not None:
            body = self._body(connection, start, _number(length), arrived)
        else:
            connection.recv_into(self._view, start)
            chunked = headers.get("transfer-encoding", "").lower() == "chunked"
            body = self._chunks(connection) if chunked else self._until_closed(connection)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Response(status, headers, body)

    def is_readable(self) -> bool:
        """Return True if the peer has sent something or closed the connection."""
        try:
            self.connect().recv_into(self._view, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # reset
            return True
        return True

    def _peek_more(self, connection: socket.socket, arrived: int) -> int:
        """Wait for more than `arrived` bytes of a head; return their number."""
        if not 0 < arrived < HEAD_BYTES_MAX:
            raise BrokenConnection("the connection ended, or its HTTP headers have no end")
        shut = False
        while connection.recv_into(self._view, arrived + 1, socket.MSG_PEEK | _WAIT) <= arrived:
            if shut:
                raise BrokenConnection("the connection ended within the HTTP headers")
            shut = _is_shut(connection)  # otherwise a signal has interrupted the wait
        return connection.recv_into(self._view, HEAD_BYTES_MAX, socket.MSG_PEEK)

    def _body(self, connection: socket.socket, start: int, size: int, arrived: int) -> bytes:
        """Take a head of `start` bytes; return the body after it."""
        if start + size <= arrived:
            connection.recv_into(self._view, start + size)
            return bytes(self._view[start : start + size])
        connection.recv_into(self._view, start)
        return _read(connection, size)

    def _chunks(self, connection: socket.socket) -> bytes:
        """Return a chunked body; one of a single chunk is not copied."""
        chunks = []
        while size := _number(self._line(connection).partition(b";")[0], 16):
            chunks.append(_read(connection, size))
            self._line(connection)
        while self._line(connection):  # trailers
            pass
        return b"".join(chunks)

    def _line(self, connection: socket.socket) -> bytes:
        arrived = connection.recv_into(self._view, 64, socket.MSG_PEEK)
        while (end := self._head.find(b"\r\n", 0, arrived)) < 0:
            arrived = self._peek_more(connection, arrived)
        connection.recv_into(self._view, end + 2)
        return bytes(self._view[:end])

    def _until_closed(self, connection: socket.socket) -> bytes:
        parts = []
        while part := connection.recv(HEAD_BYTES_MAX):
            parts.append(part)
        self.close()
        return b"".join(parts)


def _is_shut(connection: socket.socket) -> bool:
    """Return True if the peer sends no more than what has arrived."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _read(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:  # once, unless a signal interrupts it
        part = connection.recv(missing, _WAIT)
        if not part:
            raise BrokenConnection(f"the connection ended {missing} bytes before a body's end")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


def _status(line: str) -> int:
    """Return the status of an HTTP response's first line.

    >>> _status("HTTP/1.1 202 Accepted")
    202
    """
    version, _, rest = line.partition(" ")
    if not version.startswith("HTTP/1."):
        raise BrokenConnection(f"no HTTP response: {line[:80]!r}")
    return _number(rest[:3])


def _number(text: str | bytes, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise BrokenConnection(f"no number in an HTTP response: {text[:80]!r}") from None
