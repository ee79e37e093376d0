"""Time limits of model runs and invocations, enforced by a watchdog thread."""

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

SLEEP_MAX_S = 3600.0
STARVED_S = 0.01  # until the thread, which needs a little memory, looks again


class Run(Protocol):
    """Work with a time limit, e.g. a model run or an invocation."""

    def terminate(self) -> None:
        """Abort the work, from the watchdog thread."""
        ...


class Watchdog:
    """Thread that sleeps until the earliest deadline and aborts overdue runs.

    A run enters itself into `_deadlines` and removes itself when it ends, without a lock: single
    operations of a dict are atomic under the GIL. If a run ends just as its time does, the side
    that removes the entry decides: the run has ended in time, or the thread terminates it.
    The lock is taken only to wake the thread for a deadline before its next wake-up.

    `clock` returns seconds, at most as fast as they pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._deadlines: dict[Run, float] = {}
        # Infinite while the thread is not asleep: a run that starts then has to wait for the lock
        # and wake it again.
        self._wakes_at = math.inf
        self._started = False

    def watch(self, run: Run, timeout_s: float) -> None:
        """Abort a run after `timeout_s` seconds unless unwatched before."""
        deadline = self._deadlines[run] = self._clock() + timeout_s
        if deadline < self._wakes_at:
            with self._changed:
                if self._started:
                    self._changed.notify()
                else:
                    self._start(run)

    def _start(self, run: Run) -> None:
        """Start the watchdog thread, which enforces the deadlines of runs.

        Raises:
            MemoryError: not enough for the thread's stack; the next run tries again.
        """
        try:
            threading.Thread(target=self._work, name="watchdog", daemon=True).start()
        except RuntimeError as error:
            del self._deadlines[run]
            raise MemoryError from error
        self._started = True

    def unwatch(self, run: Run) -> bool:
        """Stop watching a run; return False if it was aborted."""
        return self._deadlines.pop(run, None) is not None

    def _work(self) -> None:
        with self._changed:
            while True:
                try:
                    self._changed.wait(self._terminate_overdue())
                except MemoryError:  # the overdue run holds it all; without this thread, for ever
                    time.sleep(STARVED_S)

    def _terminate_overdue(self) -> float:
        """Abort overdue runs; return the seconds until the next deadline."""
        self._wakes_at = math.inf
        now = self._clock()
        deadlines = self._deadlines.copy()
        for run, deadline in deadlines.items():
            if deadline > now:
                continue
            current = self._deadlines.pop(run, None)
            if current == deadline:
                try:
                    run.terminate()
                except MemoryError:
                    self._deadlines[run] = deadline  # tried again by `_work`
                    raise
            elif current is not None:  # the run ended after the copy and was started again
                self._deadlines[run] = current
        pending = (deadline for deadline in deadlines.values() if deadline > now)
        self._wakes_at = min(min(pending, default=math.inf), now + SLEEP_MAX_S)
        return self._wakes_at - now


PROCESS_WATCHDOG = Watchdog()  # one thread for model runs and the runtime client
