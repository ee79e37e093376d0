"""Text of a reply from the bytes of its tokens."""

import codecs
from collections.abc import Sequence

from functions.core.language.stop_strings import StopStrings

_Utf8 = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Text of tokens, in whole characters, before the first stop string.

    >>> stream = TextStream(["."])
    >>> [stream.feed(part) for part in (b"caf\\xc3", b"\\xa9", b" au lait.")], stream.stopped
    (['caf', 'é', ' au lait'], True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._characters = _Utf8("replace")
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """True if a stop string came."""
        return self._stops.stopped

    def feed(self, data: bytes) -> str:
        """Return the text that is decided after a token's bytes."""
        return self._stops.feed(self._characters.decode(data))

    def end(self) -> str:
        """Return the rest, without bytes of half a character."""
        return self._stops.end()
