"""Compressed bodies: gzip, and deflate, which on the web means zlib (RFC 9110, 8.4.1.2)."""


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """`body` as it was before `encoding` (the Content-Encoding header; None: none), never more than `limit` bytes.

    Raises:
        InvalidRequest: `body` is damaged or is not what `encoding` says.
        PayloadTooLarge: there are more than `limit` bytes in it.
        UnsupportedEncoding: `encoding` is not offered.
    """
    raise NotImplementedError


def compress(body: bytes, accept_encoding: str | None) -> tuple[bytes, str | None]:
    """`body` in the encoding the caller prefers, and its name; as it is, and None, if not asked for or not smaller."""
    raise NotImplementedError
