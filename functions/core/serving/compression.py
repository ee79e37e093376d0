"""Decompression and compression of HTTP bodies: gzip and deflate.

In HTTP, deflate means the zlib format (RFC 9110, section 8.4.1).
"""

import zlib
from functools import lru_cache

from functions.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding, shown

# zlib's parameter `wbits` for each format
GZIP, ZLIB, RAW = 31, 15, -15
OFFERED = {"gzip": GZIP, "deflate": ZLIB}  # in order of preference
INFLATED_BYTES_MAX = 64 * 1024 * 1024  # a request body after decompression
LEVEL = 1  # zlib's lowest of 1 to 9: most of the gain at a fraction of the time


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Decompress an HTTP body by its Content-Encoding, up to `limit` bytes.

    `encoding` is the Content-Encoding header or None. API Gateway may have decompressed the body
    and left the header, so a body that is not compressed is returned unchanged.

    Raises:
        InvalidRequest: `body` is damaged.
        PayloadTooLarge: it holds more than `limit` bytes.
        UnsupportedEncoding: `encoding` is not offered.
    """
    name = "identity" if encoding is None else encoding.strip().lower()
    if name in ("gzip", "x-gzip"):
        plain = _expand(body, GZIP, limit) if body[:2] == b"\x1f\x8b" else body
    elif name == "deflate":
        plain = _expand_deflate(body, limit)
    elif name in ("identity", ""):
        plain = body
    else:
        raise UnsupportedEncoding(
            f"Content-Encoding {shown(name)} is not offered: send gzip, deflate or none"
        )
    if len(plain) > limit:
        raise _too_large(limit)
    return plain


def _expand_deflate(body: bytes, limit: int) -> bytes:
    # RFC 1950: method 8, and the first two bytes are a multiple of 31. JSON never begins like that.
    has_zlib_header = (
        len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    )
    if has_zlib_header:
        return _expand(body, ZLIB, limit)
    try:
        return _expand(body, RAW, limit)  # some clients send deflate data without the zlib header
    except PayloadTooLarge:
        raise
    except InvalidRequest:
        return body


def _expand(body: bytes, wbits: int, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits)
    try:
        plain = decompressor.decompress(body, limit + 1)  # bounded: a small body may hold gigabytes
    except zlib.error:
        raise InvalidRequest("the body is damaged: its compressed data cannot be read") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not decompressor.eof:
        raise InvalidRequest("the body is damaged: its compressed data ends too early")
    if trailing := len(decompressor.unused_data):
        raise InvalidRequest(f"the body has {trailing} bytes after its compressed data")
    return plain


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body holds more than {limit} bytes: send fewer rows at once")


def compress(body: bytes, accept_encoding: str | None) -> tuple[bytes, str | None]:
    """Compress an HTTP body in the encoding that Accept-Encoding prefers.

    Returns the body and its encoding: unchanged and None if the caller accepts no encoding, or
    if compression saves nothing.

    >>> compress(b"a" * 100, "br, gzip;q=0.5, deflate")[1], compress(b"a" * 9, "gzip;q=0")
    ('deflate', (b'aaaaaaaaa', None))
    """
    name = preferred(accept_encoding) if accept_encoding else None
    if name is None:
        return body, None
    smaller = zlib.compress(body, LEVEL, OFFERED[name])
    return (smaller, name) if len(smaller) < len(body) else (body, None)


@lru_cache(maxsize=64)
def preferred(accept_encoding: str) -> str | None:
    """Return gzip or deflate, as an Accept-Encoding header prefers, or None.

    Source: RFC 9110, section 12.5.3.

    >>> preferred("deflate, gzip"), preferred("gzip;q=0.1, identity"), preferred("*")
    ('gzip', None, 'gzip')
    >>> preferred("br"), preferred("")
    (None, None)
    """
    weights = dict(map(_weighted, accept_encoding.lower().split(",")))
    default = weights.get("*", 0.0)
    name = max(OFFERED, key=lambda offered: weights.get(offered, default))
    weight = weights.get(name, default)
    return name if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weighted(item: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in item.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
