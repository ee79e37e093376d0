"""Work after the reply: run what the handler gave to `context.after`."""

from collections.abc import Callable
from typing import NoReturn

from functions.core.watchdog import Watchdog
from functions.runtime.context import EndEnvironment, LambdaContext
from functions.runtime.errors import error_of
from functions.runtime.late_reply import LATE_STATUS, Ending, park
from functions.runtime.log import Log, log_error, log_record

SHARE = 0.9  # share of the remaining time that the work may take
SECONDS_MIN = 0.1  # time for it after a reply at the last moment


class AfterReply:
    """Work of one invocation at a time, with a time limit.

    Overtime cannot be interrupted, so it ends the process: the next event must not wait for it.
    """

    _context: LambdaContext

    def __init__(self, log: Log, watchdog: Watchdog, ending: Ending) -> None:
        self._log = log
        self._watchdog = watchdog
        self._ending = ending

    def run(self, context: LambdaContext) -> EndEnvironment | None:
        """Run the work of an invocation in order; log its failures.

        Returns the first EndEnvironment that was raised. Work over time ends the process.
        """
        self._context = context
        remaining_s = context.get_remaining_time_in_millis() / 1000
        self._watchdog.watch(self, max(SECONDS_MIN, SHARE * remaining_s))
        ends = []
        while work := context.take_work():
            for call in work:
                ends += self._call(call)
        if not self._watchdog.unwatch(self):
            park()
        return ends[0] if ends else None

    def end(self, end: EndEnvironment) -> NoReturn:
        """Log why this environment ends, and end the process."""
        request_id = self._context.aws_request_id
        log_record(self._log, "WARNING", "environment ends", request_id, str(end))
        self._ending.end(0, self._context)

    def terminate(self) -> None:
        """End the process whose work took too long; called by the watchdog."""
        reason = "work after the reply did not end in time: the process ends"
        request_id = self._context.aws_request_id
        log_record(self._log, "ERROR", "work after reply", request_id, reason)
        self._ending.end(LATE_STATUS, self._context)

    def _call(self, work: Callable[[], object]) -> list[EndEnvironment]:
        try:
            work()
        except EndEnvironment as end:
            return [end]
        except Exception as failure:  # the edge: the reply is posted, the next event is served
            log_error(self._log, error_of(failure, self._context.aws_request_id))
        return []
