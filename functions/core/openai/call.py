"""Request to a language model in progress."""

import time

from functions.core.serving.service import Call


class LanguageCall(Call):
    """Call of a language model: numbers of tokens, and times.

    `tokens_out` is 0 for vectors. `first_ns` is the time from the request to the first token.
    """

    __slots__ = ("action", "began_ns", "finish", "first_ns", "tokens_in", "tokens_out")

    def __init__(self, body: bytes = b"", deadline: float | None = None) -> None:
        super().__init__("", body, deadline)
        self.began_ns = self.lap_began_ns
        self.action = "unknown"
        self.tokens_in = 0
        self.tokens_out = 0
        self.first_ns = 0
        self.finish = ""  # reason why the last text ended

    def mark_first(self) -> None:
        """Record the time to the first token, once."""
        if not self.first_ns:
            self.first_ns = time.perf_counter_ns() - self.began_ns

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first one; 0.0 if there were none."""
        seconds = (time.perf_counter_ns() - self.began_ns - self.first_ns) / 1e9
        return (self.tokens_out - 1) / seconds if self.tokens_out > 1 and seconds > 0 else 0.0
