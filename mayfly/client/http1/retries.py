"""Retry policy: waits between attempts, within a call's time limit.

Only what is safe is repeated: reads, predictions (they change nothing), and changes with an
Idempotency-Key. Anything may be repeated that the service cannot have begun: a connection that was
refused, or a 429.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from mayfly.client.errors import Disconnected, MayflyError, QuotaExceeded, TimedOut, Unavailable

RETRIES = 4  # attempts after the first, if no Retry-After says when to come back
FIRST_WAIT_S = 0.1  # exponential backoff: 0.1, 0.2, 0.4, 0.8 s at most
LONGEST_WAIT_S = 5.0
JITTER = 0.25  # share of Retry-After added at random, so that callers do not return at once


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Number of retries without Retry-After, and source of jitter."""

    retries: int = RETRIES
    draw: Callable[[], float] = random.random

    def wait(self, error: MayflyError, attempt: int, left_s: float, *, safe: bool) -> float | None:
        """Return the seconds until the next attempt, None for no more.

        `attempt` counts from 0; `left_s` is the time left to the call. A Retry-After that is
        longer than that ends the attempts at once; one that is not may come any number of times.

        >>> policy = RetryPolicy(draw=lambda: 1.0)
        >>> policy.wait(QuotaExceeded("", retry_after=2.0), 0, 60.0, safe=False)
        2.5
        >>> policy.wait(QuotaExceeded("", retry_after=90.0), 0, 60.0, safe=False) is None
        True
        """
        if self.retries == 0 or not _repeatable(error, safe):
            return None
        backoff = min(FIRST_WAIT_S * 2.0**attempt, LONGEST_WAIT_S) * (0.5 + 0.5 * self.draw())
        after = error.retry_after if isinstance(error, QuotaExceeded | Unavailable) else None
        if after is not None:
            seconds = max(backoff, after * (1 + JITTER * self.draw()))
        elif attempt < self.retries:
            seconds = backoff
        else:
            return None
        return seconds if seconds < left_s else None


def _repeatable(error: MayflyError, safe: bool) -> bool:
    match error:
        case QuotaExceeded():
            return True
        case Disconnected():
            return safe or not error.sent
        case TimedOut():
            return False  # the same work would take as long again
        case Unavailable():
            return safe
    return False
