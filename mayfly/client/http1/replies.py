"""Incremental parser of HTTP/1.1 replies, for both transports.

http.client reads headers with the parser of e-mail, and h11 copies every byte: each takes longer
than all the rest of a small call.
"""

from mayfly.client.http1.compression import BadData, inflate
from mayfly.client.http1.messages import Reply

HEAD_BYTES = 65_536
HEADERS_MAX = 200
BODYLESS = (204, 304)


class BadReply(Exception):
    """Bytes that are no HTTP/1.1 reply, or end before the reply does."""


class ReplyParser:
    """Parser of a reply: `reply` is set once it is whole.

    `keep` tells if the connection stays open.

    >>> parser = ReplyParser()
    >>> parser.feed(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n"), parser.feed(b"\\r\\nhi")
    (False, True)
    >>> parser.reply.body
    b'hi'
    """

    def __init__(self, *, to_head: bool = False) -> None:
        self.reply: Reply | None = None
        self.keep = False
        self._to_head = to_head  # the reply to HEAD has no body
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._start = 0  # offset of the body in the buffer
        self._length: int | None = None  # bytes of the body; None: until the connection closes
        self._chunks: _Chunks | None = None

    def feed(self, data: bytes) -> bool:
        """Take the bytes that arrived next; return if the reply is whole.

        Raises:
            BadReply: they cannot be read, or end the connection before the reply.
        """
        if not data:
            self._end()
            return True
        self._buffer += data
        while not self._status and self._read_head():
            pass
        if self._status and self._body_is_whole():
            self._finish()
        return self.reply is not None

    @property
    def status(self) -> int:
        """Status of the reply, 0 before its head is whole."""
        return self._status

    def take(self) -> bytes:
        """Return and forget the chunks that arrived; of other bodies nothing.

        >>> parser = ReplyParser()
        >>> head = b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n"
        >>> parser.feed(head + b"2\\r\\nhi\\r\\n")
        False
        >>> parser.take(), parser.take()
        (b'hi', b'')
        """
        if self._chunks is None or self.reply or "content-encoding" in self._headers:
            return b""
        body = b"".join(self._chunks.parts)
        self._chunks.parts.clear()
        return body

    def _read_head(self) -> bool:
        """Read the head if it is whole; return if another follows."""
        end = self._buffer.find(b"\r\n\r\n", self._start)
        if end < 0:
            if len(self._buffer) - self._start > HEAD_BYTES:
                raise BadReply("the reply's head is too long")
            return False
        first, *lines = self._buffer[self._start : end].decode("latin-1").split("\r\n")
        self._start = end + 4
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise BadReply(f"the reply begins with {first[:40]!r}, which is no HTTP")
        if 100 <= int(rest[:3]) < 200:
            return True
        self._status, self._headers = int(rest[:3]), _headers(lines)
        connection = self._headers.get("connection", "").lower()
        self.keep = version == "HTTP/1.1" and connection != "close"
        self._frame()
        return False

    def _frame(self) -> None:
        """Find out how the body ends (RFC 9112, section 6.3)."""
        if self._to_head or self._status in BODYLESS:
            self._length = 0
        elif "chunked" in self._headers.get("transfer-encoding", "").lower():
            self._chunks = _Chunks(self._start)
        elif "content-length" in self._headers:
            self._length = _number(self._headers["content-length"], 10)

    def _body_is_whole(self) -> bool:
        if self._chunks is not None:
            return self._chunks.read(self._buffer)
        return self._length is not None and len(self._buffer) - self._start >= self._length

    def _end(self) -> None:
        if not self._status:
            raise BadReply("the connection was closed without a reply")
        if self._chunks is not None or self._length is not None:
            raise BadReply("the connection was closed before the end of the reply")
        self._length, self.keep = len(self._buffer) - self._start, False
        self._finish()

    def _finish(self) -> None:
        if self._chunks is not None:
            body, end = b"".join(self._chunks.parts), self._chunks.position
        else:
            end = self._start + (self._length or 0)
            body = bytes(memoryview(self._buffer)[self._start : end])
        self.keep = self.keep and end == len(self._buffer)
        try:
            body = inflate(body, self._headers.get("content-encoding", ""))
        except BadData as error:
            raise BadReply(str(error)) from error
        self.reply = Reply(self._status, self._headers, body)


class _Chunks:
    """Chunks of a body (RFC 9112, section 7.1)."""

    def __init__(self, position: int) -> None:
        self.parts: list[bytes] = []
        self.position = position
        self._last = False  # the last chunk is read, trailers may follow

    def read(self, buffer: bytearray) -> bool:
        """Read the chunks that are whole; return if the body is."""
        while (end := buffer.find(b"\r\n", self.position)) >= 0:
            line = bytes(buffer[self.position : end])
            if self._last:
                self.position = end + 2
                if not line:
                    return True
                continue
            size = _number(line.partition(b";")[0].decode("latin-1").strip(), 16)
            if not size:
                self._last, self.position = True, end + 2
                continue
            if len(buffer) < end + 2 + size + 2:
                return False
            self.parts.append(bytes(buffer[end + 2 : end + 2 + size]))
            self.position = end + 2 + size + 2
        return False


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > HEADERS_MAX:
        raise BadReply(f"the reply has more than {HEADERS_MAX} headers")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadReply(f"the header {line[:40]!r} cannot be read")
        headers[name.lower()] = value.strip()
    return headers


def _number(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise BadReply(f"the reply's length {text[:40]!r} cannot be read")
    return number
