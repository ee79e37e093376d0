"""Cursors of pages: positions in lists, as opaque texts."""

import base64
import binascii

from functions.core.errors import InvalidRequest

POSITION_BYTES = 1000  # a key of DynamoDB's indexes has at most 1,024


def encode_cursor(position: str) -> str | None:
    """Return the cursor of a position, None at the end."""
    return base64.urlsafe_b64encode(position.encode()).decode() if position else None


def decode_cursor(cursor: str) -> str:
    """Return the position of a cursor, "" for none.

    Raises:
        InvalidRequest: no page has this cursor.
    """
    try:
        position = base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise no_page() from error
    if not position.isprintable() or len(position.encode()) > POSITION_BYTES:
        raise no_page()
    return position


def no_page() -> InvalidRequest:
    """Return the error for a cursor of no page."""
    return InvalidRequest("cursor: no such page; send next_cursor of the page before, or no cursor")
