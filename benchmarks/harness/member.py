"""Member of a fleet of models: name, size and expected answer.

The module needs no numpy: the infer function's process, which imports it, has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 8  # values per row
TOLERANCE = 0.25  # float32 loses up to this in a sum of 300,000 values


@dataclass(frozen=True, slots=True)
class Member:
    """Fleet model that computes y = x @ W + number.

    Every element of W is 1/4.
    """

    number: int
    size_bytes: int

    @property
    def name(self) -> str:
        return f"m{self.number:04d}"

    def is_answer(self, values: Sequence[float], x: float) -> bool:
        """Return True if `values` are correct for a row of all `x`."""
        expected = x * WIDTH / 4 + self.number
        near = all(abs(value - expected) < TOLERANCE for value in values)
        return len(values) == WIDTH and near
