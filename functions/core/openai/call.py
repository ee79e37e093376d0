"""Request to a language model in progress."""

import time

from functions.core.serving.service import Call


class LanguageCall(Call):
    """Call of a language model, with the time to its first token.

    `tokens_in` counts the tokens of prompts or texts, `tokens_out` those of replies (0 for
    vectors). `first_ns` is the duration from `began_ns` to the first token, 0 before it.
    """

    __slots__ = ("finish", "first_ns")

    def __init__(self, body: bytes = b"", deadline: float | None = None) -> None:
        super().__init__("", body, deadline)
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
