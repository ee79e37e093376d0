"""Streamed replies: status, headers, and an iterator of chunks."""

from binascii import a2b_base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functions.runtime.connection import Bytes


class StreamedReply:
    """HTTP reply of a handler whose body is sent chunk by chunk.

    Nothing is sent before the first chunk, which may be empty: until then an error is an ordinary
    one. Later it is logged, and the caller sees a broken reply. So it is with a reply that is not
    complete shortly before the invocation's deadline. An iterator that can be closed, e.g. a
    generator, is closed at the end, also when the caller has gone.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        chunks: Iterable[Bytes],
        *,
        multi_value_headers: Mapping[str, Sequence[str]] | None = None,
        cookies: Sequence[str] = (),
    ) -> None:
        self.status = status
        self.headers = headers
        self.chunks = chunks
        self.multi_value_headers = multi_value_headers
        self.cookies = cookies

    def prelude(self) -> bytes:
        r"""Return the JSON before the body, with eight NUL bytes after it.

        >>> StreamedReply(200, {"content-type": "text/plain"}, []).prelude()
        b'{"statusCode":200,"headers":{"content-type":"text/plain"}}\x00\x00\x00\x00\x00\x00\x00\x00'
        """
        import json  # not at the top: infer streams nothing

        record: dict[str, object] = {"statusCode": self.status, "headers": dict(self.headers)}
        if self.multi_value_headers:
            record["multiValueHeaders"] = dict(self.multi_value_headers)
        if self.cookies:
            record["cookies"] = list(self.cookies)
        return json.dumps(record, separators=(",", ":")).encode() + bytes(8)


def as_stream(reply: Mapping[str, Any] | bytes) -> StreamedReply:
    """Convert a reply in API Gateway's format to a stream.

    Its body is one chunk.

    >>> as_stream({"statusCode": 404, "body": "{}"}).prelude()[:18]
    b'{"statusCode":404,'

    Raises:
        LookupError, TypeError, ValueError: it is in another format.
    """
    if isinstance(reply, bytes):
        import json  # not at the top: infer streams nothing

        reply = json.loads(reply)
    fields: Any = reply
    text = fields.get("body") or ""
    body = a2b_base64(text) if fields.get("isBase64Encoded") else text.encode()
    return StreamedReply(
        int(fields["statusCode"]),
        fields.get("headers") or {},
        [body],
        multi_value_headers=fields.get("multiValueHeaders"),
        cookies=fields.get("cookies") or (),
    )


def chunked(content: Bytes) -> tuple[Bytes, Bytes, Bytes]:
    """Return a chunk of an HTTP body, in parts."""
    return b"%x\r\n" % len(content), content, b"\r\n"
