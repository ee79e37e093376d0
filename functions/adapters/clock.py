"""UTC time as ISO 8601 text, and a clock for elapsed time."""

import os
import threading
import time
from collections.abc import Callable
from functools import partial

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def iso(epoch_ms: int) -> str:
    """Format Unix milliseconds as UTC in ISO 8601.

    Without `datetime`, which infer would have to import at every start.

    >>> iso(1795335330123)
    '2026-11-22T08:15:30.123Z'
    """
    seconds, ms = divmod(epoch_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03}Z"


def utc_now() -> str:
    """Return the current UTC time in ISO 8601, e.g. 2026-11-22T08:15:30.123Z."""
    return iso(time.time_ns() // 1_000_000)


def utc_ago(seconds: float) -> str:
    """Return the UTC time `seconds` ago in ISO 8601."""
    return iso(time.time_ns() // 1_000_000 - round(seconds * 1000))


# Seconds since boot, time in suspension included if possible.
since_boot = partial(time.clock_gettime, _BOOT)


def process_age_s() -> float:
    """Return the seconds since this process started, 0 if unknown."""
    try:
        with open("/proc/self/stat", "rb") as stat:  # noqa: PTH123 (without importing pathlib)
            fields = stat.read().rpartition(b")")[2].split()  # the name before may have spaces
        return max(0.0, since_boot() - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


class Elapsed:
    """Clock in seconds that counts time in which Lambda froze the environment.

    It never goes back. A machine that is stopped from outside, or restored from a snapshot, does
    not see that time pass; its time of day is corrected afterwards. The time between two calls is
    therefore the longer one of what the boot clock and the time of day report.
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
            boot_before, day_before = self._seen
            self._seen = boot, day
            self._now += max(0.0, boot - boot_before, day - day_before)
            return self._now
