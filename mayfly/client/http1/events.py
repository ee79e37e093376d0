"""Incremental parser of server-sent events, for streamed replies."""

import json
from typing import Any

from mayfly.client.errors import ServerError
from mayfly.client.http1.messages import Reply, error_of

LAST_EVENT = "[DONE]"  # as OpenAI's API ends a stream
EVENT_BYTES = 8_388_608  # an event that does not end is no event


class EventParser:
    """Parser of an event stream's data fields.

    >>> parser = EventParser()
    >>> parser.feed(b"data: one\\r\\n\\r\\ndata: t"), parser.feed(b"wo\\n\\n: a comment\\n\\n")
    (['one'], ['two'])
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """Parse the next bytes; return the data of complete events.

        Raises:
            ServerError: an event does not end.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > EVENT_BYTES:
            raise ServerError("an event of the reply does not end")
        events = []
        for line in lines:
            name, _, value = line.rstrip(b"\r").decode(errors="replace").partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not name and not value and self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events


def event_document(text: str) -> Any:
    """Return the JSON document of an event.

    Raises:
        MayflyError: it is an error, or no JSON.
    """
    try:
        document = json.loads(text)
    except ValueError:
        raise ServerError(f"an event of the reply is no JSON: {text[:40]!r}") from None
    if isinstance(document, dict) and "error" in document:
        raise error_of(Reply(500, {}, text.encode()))
    return document
