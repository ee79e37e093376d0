"""HTTP/1.1 client connection over a socket, with deadlines and size limits.

Only what S3 and DynamoDB need: requests with a body in memory, strictly parsed replies, bodies
read straight into a buffer, and a deadline for each reply as a whole.
"""

import re
import socket
from time import monotonic
from typing import TYPE_CHECKING

from functions.adapters.aws_http.addresses import Address, resolve
from functions.adapters.aws_http.endpoint import Endpoint, Trust

if TYPE_CHECKING:
    import ssl

HEAD_LIMIT = 32 * 1024  # bytes of a reply's status line and headers
HEADERS_LIMIT = 100
CHUNK_LINE_LIMIT = 1024  # bytes
RECEIVE_BYTES = 4096  # bytes received at a time while reading a head; a body has a buffer
BUFFER_BYTES = 64 * 1024  # bytes; buffer for a chunked body
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_INTERIM = range(100, 200)
_NO_BODY = {204, 304}


class BrokenConnection(Exception):
    """Connection failure: refused, reset, too slow, or malformed HTTP.

    `answered` is False if the peer closed the connection before the first byte of its reply,
    which happens to a stale connection.
    """

    def __init__(self, message: str, *, answered: bool = True) -> None:
        super().__init__(message)
        self.answered = answered


class Connection:
    """HTTP connection with a deadline, an instant of `time.monotonic`."""

    def __init__(self, endpoint: Endpoint, trust: Trust, *, deadline: float, read_s: float) -> None:
        """Connect to an HTTP endpoint, with a TLS handshake for https.

        Raises:
            BrokenConnection: no connection before `deadline`, or no trusted certificate.
        """
        self._read_s = read_s
        self._deadline = deadline
        self._received = memoryview(b"")  # received bytes that are not read yet
        self.pooled_at = 0.0  # Unix time; 0 for a new connection, which cannot be stale
        self._socket = self._open(endpoint, trust)

    def _open(self, endpoint: Endpoint, trust: Trust) -> socket.socket:
        if not endpoint.tls:
            return self._connect(endpoint)
        context = trust.context()
        try:
            return self._connect_tls(endpoint, context)
        except BrokenConnection as error:
            if not _is_refusal(error.__cause__) or not trust.widen(context):
                raise
        return self._connect_tls(endpoint, trust.context())

    def _connect(self, endpoint: Endpoint) -> socket.socket:
        """Connect to the first address of the endpoint that answers."""
        failure: OSError | None = None
        try:
            for address in resolve(endpoint.host, endpoint.port, self._deadline):
                try:
                    return self._connect_to(address)
                except OSError as error:
                    failure = error
        except OSError as error:
            failure = error
        raise BrokenConnection(f"no connection: {failure}") from failure

    def _connect_to(self, address: Address) -> socket.socket:
        family, kind, protocol, _, socket_address = address
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.settimeout(max(0.001, self._deadline - monotonic()))
            connecting.connect(socket_address)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connecting.close()
            raise
        return connecting

    def _connect_tls(self, endpoint: Endpoint, context: "ssl.SSLContext") -> socket.socket:
        connection = self._connect(endpoint)
        try:
            connection.settimeout(self._timeout_s())
            return context.wrap_socket(connection, server_hostname=endpoint.host)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):  # including ssl.SSLError
                raise BrokenConnection(f"no connection: {error}") from error
            raise

    def ask(self, message: bytes, deadline: float) -> "Reply":
        """Send an HTTP request and return its reply, body still unread.

        `deadline` also holds for reading the body.

        Raises:
            BrokenConnection: there is no reply; `answered` says whether it had begun.
        """
        self._deadline = deadline
        self._set_timeout()
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise BrokenConnection(f"sending failed: {error}", answered=False) from error
        return Reply(self)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive_into(self, view: memoryview) -> int:
        """Receive bytes from the socket into `view`; return their number.

        0 means that the peer has closed the connection.
        """
        if self._received:
            count = min(len(view), len(self._received))
            view[:count] = self._received[:count]
            self._received = self._received[count:]
            return count
        self._set_timeout()
        try:
            return self._socket.recv_into(view)
        except OSError as error:
            raise BrokenConnection(f"receiving failed: {error}") from error

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """Return the received bytes before the delimiter `mark`, and skip it.

        At most `limit` bytes may precede `mark`.
        """
        data = bytearray(self._received)
        self._received = memoryview(b"")
        searched = 0
        while (at := data.find(mark, max(0, searched - len(mark)))) < 0:
            searched = len(data)
            if searched > limit:
                raise BrokenConnection("a line is too long for HTTP")
            data += self._receive(answered=bool(data))
        if at > limit:
            raise BrokenConnection("a line is too long for HTTP")
        self._received = memoryview(bytes(data[at + len(mark) :]))
        return bytes(data[:at])

    @property
    def has_unread_bytes(self) -> bool:
        """True if the socket delivered bytes beyond the end of the reply."""
        return len(self._received) > 0

    def _receive(self, *, answered: bool) -> bytes:
        self._set_timeout()
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise BrokenConnection(f"receiving failed: {error}", answered=answered) from error
        if not data:
            raise BrokenConnection("the connection was closed", answered=answered)
        return data

    def _set_timeout(self) -> None:
        self._socket.settimeout(self._timeout_s())

    def _timeout_s(self) -> float:
        left = self._deadline - monotonic()
        if left <= 0:
            raise BrokenConnection("out of time")
        return min(self._read_s, left)


def _is_refusal(error: BaseException | None) -> bool:
    """Return True if TLS refused the server's certificate."""
    import ssl  # loaded already, by whoever raised it

    return isinstance(error, ssl.SSLCertVerificationError)


class Reply:
    """HTTP reply: status and headers at hand, body read on demand.

    The names in `headers` are lower case.

    Raises:
        BrokenConnection: it is not valid HTTP, or ends too early.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 100
        while self.status in _INTERIM:
            head = connection.read_until(b"\r\n\r\n", HEAD_LIMIT)
            minor, self.status, self.headers = _parse_head(head)
        length, coding = self.headers.get("content-length"), self.headers.get("transfer-encoding")
        if self.status in _NO_BODY:
            length, coding = "0", None
        if (length is None) == (coding is None) or coding not in (None, "chunked"):
            raise BrokenConnection("the length of an answer is not clear")
        self._chunked = coding is not None
        self._left = (
            _parse_length(length) if length is not None else 0
        )  # bytes of the body or chunk
        self._ended = not self._chunked and not self._left
        self._keeps = minor == 1 and "close" not in self.headers.get("connection", "").lower()

    @property
    def length(self) -> int | None:
        """Number of unread body bytes; None for a chunked HTTP reply."""
        return None if self._chunked else self._left

    @property
    def connection_reusable(self) -> bool:
        """True if another HTTP request may reuse the connection."""
        return self._keeps and self._ended and not self._connection.has_unread_bytes

    def read_into(self, view: memoryview) -> int:
        """Read bytes of the reply's body into `view`; return their number.

        0 means the end of the body.
        """
        if self._chunked and not self._ended and not self._left:
            self._begin_chunk()
        if self._ended or not len(view):
            return 0
        count = self._connection.receive_into(view[: self._left])
        if count == 0:
            raise BrokenConnection("the connection was closed within an answer")
        self._left -= count
        if not self._left:
            if self._chunked:
                self._end_chunk()
            else:
                self._ended = True
        return count

    def read(self, limit: int) -> bytes:
        """Read and return the whole body of the HTTP reply.

        Raises:
            BrokenConnection: it is longer than `limit` bytes, or incomplete.
        """
        body = bytearray()
        size = BUFFER_BYTES if self._chunked else self._left
        buffer = memoryview(bytearray(min(limit, size) + 1))
        while count := self.read_into(buffer):
            body += buffer[:count]
            if len(body) > limit:
                raise BrokenConnection(f"an answer is longer than {limit} bytes")
        return bytes(body)

    def _begin_chunk(self) -> None:
        line = self._connection.read_until(b"\r\n", CHUNK_LINE_LIMIT)
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise BrokenConnection("a chunk of an answer has no length")
        self._left = int(size, 16)
        if not self._left:
            self._skip_trailers()
            self._ended = True

    def _skip_trailers(self) -> None:
        for _ in range(HEADERS_LIMIT):
            if not self._connection.read_until(b"\r\n", CHUNK_LINE_LIMIT):
                return
        raise BrokenConnection("an answer has too many trailers")

    def _end_chunk(self) -> None:
        if self._connection.read_until(b"\r\n", CHUNK_LINE_LIMIT):
            raise BrokenConnection("a chunk of an answer is longer than it says")


def _parse_head(head: bytes) -> tuple[int, int, dict[str, str]]:
    """Parse an HTTP reply's head into (minor version, status, headers)."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None or len(lines) > HEADERS_LIMIT:
        raise BrokenConnection("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BrokenConnection("a header of the answer is not HTTP")
        name, value = match[1].decode().lower(), match[2].strip(b" \t").decode("latin-1")
        headers[name] = _merge(name, headers.get(name), value)
    return int(status[1]), int(status[2]), headers


def _merge(name: str, before: str | None, value: str) -> str:
    """Combine the values of a repeated HTTP header; refuse conflicting lengths."""
    if before is None:
        return value
    if name in ("content-length", "transfer-encoding") and before != value:
        raise BrokenConnection("the length of an answer is not clear")
    return value if name == "content-length" else f"{before}, {value}"


def _parse_length(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise BrokenConnection("the length of an answer is no number")
    return int(text)
