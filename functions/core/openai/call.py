"""Request to a language model in progress."""

import time

from functions.core.serving.service import Call


class LanguageCall(Call):
    """Call of a language model, with counts of tokens and times.

    `tokens_in` counts the tokens of prompts or texts, `tokens_out` those of replies (0 for
    vectors). Times are nanoseconds of `time.perf_counter_ns`: `began_ns` is its value when the call
    was made, `first_ns` the duration from then to the first token, 0 before it. `deadline` is a
    time in seconds of `time.monotonic`.
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
        """Record the time to the first token; later calls change nothing."""
        if not self.first_ns:
            self.first_ns = time.perf_counter_ns() - self.began_ns

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first one; 0.0 without any."""
        seconds = (time.perf_counter_ns() - self.began_ns - self.first_ns) / 1e9
        return (self.tokens_out - 1) / seconds if self.tokens_out > 1 and seconds > 0 else 0.0
