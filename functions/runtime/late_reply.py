"""Answer before the end, for a handler that does not come back.

A native operator cannot be interrupted. Shortly before Lambda would end the invocation without a
reply, the watchdog's thread posts one in the handler's words and ends the process. Lambda starts
another for the next event.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from functions.core.watchdog import Watchdog
from functions.runtime.api import Invocation, RuntimeApi
from functions.runtime.context import LambdaContext
from functions.runtime.errors import error_of
from functions.runtime.log import Log, log_error, log_record
from functions.runtime.replies import as_stream, chunked

RESERVE_S = 0.5  # kept to post a late reply before Lambda's own limit
RESERVE_SHARE = 0.1  # at most this share of the time that an invocation has
LATE_STATUS = 1  # exit status of a process that was ended because work did not end
LAST_CHUNK = b"0\r\n\r\n"
PARKED_S = 60.0  # more than the watchdog needs to end the process
LAST_SHARE = 0.9  # share of the invocation's remaining time for the handler's last work
LAST_S_MIN = 0.05

MakeReply = Callable[[LambdaContext], bytes]


def reserve_s(remaining_s: float) -> float:
    """Return the seconds kept at an invocation's end, to answer.

    >>> reserve_s(29.0), reserve_s(2.0)
    (0.5, 0.2)
    """
    return min(RESERVE_S, RESERVE_SHARE * remaining_s)


def park() -> None:
    """Keep the main thread from posting while the watchdog ends the process."""
    time.sleep(PARKED_S)
    os._exit(LATE_STATUS)


class Ending:
    """End of the process, after the handler's last work."""

    def __init__(self, log: Log, last_work: Callable[[], object] | None) -> None:
        self._log = log
        self._last_work = last_work

    def end(self, status: int, context: LambdaContext) -> NoReturn:
        """Do the last work, then end the process.

        Work that takes too long is cut off by the kernel, shortly before Lambda would do it:
        the watchdog cannot, since its thread may be the one that works here.
        """
        try:
            if self._last_work is not None:
                remaining_s = LAST_SHARE * context.get_remaining_time_in_millis() / 1000
                signal.setitimer(signal.ITIMER_REAL, max(LAST_S_MIN, remaining_s))
                self._last_work()
        except BaseException as failure:  # the edge: the process ends all the same
            log_error(self._log, error_of(failure, context.aws_request_id))
        finally:
            os._exit(status)


class LateReply:
    """Time limit of a handler that has a late reply."""

    def __init__(
        self,
        api: RuntimeApi,
        log: Log,
        watchdog: Watchdog,
        make: MakeReply,
        ending: Ending,
        *,
        streams: bool = False,
    ) -> None:
        """Make late replies by `make`; `streams` says that callers expect streamed ones."""
        self._streams = streams
        self._api = api
        self._log = log
        self._watchdog = watchdog
        self._make = make
        self._ending = ending

    def begin(self, invocation: Invocation, context: LambdaContext) -> None:
        """Watch the handler of an invocation until `end`."""
        self._invocation = invocation
        self._context = context
        remaining_s = context.get_remaining_time_in_millis() / 1000
        self._watchdog.watch(self, remaining_s - reserve_s(remaining_s))

    def end(self) -> None:
        """Stop watching; do not return if the late reply is being posted."""
        if not self._watchdog.unwatch(self):
            park()

    def terminate(self) -> None:
        """Post the late reply and end the process; called by the watchdog."""
        self.post(self._invocation, self._context)
        self._ending.end(LATE_STATUS, self._context)

    def post(self, invocation: Invocation, context: LambdaContext) -> None:
        """Post the late reply and log why.

        Raises:
            MemoryError: the overdue handler holds it all; the watchdog tries again.
        """
        reason = "the handler did not come back in time: it was answered for, and its process ends"
        try:
            self._send(invocation, self._make(context))
        except MemoryError:
            raise
        except BaseException as failure:  # the edge: also SystemExit, which ends this thread alone
            log_error(self._log, error_of(failure, invocation.request_id))
            reason = "the handler did not come back in time, nor its late reply: its process ends"
        log_record(self._log, "ERROR", "late reply", invocation.request_id, reason)

    def _send(self, invocation: Invocation, reply: bytes) -> None:
        if not self._streams:
            self._api.respond(invocation, reply, "application/json")
            self._api.confirm()
            return
        stream = as_stream(reply)
        parts = [*chunked(stream.prelude()), *(part for c in stream.chunks for part in chunked(c))]
        self._api.send(self._api.stream_head(invocation), *parts, LAST_CHUNK)
        self._api.end_stream()
