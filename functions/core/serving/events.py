"""Lambda events as JSON text, parsed without their large base64 body.

Only the standard library, because prefetch.py needs it before the rest of the service is imported.
"""

import json
from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]

MARK = "*"  # stands for a body that was cut out; no base64 is the same
LONG_BYTES = 65536  # events from this size on are searched from their end
_KEY, _FLAG, _BACKSLASH = b'"body":', b'"isBase64Encoded"', 0x5C


def find_body(raw: bytes, *, is_checked: bool = False) -> tuple[int, int] | None:
    r"""Return the bounds of a JSON event's only "body", without its quotes.

    None if it is no string, if it has escapes, or if there are several. JSON writes a quote within
    a string as \", so the key is never part of a value. If the caller checks that the body holds no
    quote (`is_checked`), the end of a long one is taken to be before "isBase64Encoded", as in API
    Gateway's events: the search through 535 KB takes 7.7 µs, as much as 1.3 % of their request.

    >>> find_body(b'{"body": "QUI=", "path": "/"}'), find_body(b'{"body": null}')
    ((10, 14), None)
    """
    key = raw.find(_KEY)
    start = raw.find(b'"', key + len(_KEY)) + 1
    end = -1
    if is_checked and len(raw) >= LONG_BYTES:
        end = raw.rfind(b'"', start, max(0, raw.rfind(_FLAG, start)))
    if end < 0:
        end = raw.find(b'"', start)
    if key < 0 or end < 0 or raw[key + len(_KEY) : start - 1].strip():
        return None
    if raw[end - 1] == _BACKSLASH or raw.find(_KEY, end) > 0:
        return None
    return start, end


def without_body(raw: bytes, body: tuple[int, int]) -> bytes:
    """Return a JSON event with MARK in place of its body.

    >>> without_body(b'{"body": "QUI="}', (10, 14))
    b'{"body": "*"}'
    """
    start, end = body
    return raw[:start] + MARK.encode() + raw[end:]


def parse_head(raw: bytes) -> Event:
    """Parse an event without its body: for its path, headers and query.

    Raises:
        ValueError: it is no JSON object.
    """
    body = find_body(raw)
    event = json.loads(without_body(raw, body) if body else raw)
    if not isinstance(event, dict):
        raise ValueError("the event is no JSON object")
    return event
