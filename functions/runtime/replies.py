"""Streamed replies: status, headers, and an iterator of chunks."""

from collections.abc import Iterable, Mapping, Sequence

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
