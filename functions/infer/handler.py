"""Lambda handler of /v2: parse requests, answer them, write the log.

Routes are in core/serving/routing.py; nothing here depends on which routes exist.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from functions.core.access.cors import Cors
from functions.core.access.gate import Gate
from functions.core.errors import PayloadTooLarge, PlatformError, TimedOut
from functions.core.serving.compression import INFLATED_BYTES_MAX, preferred
from functions.core.serving.events import Event
from functions.core.serving.handler import RequestHandler, after_reply, read_event, to_stdout
from functions.core.serving.http import HttpResponse, parse_event
from functions.core.serving.paths import ROOT, requested_version
from functions.core.serving.request_log import ModelMetrics, bug_line, request_line
from functions.core.serving.routing import match
from functions.core.serving.service import Copy, InferenceService
from functions.core.usage.meter import Meter
from functions.infer.exchange import Exchange
from functions.infer.responses import (
    HEADER_LOWER,
    add_headers,
    check_size,
    failure,
    refusal,
    success,
)

# After a reply with one of these codes, memory may be missing for the next request.
SHORTAGES = frozenset(
    {"OUT_OF_MEMORY", "PAYLOAD_TOO_LARGE", "TIMED_OUT", "MODELS_BUSY", "MODEL_TOO_LARGE"}
)
UNSTOPPABLE = (
    "the model did not finish in time and could not be stopped, so this environment ends; "
    "send fewer rows or smaller values"
)
OUT_OF_MEMORY = "this request needs more memory than this function has; send a smaller batch"
NO_ROOM = "this function's memory has no room for a request of %d bytes now; send a smaller batch"

LambdaReply = dict[str, Any] | bytes


class InferHandler(RequestHandler):
    """Lambda handler of all /v2 routes, for events as bytes or dicts.

    It answers every event, in the event's form. An error that is no PlatformError is a bug: it is
    logged, and the environment continues.

    `meter` counts inferences, and writes its counts after replies.
    `gate` checks access keys, if callers need any. `cors` permits web pages of other origins.
    `write` receives log lines, after the reply where the context offers that. Of the successful
    requests without a cold start, the share `sample_rate` is logged; every other request always is.
    At most `model_metrics` models have metrics of their own.
    `after_shortage` gets the reply to a request that ran out of memory or time, and the context; it
    may post the reply and end the process. `run_copy` runs a request's copy on a shadow version,
    once the reply is posted: only where the context offers that.

    Raises:
        ValueError: `sample_rate` is not above 0 and at most 1.
    """

    def __init__(
        self,
        service: InferenceService,
        *,
        meter: Meter | None = None,
        gate: Gate | None = None,
        cors: Cors | None = None,
        inflated_limit: int = INFLATED_BYTES_MAX,
        write: Callable[[bytes], object] = to_stdout,
        sample_rate: float = 1.0,
        model_metrics: int = 0,
        chance: Callable[[], float] = random.random,
        after_shortage: Callable[[LambdaReply, Any], None] = lambda *_: None,
        run_copy: Callable[[Exchange, Any], object] | None = None,
    ) -> None:
        if not 0 < sample_rate <= 1:
            raise ValueError(
                f"the sample rate of the log must be above 0 and at most 1, not {sample_rate}"
            )
        super().__init__(match, meter, gate, cors, inflated_limit, write)
        self._service = service
        self._sample_rate = sample_rate
        self._model_metrics = ModelMetrics(model_metrics)
        self._chance = chance
        self._after_shortage = after_shortage
        self._run_copy = run_copy
        self._exchange: Exchange | None = None  # the request in progress
        self._copied: tuple[Exchange, Copy] | None = None  # the copy in progress

    def __call__(
        self, event: Event | bytes, context: Any, began_ns: int | None = None
    ) -> LambdaReply:
        first, self._first = self._first, False
        self._exchange = exchange = Exchange(context, began_ns)
        response = self._respond(exchange, event, context)
        cold = first or exchange.loaded
        response, reply = _finish(response, exchange, cold, isinstance(event, bytes))
        self._finish_later(exchange, response, cold, context)
        exchange.body = b""  # log and meter need no body
        if exchange.code in SHORTAGES:
            self._after_shortage(reply, context)
        self._exchange = None
        return reply

    def late_reply(self, context: Any) -> bytes:
        """Log, count and answer a request that cannot be stopped.

        Our runtime client calls this from another thread, posts the reply, calls `last_work` and
        ends the process.
        """
        exchange = self._exchange or Exchange(context, None)
        response = refusal(TimedOut(UNSTOPPABLE), exchange)
        cold = exchange.loaded
        add_headers(response, exchange, cold)
        latency_ns = time.perf_counter_ns() - exchange.began_ns
        exchange.bytes_out = len(response.body)
        self._write_line(exchange, response.status, latency_ns, cold, 1.0)
        if self._meter is not None and exchange.action == "infer":
            exchange.count(self._meter, response.status, latency_ns, cold)
        return response.to_bytes()

    def last_work(self) -> None:
        """Write the counts of this environment, which ends.

        A copy that did not come back counts as one that the shadow version failed to answer.
        """
        if self._meter is None:
            return
        if self._copied is not None:
            exchange, copy = self._copied
            shadow, traffic = copy.shadow, exchange.traffic
            self._meter.count_shadow(
                shadow.model, shadow.number, copy.alias, traffic, 0, agreed=None
            )
        self._meter.flush_all()

    def refuse_large(self, context: Any, size_bytes: int) -> bytes:
        """Return and log the reply to an event that memory cannot hold.

        Our runtime client calls this in place of the handler.
        """
        first, self._first = self._first, False
        exchange = Exchange(context, None)
        exchange.bytes_in = size_bytes
        response = refusal(PayloadTooLarge(NO_ROOM % size_bytes, code="OUT_OF_MEMORY"), exchange)
        add_headers(response, exchange, first)
        self._finish_later(exchange, response, first, context)
        reply = response.to_bytes()
        self._after_shortage(reply, context)
        return reply

    def _respond(self, exchange: Exchange, event: Event | bytes, context: Any) -> HttpResponse:
        try:
            return self._answer(exchange, event, context)
        except PlatformError as error:
            return refusal(error, exchange)
        except MemoryError:
            exchange.body = b""  # answered below, where the traceback holds no memory any more
        except Exception as error:  # the edge: a bug is logged, and answered by 500
            line = bug_line(error, exchange.request_id).encode() + b"\n"
            after_reply(context, partial(self._write, line))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return failure(status, "internal error", "INTERNAL_ERROR", exchange)
        return refusal(_out_of_memory(), exchange)

    def _answer(self, exchange: Exchange, event: Event | bytes, context: Any) -> HttpResponse:
        request = parse_event(read_event(exchange, event), ROOT)
        match = self._admit(exchange, request, context)
        if match is None:
            return HttpResponse(HTTPStatus.NO_CONTENT, b"")
        headers = request.headers
        exchange.reference = requested_version(match.version, headers, request.query)
        exchange.header_length = headers.get(HEADER_LOWER)
        if accepted := headers.get("accept-encoding"):
            exchange.accept_encoding = accepted
            exchange.compressed = bool(preferred(accepted))
        exchange.lap("receive")
        return success(match.action(self._service, exchange), exchange.accept_encoding)

    def _finish_later(
        self, exchange: Exchange, response: HttpResponse, cold: bool, context: Any
    ) -> None:
        """Log and count a request once its reply is posted."""
        latency_ns = time.perf_counter_ns() - exchange.began_ns
        exchange.bytes_out = len(response.body)
        after_reply(context, partial(self._finish, exchange, response.status, latency_ns, cold))
        if exchange.copy is not None and self._run_copy is not None and hasattr(context, "after"):
            context.after(
                partial(self._run_watched, self._run_copy, exchange, exchange.copy, context)
            )

    def _run_watched(
        self,
        run_copy: Callable[[Exchange, Any], object],
        exchange: Exchange,
        copy: Copy,
        context: Any,
    ) -> None:
        """Run a request's copy, which `last_work` knows of meanwhile."""
        self._copied = exchange, copy
        try:
            run_copy(exchange, context)
        finally:
            self._copied = None

    def _finish(self, exchange: Exchange, status: int, latency_ns: int, cold: bool) -> None:
        rate = 1.0 if cold or status >= 300 else self._sample_rate
        if rate == 1 or self._chance() < rate:
            self._write_line(exchange, status, latency_ns, cold, rate)
        if self._meter is not None:
            if exchange.action == "infer":
                exchange.count(self._meter, status, latency_ns, cold)
            self._flush(self._meter, exchange, exchange.code in SHORTAGES)

    def _write_line(
        self, exchange: Exchange, status: int, latency_ns: int, cold: bool, rate: float
    ) -> None:
        line = request_line(
            exchange,
            status,
            latency_ns,
            cold,
            sample_rate=rate,
            model_metrics=self._model_metrics,
        )
        self._write(line)


def _finish(
    response: HttpResponse, exchange: Exchange, cold: bool, as_bytes: bool
) -> tuple[HttpResponse, LambdaReply]:
    """Add headers to a response and convert it, or its refusal."""
    if exchange.method == "HEAD":
        response.body = b""
    try:
        add_headers(response, exchange, cold)
        check_size(response)
        return response, response.to_bytes() if as_bytes else response.to_event()
    except PayloadTooLarge as error:
        response = refusal(error, exchange)
    except MemoryError:
        exchange.body = b""
        response = refusal(_out_of_memory(), exchange)
    add_headers(response, exchange, cold)
    return response, response.to_bytes() if as_bytes else response.to_event()


def _out_of_memory() -> PayloadTooLarge:
    return PayloadTooLarge(OUT_OF_MEMORY, code="OUT_OF_MEMORY")
