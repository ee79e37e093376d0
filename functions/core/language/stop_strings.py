"""Search for stop strings in a text that comes in parts."""

from collections.abc import Sequence


class StopStrings:
    """Finder of the first stop string, in linear time.

    Each has an automaton of Knuth, Morris and Pratt. Text that may be the start of a stop string
    is held back until it is decided.

    >>> stops = StopStrings(["###", "#!"])
    >>> [stops.feed("one #"), stops.feed("# two #"), stops.feed("!x")], stops.stopped
    (['one ', '## two ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._patterns = [_Pattern(stop) for stop in stops if stop]
        self._held = ""  # the start of a stop string

    def feed(self, text: str) -> str:
        """Return the text that is now decided to be no stop string."""
        if self.stopped or not self._patterns:
            return "" if self.stopped else text
        before = len(self._held)
        self._held += text
        for end, character in enumerate(text, before + 1):
            matched = max(pattern.step(character) for pattern in self._patterns)
            if matched:
                self.stopped = True
                return self._release(end - matched)
        return self._release(len(self._held) - max(each.state for each in self._patterns))

    def end(self) -> str:
        """Return the text that is held back at the end."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


class _Pattern:
    """Stop string and how much of it the text's end matches."""

    def __init__(self, text: str) -> None:
        self.state = 0
        self._text = text
        # Length of the longest proper prefix that ends each prefix, by the latter's length.
        self._borders = borders = [0, 0]
        for at in range(1, len(text)):
            border = borders[at]
            while border and text[at] != text[border]:
                border = borders[border]
            borders.append(border + (text[at] == text[border]))

    def step(self, character: str) -> int:
        """Read a character; return the stop string's length at its end.

        Elsewhere 0."""
        text, state = self._text, self.state
        while state and text[state] != character:
            state = self._borders[state]
        self.state = state = state + 1 if text[state] == character else 0
        return state if state == len(text) else 0
