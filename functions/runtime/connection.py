"""HTTP/1.1 client over one kept connection, for the Lambda Runtime API.

A small message is received by one call, into a buffer that stays. A long body is received into one
`bytes` object of its size.
"""

import socket
from io import BytesIO

Bytes = bytes | bytearray | memoryview

BUFFER_BYTES = 65536  # longest head of a message; most events fit with theirs
ATTEMPTS = 3  # times that a request is sent while its connection breaks
_END = b"\r\n\r\n"


class BrokenConnection(ConnectionError):
    """Error: the peer closed the connection or sent no valid HTTP message."""


class Response:
    """HTTP response with lower-case header names.

    `repeated` is True if the request was sent again, because the connection broke. `dropped_bytes`
    is the size of a body for which there was no memory, else 0.
    """

    __slots__ = ("body", "dropped_bytes", "headers", "repeated", "status")

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""
        self.dropped_bytes = 0
        self.repeated = False


class Connection:
    """Kept HTTP connection to a host and port, reopened when it breaks."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))  # an IPv6 address has brackets
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0  # bounds of what was received and not read
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
            self._begin = self._end = 0

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
        while (end := self._buffer.find(_END, self._begin, self._end)) < 0:
            self._fill(connection)
        first, *lines = str(self._view[self._begin : end], "utf-8", "surrogateescape").split("\r\n")
        self._begin = end + len(_END)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        response = Response(_status(first), headers)
        if (length := headers.get("content-length")) is not None:
            self._receive_body(connection, _number(length), response)
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            response.body = self._chunks(connection)
        else:
            response.body = self._until_closed(connection)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return response

    def is_readable(self) -> bool:
        """Return True if the peer has sent something or closed the connection."""
        if self._begin < self._end:
            return True
        try:
            self.connect().recv_into(self._view, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # reset
            return True
        return True

    def _fill(self, connection: socket.socket) -> None:
        """Receive more of a message's head into the buffer.

        Raises:
            BrokenConnection: there is no more, or no room for it.
        """
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._end == BUFFER_BYTES:
            size = self._end - self._begin
            self._buffer[:size] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, size
        arrived = connection.recv_into(self._view[self._end :])
        if not arrived:  # also if there is no room
            raise BrokenConnection("the connection ended, or its HTTP headers have no end")
        self._end += arrived

    def _receive_body(self, connection: socket.socket, size: int, response: Response) -> None:
        """Receive a body of `size` bytes; drop one that memory cannot hold."""
        begin, arrived = self._begin, min(size, self._end - self._begin)
        self._begin += arrived
        if arrived == size:
            response.body = bytes(self._view[begin : begin + size])
            return
        try:
            response.body = _read(connection, self._view[begin : begin + arrived], size)
        except MemoryError:
            self._drop(connection, size - arrived)
            response.dropped_bytes = size

    def _drop(self, connection: socket.socket, size: int) -> None:
        """Receive `size` bytes that nobody gets."""
        self._begin = self._end = 0
        while size:
            arrived = connection.recv_into(self._view, min(size, BUFFER_BYTES))
            if not arrived:
                raise BrokenConnection(f"the connection ended {size} bytes before a body's end")
            size -= arrived

    def _chunks(self, connection: socket.socket) -> bytes:
        """Return a chunked body."""
        chunks = []
        while size := _number(self._line(connection).partition(b";")[0], 16):
            chunk = Response(0, {})
            self._receive_body(connection, size, chunk)
            if chunk.dropped_bytes:
                raise MemoryError
            chunks.append(chunk.body)
            self._line(connection)
        while self._line(connection):  # trailers
            pass
        return b"".join(chunks)

    def _line(self, connection: socket.socket) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._begin, self._end)) < 0:
            self._fill(connection)
        line = bytes(self._view[self._begin : end])
        self._begin = end + 2
        return line

    def _until_closed(self, connection: socket.socket) -> bytes:
        parts = [bytes(self._view[self._begin : self._end])]
        while part := connection.recv(BUFFER_BYTES):
            parts.append(part)
        self.close()
        return b"".join(parts)


def _read(connection: socket.socket, head: memoryview, size: int) -> bytes:
    """Receive a body of `size` bytes that begins with `head`.

    BytesIO gives out its buffer without a copy: 6 MB take 0.6 of the time of joining two parts.

    Raises:
        BrokenConnection: the connection ended before.
        MemoryError: there is not enough for it; nothing was received.
    """
    file = BytesIO()
    file.seek(size - 1)
    file.write(b"\0")
    with file.getbuffer() as view:
        view[: len(head)] = head
        end = len(head)
        while end < size:  # once, unless a signal interrupts it
            arrived = connection.recv_into(view[end:], 0, socket.MSG_WAITALL)
            if not arrived:
                raise BrokenConnection(
                    f"the connection ended {size - end} bytes before a body's end"
                )
            end += arrived
    return file.getvalue()


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
