"""Printing of training progress: loss, metrics, rate and time left."""

from __future__ import annotations

import sys
import time

from training.fitting.checkpoint import Row, RunState
from training.fitting.distributed import Ranks

PRINT_EVERY_S = 5.0  # between progress lines within an epoch


class Progress:
    """Printer of training progress, once an epoch and within long epochs.

    log_lines.py has the regular expressions that read the lines.
    """

    def __init__(self, done: int, total: int, ranks: Ranks) -> None:
        self._first, self._total, self._silent = done, total, not ranks.leads
        self._started = self._printed = time.monotonic()
        self._in_place = "ipykernel" in sys.modules  # a notebook, where lines would pile up
        self._width = 0

    def left_s(self, done: int) -> float:
        """Estimate the seconds of training left after `done` steps."""
        spent = time.monotonic() - self._started
        return spent / max(done - self._first, 1) * (self._total - done)

    def step(self, state: RunState, done: int) -> None:
        """Print progress within a long epoch, at most every PRINT_EVERY_S seconds."""
        if self._silent or time.monotonic() - self._printed <= PRINT_EVERY_S:
            return
        self._printed = time.monotonic()
        left = f"left={self.left_s(done):.0f}s"
        self._print(f"epoch {state.epoch + 1}  step {state.step}  {left}")

    def epoch(self, row: Row, epochs: int, done: int) -> None:
        """Print the metrics of a finished epoch and the time left."""
        if self._silent:
            return
        self._printed = time.monotonic()
        validation = "".join(
            f"  {name}={value:.4f}" for name, value in row.items() if name.startswith("validation_")
        )
        share = f"  roof={row['roof']:.1%}" if "roof" in row else ""
        self._print(
            f"epoch {row['epoch']}/{epochs}  loss={row['loss']:.4f}{validation}"
            f"  rate={row['examples_per_s']:.0f}/s{share}  left={self.left_s(done):.0f}s",
            is_last=row["epoch"] == epochs,
        )

    def _print(self, line: str, *, is_last: bool = False) -> None:
        """Print a line; in a notebook, over the one before."""
        if not self._in_place:
            print(line, flush=True)
            return
        print("\r" + line.ljust(self._width), end="\n" if is_last else "", flush=True)
        self._width = len(line)
