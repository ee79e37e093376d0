"""HTTP/1.1 over a socket, and connections that are kept for the next request

Only what the two services need: requests with a body in memory, replies read strictly, bodies straight into a buffer.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

HEAD_LIMIT = 32 * 1024  # bytes of a reply before its body
HEADERS_LIMIT = 100
CHUNK_LINE_LIMIT = 1024
IDLE_S = 20.0  # services close what is idle for about as long; an environment may have been frozen for hours
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_INTERIM = range(100, 200)
_NO_BODY = {204, 304}


class Broken(Exception):
    """When no whole answer came: refused, reset, too slow, or not what HTTP allows.

    Not `answered` where the other side hung up before the first byte of it, as it does with a stale connection.
    """

    def __init__(self, what: str, *, answered: bool = True) -> None:
        super().__init__(what)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service answers. `path` is put before every request's own."""

    host: str
    port: int
    tls: bool
    path: str = ""

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        """
        >>> Endpoint.of("http://127.0.0.1:8081/aws/")
        Endpoint(host='127.0.0.1', port=8081, tls=False, path='/aws')

        Raises:
            LookupError: it is no http(s) URL.
        """
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
        ):
            raise LookupError(
                f"{url!r} is no endpoint: it begins with https:// or http:// and has a host"
            )
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The `host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Trust:
    """The certificate authorities that are trusted: of a file, or the system's. Read once, when first needed."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def context(self) -> "ssl.SSLContext":
        import ssl  # only where there is TLS: it costs 5 ms, and the authorities 20

        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context(cafile=self._ca_file)
            return self._context


class Connection:
    """One socket. Deadlines are instants of `time.monotonic`."""

    def __init__(self, endpoint: Endpoint, trust: Trust, *, deadline: float, read_s: float) -> None:
        """
        Raises:
            Broken: nobody answers there before `deadline`, or nobody whom we trust.
        """
        self._read_s = read_s
        self._deadline = deadline
        self._ahead = memoryview(b"")  # received, not yet read
        self.pooled_at = 0.0  # Unix time; 0 for a new one, which cannot be stale
        try:
            # As bytes: text is taken for IDNA, whose codec is not free to import.
            host: Any = endpoint.host.encode() if endpoint.host.isascii() else endpoint.host
            self._socket = socket.create_connection(
                (host, endpoint.port), max(0.001, deadline - monotonic())
            )
        except OSError as error:
            raise Broken(f"no connection: {error}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls:
                context = trust.context()
                self._wait()
                self._socket = context.wrap_socket(self._socket, server_hostname=endpoint.host)
        except OSError as error:  # what ssl raises is one, too
            self._socket.close()
            raise Broken(f"no connection: {error}") from error
        except BaseException:
            self._socket.close()
            raise

    def ask(self, message: bytes, deadline: float) -> "Reply":
        """Send a request; the head of its answer is read. Every wait, also for the body, ends by `deadline`.

        Raises:
            Broken: there is no answer; `answered` says whether it had begun.
        """
        self._deadline = deadline
        self._wait()
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise Broken(f"sending failed: {error}", answered=False) from error
        return Reply(self)

    def close(self) -> None:
        self._socket.close()

    def receive_into(self, view: memoryview) -> int:
        """As many bytes as there are, up to the length of `view`; 0 where the other side has closed."""
        if self._ahead:
            count = min(len(view), len(self._ahead))
            view[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        self._wait()
        try:
            return self._socket.recv_into(view)
        except OSError as error:
            raise Broken(f"receiving failed: {error}") from error

    def until(self, mark: bytes, limit: int) -> bytes:
        """What comes before `mark`, which is taken too."""
        found = bytearray(self._ahead)
        self._ahead = memoryview(b"")
        seen = 0
        while (at := found.find(mark, max(0, seen - len(mark)))) < 0:
            seen = len(found)
            if seen > limit:
                raise Broken("a line is too long for HTTP")
            self._wait()
            try:
                more = self._socket.recv(4096)
            except OSError as error:
                raise Broken(f"receiving failed: {error}", answered=bool(found)) from error
            if not more:
                raise Broken("the connection was closed", answered=bool(found))
            found += more
        if at > limit:
            raise Broken("a line is too long for HTTP")
        self._ahead = memoryview(bytes(found[at + len(mark) :]))
        return bytes(found[:at])

    @property
    def has_more(self) -> bool:
        """Whether something came that nobody asked for."""
        return len(self._ahead) > 0

    def _wait(self) -> None:
        left = self._deadline - monotonic()
        if left <= 0:
            raise Broken("out of time")
        self._socket.settimeout(min(self._read_s, left))


class Reply:
    """An answer whose head has been read. The names of `headers` are lower case.

    Raises:
        Broken: it is not HTTP, or ends too early.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 100
        while self.status in _INTERIM:
            head = connection.until(b"\r\n\r\n", HEAD_LIMIT)
            minor, self.status, self.headers = _parsed(head)
        length, coding = self.headers.get("content-length"), self.headers.get("transfer-encoding")
        if self.status in _NO_BODY:
            length, coding = "0", None
        if (length is None) == (coding is None) or coding not in (None, "chunked"):
            raise Broken("the length of an answer is not clear")
        self._chunked = coding is not None
        self._left = _length(length) if length is not None else 0  # of the body, or of a chunk
        self._ended = not self._chunked and not self._left
        self._keeps = minor == 1 and "close" not in self.headers.get("connection", "").lower()

    @property
    def length(self) -> int | None:
        """How many bytes of the body are still to come, where its sender has said so."""
        return None if self._chunked else self._left

    @property
    def leaves_reusable(self) -> bool:
        """Whether the next request may go over the same connection."""
        return self._keeps and self._ended and not self._connection.has_more

    def read_into(self, view: memoryview) -> int:
        """The next bytes of the body, at most as many as `view` has; 0 at its end."""
        if self._chunked and not self._ended and not self._left:
            self._next_chunk()
        if self._ended or not len(view):
            return 0
        count = self._connection.receive_into(view[: self._left])
        if count == 0:
            raise Broken("the connection was closed within an answer")
        self._left -= count
        if not self._left:
            if self._chunked:
                self._line_end()
            else:
                self._ended = True
        return count

    def read(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            Broken: also where it is longer than `limit`.
        """
        found = bytearray()
        piece = memoryview(
            bytearray(min(limit, self.length if self.length is not None else 64 * 1024) + 1)
        )
        while count := self.read_into(piece):
            found += piece[:count]
            if len(found) > limit:
                raise Broken(f"an answer is longer than {limit} bytes")
        return bytes(found)

    def _next_chunk(self) -> None:
        size = self._connection.until(b"\r\n", CHUNK_LINE_LIMIT).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise Broken("a chunk of an answer has no length")
        self._left = int(size, 16)
        if not self._left:
            for _ in range(HEADERS_LIMIT):  # trailers; nobody needs them
                if not self._connection.until(b"\r\n", CHUNK_LINE_LIMIT):
                    self._ended = True
                    return
            raise Broken("an answer has too many trailers")

    def _line_end(self) -> None:
        if self._connection.until(b"\r\n", CHUNK_LINE_LIMIT):
            raise Broken("a chunk of an answer is longer than it says")


def _parsed(head: bytes) -> tuple[int, int, dict[str, str]]:
    """(minor version of HTTP, status, headers) of what comes before a body."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None or len(lines) > HEADERS_LIMIT:
        raise Broken("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Broken("a header of the answer is not HTTP")
        name, value = match[1].decode().lower(), match[2].strip(b" \t").decode("latin-1")
        if (
            name in headers
            and name in ("content-length", "transfer-encoding")
            and headers[name] != value
        ):
            raise Broken("the length of an answer is not clear")
        headers[name] = (
            value
            if name not in headers or name == "content-length"
            else f"{headers[name]}, {value}"
        )
    return int(status[1]), int(status[2]), headers


def _length(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise Broken("the length of an answer is no number")
    return int(text)


class Pool:
    """Connections to one endpoint, shared by threads. The last one that was given back is the next one taken."""

    def __init__(self, open_one: Callable[[float], Connection]) -> None:
        """`open_one` opens a connection before a deadline."""
        self._open = open_one
        self._idle: list[Connection] = []  # append and pop are atomic

    def take(self, deadline: float) -> Connection:
        """An idle connection, or a new one."""
        while (connection := self._popped()) is not None:
            if time.time() - connection.pooled_at < IDLE_S:
                return connection
            connection.close()
        return self._open(deadline)

    def fresh(self, deadline: float) -> Connection:
        """A new connection, after one turned out to be stale: the others are older still."""
        self.close()
        return self._open(deadline)

    def give(self, connection: Connection) -> None:
        connection.pooled_at = time.time()  # which goes on while an environment is frozen
        self._idle.append(connection)

    def open_ahead(self, count: int, deadline: float) -> None:
        """Begin to open so many connections, in threads; a failure shows when one is needed."""
        for _ in range(count):
            threading.Thread(
                target=self._add, args=(deadline,), name="connect", daemon=True
            ).start()

    def close(self) -> None:
        """Close what is idle."""
        while (connection := self._popped()) is not None:
            connection.close()

    def _popped(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _add(self, deadline: float) -> None:
        with contextlib.suppress(Broken):
            self.give(self._open(deadline))
