"""Decompression and compression of HTTP bodies: gzip and deflate.

In HTTP, deflate means the zlib format (RFC 9110, section 8.4.1).
"""

import zlib
from functools import lru_cache

from functions.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding, shown

# zlib's parameter `wbits` for each format
GZIP, ZLIB, RAW = 31, 15, -15
MAGIC = b"\x1f\x8b"  # the first bytes of a gzip member
OFFERED = {"gzip": GZIP, "deflate": ZLIB}  # in order of preference
INFLATED_BYTES_MAX = 64 * 1024 * 1024  # a request body after decompression
MEMBERS_MAX = 256  # gzip members in a body; each one copies the rest of the body
LEVEL = 1  # zlib's lowest of 1 to 9: most of the gain at a fraction of the time
PIECE_BYTES = 2**20  # a reply over the limit is compressed in pieces of this size


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Decompress an HTTP body by its Content-Encoding, up to `limit` bytes.

    `encoding` is the Content-Encoding header or None. API Gateway may have decompressed the body
    and left the header, so JSON is returned unchanged, and so is an empty body.

    Raises:
        InvalidRequest: `body` is damaged, or not compressed as `encoding` says.
        PayloadTooLarge: it holds more than `limit` bytes.
        UnsupportedEncoding: `encoding` is not offered.
    """
    name = "identity" if encoding is None else encoding.strip().lower()
    if name in ("identity", ""):
        plain = body
    elif name in ("gzip", "x-gzip"):
        is_gzip = body.startswith(MAGIC)
        plain = _expand(body, GZIP, limit, name) if is_gzip else _unpacked(body, name)
    elif name == "deflate":
        plain = _expand_deflate(body, limit)
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
        return _expand(body, ZLIB, limit, "deflate")
    try:  # some clients send deflate data without the zlib header
        return _expand(body, RAW, limit, "deflate")
    except PayloadTooLarge:
        raise
    except InvalidRequest:
        return _unpacked(body, "deflate")


def _unpacked(body: bytes, name: str) -> bytes:
    """Accept an already decompressed request body if it is JSON or empty.

    Raises:
        InvalidRequest: it is neither.
    """
    if body and not body.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"{"):
        raise InvalidRequest(
            f"header Content-Encoding is {name} and the body is not {name}: "
            "compress it, or leave the header out"
        )
    return body


def _expand(body: bytes, wbits: int, limit: int, name: str) -> bytes:
    """Decompress an HTTP body; gzip may have several members (RFC 1952, 2.2)."""
    members: list[bytes] = []
    size = 0
    while not members or (wbits == GZIP and body.startswith(MAGIC)):
        if len(members) == MEMBERS_MAX:
            raise InvalidRequest(f"the body's {name} data has more than {MEMBERS_MAX} members")
        plain, body = _expand_member(body, wbits, limit + 1 - size, name)
        members.append(plain)
        size += len(plain)
        if size > limit:
            raise _too_large(limit)
    if body:
        raise InvalidRequest(f"the body has {len(body)} bytes after its {name} data")
    return b"".join(members)


def _expand_member(body: bytes, wbits: int, room: int, name: str) -> tuple[bytes, bytes]:
    """Decompress the first member of compressed data, up to `room` bytes.

    Return the decompressed data and the rest of the body.
    """
    decompressor = zlib.decompressobj(wbits)
    try:
        plain = decompressor.decompress(body, room)  # bounded: a small body may hold gigabytes
    except zlib.error:
        raise InvalidRequest(
            f"the body's {name} data is damaged and cannot be read; compress it again"
        ) from None
    if not decompressor.eof and len(plain) < room:
        raise InvalidRequest(f"the body's {name} data ends too early; send all of it")
    return plain, decompressor.unused_data


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body holds more than {limit} bytes: send fewer rows at once")


def compress(
    body: bytes, accept_encoding: str | None, limit: int | None = None
) -> tuple[bytes, str | None]:
    """Compress an HTTP body in the encoding that Accept-Encoding prefers.

    Returns the body and its encoding: unchanged and None if the caller accepts no encoding, or
    if compression saves nothing. Compression of a longer body than `limit` ends when the result
    exceeds `limit`, too.

    >>> compress(b"a" * 100, "br, gzip;q=0.5, deflate")[1], compress(b"a" * 9, "gzip;q=0")
    ('deflate', (b'aaaaaaaaa', None))
    """
    name = preferred(accept_encoding) if accept_encoding else None
    if name is None:
        return body, None
    if limit is not None and len(body) > limit:
        smaller = _compress_to(limit, body, OFFERED[name])
    else:
        smaller = zlib.compress(body, LEVEL, OFFERED[name])
    return (smaller, name) if len(smaller) < len(body) else (body, None)


def _compress_to(limit: int, body: bytes, wbits: int) -> bytes:
    """Compress an HTTP body; stop once the result exceeds `limit` bytes."""
    compressor, view = zlib.compressobj(LEVEL, wbits=wbits), memoryview(body)
    pieces, size = [], 0
    for start in range(0, len(body), PIECE_BYTES):
        pieces.append(compressor.compress(view[start : start + PIECE_BYTES]))
        size += len(pieces[-1])
        if size > limit:
            break
    return b"".join([*pieces, compressor.flush()])


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
