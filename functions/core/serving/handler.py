"""Base of the handlers of infer and generate."""

import sys
import time
from collections.abc import Callable
from typing import Any

from functions.core.access.cors import Cors
from functions.core.access.gate import Gate
from functions.core.serving.compression import INFLATED_BYTES_MAX, inflate
from functions.core.serving.events import Event
from functions.core.serving.http import HttpRequest, load_event, request_id
from functions.core.serving.paths import USER_HEADER, Match
from functions.core.serving.request_log import bug_line
from functions.core.serving.service import Call
from functions.core.usage.meter import Meter

RESERVE_SECONDS = 1.0  # time left to end a reply before Lambda ends the invocation
RESERVE_SHARE = 0.2  # at most this share of the remaining time is kept as reserve


def to_stdout(line: bytes) -> None:
    """Write a log line for Lambda to collect."""
    output = sys.stdout.buffer
    output.write(line)
    output.flush()


def after_reply(context: Any, task: Callable[[], object]) -> None:
    """Run a task once the reply is posted, or now without `after`."""
    after = getattr(context, "after", None)
    if after is None:
        task()
    else:
        after(task)


def read_event(call: Call, event: Event | bytes) -> Event:
    """Return an event, parsed; record its request id in the call.

    Raises:
        InvalidRequest: it is no event of API Gateway.
    """
    document = load_event(event) if isinstance(event, bytes) else event
    call.request_id = request_id(document) or call.request_id
    return document


class RequestHandler:
    """Base of a Lambda handler of routes.

    `match` finds a request's route. `meter` counts requests. `gate` checks access keys, if callers
    need any. `cors` permits web pages of other origins. `write` receives log lines.
    """

    takes_bytes = True  # for our runtime client

    def __init__(
        self,
        match: Callable[[str, str], Match],
        meter: Meter | None,
        gate: Gate | None,
        cors: Cors | None,
        inflated_limit: int = INFLATED_BYTES_MAX,
        write: Callable[[bytes], object] = to_stdout,
    ) -> None:
        self._match = match
        self._meter = meter
        self._gate = gate
        self._cors = cors
        self._inflated_limit = inflated_limit
        self._write = write
        self._first = True  # the environment's first request has yet to come

    def _admit(self, call: Call, request: HttpRequest, context: Any) -> Match | None:
        """Read a request into its call; return its route, None for preflights.

        Raises:
            PlatformError: there is no such route, the key does not allow it, or the body is
                damaged or too large.
        """
        body, headers = request.body, request.headers
        call.bytes_in, call.method = len(body), request.method
        if self._cors is not None:
            call.cors_headers = self._cors.headers(headers)
            if permission := self._cors.preflight(request.method, headers):
                call.action = "preflight"
                call.cors_headers = {**call.cors_headers, **permission}
                return None
        match = self._match(request.method, request.path)
        call.action = match.name
        if self._gate is not None and match.scope is not None:
            call.grant = self._gate.authorize(headers, match.scope)
        if hasattr(context, "get_remaining_time_in_millis"):
            call.deadline = _deadline(context.get_remaining_time_in_millis() / 1000)
        call.model = match.model
        call.user = headers.get(USER_HEADER)
        encoding = headers.get("content-encoding")
        if encoding or len(body) > self._inflated_limit:
            body = inflate(body, encoding, self._inflated_limit)
        call.body = body
        return match

    def _flush(self, meter: Meter, call: Call, early: bool) -> None:
        """Write the counts that are due, or all `early`."""
        try:
            meter.flush_due(early=early)
        except Exception as error:  # the edge: a bug of the meter does not change the reply
            self._log_bug(call, error)

    def _log_bug(self, call: Call, error: Exception) -> None:
        self._write(bug_line(error, call.request_id).encode() + b"\n")


def _deadline(remaining_s: float) -> float:
    return time.monotonic() + remaining_s - min(RESERVE_SECONDS, RESERVE_SHARE * remaining_s)
