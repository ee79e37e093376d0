"""Frames of an AWS event stream, in which InvokeWithResponseStream answers.

Source: docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html ("Response syntax").
"""

import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
STRING = 7  # type of a header's value


def frame(event_type: str, payload: bytes, content_type: str) -> bytes:
    """Return one event of an AWS event stream."""
    headers = b"".join(
        _header(name, value)
        for name, value in (
            (":message-type", "event"),
            (":event-type", event_type),
            (":content-type", content_type),
        )
    )
    total_size = 4 + 4 + 4 + len(headers) + len(payload) + 4  # with three checksums and lengths
    prelude = struct.pack(">II", total_size, len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return (
        struct.pack(">B", len(name))
        + name.encode()
        + struct.pack(">BH", STRING, len(value))
        + (value.encode())
    )
