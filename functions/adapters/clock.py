"""The time of day, and the time that passed."""

import threading
import time
from collections.abc import Callable

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utc_now() -> str:
    """Now, as ISO 8601 to the millisecond, e.g. 2026-11-22T08:15:30.123Z."""
    seconds, ns = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ns // 1_000_000:03}Z"


def since_boot() -> float:
    """Seconds, those of a suspended machine included where the system counts them."""
    return time.clock_gettime(_BOOT)


class Elapsed:
    """A clock for ages, in seconds: it never goes back, and goes on while this environment is frozen.

    A machine that is stopped from outside, or restored from a snapshot, does not see that time pass; its time of day is
    set right afterwards. So what passed between two calls is the longer of what both clocks say.
    """

    def __init__(
        self, boot: Callable[[], float] = since_boot, day: Callable[[], float] = time.time
    ) -> None:
        self._boot, self._day = boot, day
        self._lock = threading.Lock()
        self._seen = boot(), day()
        self._now = 0.0

    def __call__(self) -> float:
        with self._lock:
            boot, day = self._boot(), self._day()
            self._now += max(0.0, boot - self._seen[0], day - self._seen[1])
            self._seen = boot, day
            return self._now
