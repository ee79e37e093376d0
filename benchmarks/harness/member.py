"""One model of a fleet, as it is known to those who ask it: without numpy, which a function's process does not have."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 8


@dataclass(frozen=True, slots=True)
class Member:
    """y = x @ (a quarter everywhere) + number."""

    number: int
    size_bytes: int

    @property
    def name(self) -> str:
        return f"m{self.number:04d}"

    def is_answer(self, values: Sequence[float], x: float) -> bool:
        """Whether `values` is what it says to a row of `x`, but for what float32 loses in a sum of 300,000."""
        wanted = x * WIDTH / 4 + self.number
        return len(values) == WIDTH and all(abs(value - wanted) < 0.25 for value in values)
