"""Lambda handler of /v2: parse requests, set status, reply headers and log.

Routes are in core/serving/routing.py; nothing here depends on which routes exist.
"""

import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any

from functions.core.errors import (
    ExecutionFailed,
    InvalidModel,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotReady,
    NotServable,
    PathNotFound,
    PayloadTooLarge,
    PlatformError,
    StateConflict,
    TimedOut,
    Unavailable,
    Unsupported,
    UnsupportedEncoding,
)
from functions.core.protocol.infer_reply import EXPANDED_BYTES_MAX, REPLY_BYTES_MAX, InferReply
from functions.core.protocol.infer_request import HEADER
from functions.core.serving import routing
from functions.core.serving.compression import INFLATED_BYTES_MAX, compress, inflate, preferred
from functions.core.serving.http import HttpResponse, json_response, parse_event
from functions.core.serving.paths import ROOT, requested_version
from functions.core.serving.request_log import bug_line, request_line
from functions.core.serving.service import Call, InferenceService, Reply
from functions.infer.prefetch import Handler

RESERVE_SECONDS = 1.0  # time left to answer before Lambda ends the invocation
RESERVE_SHARE = 0.2  # at most this share of the remaining time is kept as reserve
OK = int(HTTPStatus.OK)
PATHS = 256  # paths whose route is cached
HEADER_LOWER = HEADER.lower()

# After a reply with one of these codes, memory may be missing for the next request.
SHORTAGES = frozenset({"OUT_OF_MEMORY", "TIMED_OUT", "MODELS_BUSY", "MODEL_TOO_LARGE"})
OUT_OF_MEMORY = "this request needs more memory than this function has; send a smaller batch"

STATUS: Mapping[type[PlatformError], HTTPStatus] = {
    PlatformError: HTTPStatus.INTERNAL_SERVER_ERROR,
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    PathNotFound: HTTPStatus.NOT_FOUND,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedEncoding: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ExecutionFailed: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    StateConflict: HTTPStatus.CONFLICT,
    NotServable: HTTPStatus.CONFLICT,
    InvalidModel: HTTPStatus.INTERNAL_SERVER_ERROR,  # it was READY, so it is not the caller's fault
    Unsupported: HTTPStatus.NOT_IMPLEMENTED,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    TimedOut: HTTPStatus.GATEWAY_TIMEOUT,
}

_match = lru_cache(maxsize=PATHS)(routing.match)


class _Exchange:
    """Request in progress, with data for reply headers and the log."""

    __slots__ = (
        "accept_encoding",
        "action",
        "began_ns",
        "bytes_in",
        "call",
        "code",
        "method",
        "request_id",
    )

    def __init__(self, event: Mapping[str, Any], context: Any, began_ns: int | None) -> None:
        self.call = call = Call()
        self.began_ns = call.lap_began_ns if began_ns is None else began_ns
        if began_ns is not None:
            call.lap_began_ns = began_ns
            call.lap("start")
        self.action = "unknown"
        self.code: str | None = None
        self.bytes_in = 0
        self.method = ""
        self.accept_encoding: str | None = None
        self.request_id = str(
            (event.get("requestContext") or {}).get("requestId")
            or getattr(context, "aws_request_id", "")
            or ""
        )


def make_handler(
    service: InferenceService,
    *,
    inflated_limit: int = INFLATED_BYTES_MAX,
    write: Callable[[str], object] | None = None,
    sample_rate: float = 1.0,
    chance: Callable[[], float] = random.random,
    after_shortage: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> Handler:
    """Return the Lambda handler of all /v2 routes, bound to `service`.

    `write` receives log lines; the default is stdout. Of the successful requests without a cold
    start, the share `sample_rate` is logged; every other request always is. `after_shortage` gets
    the reply to a request that ran out of memory or time, and Lambda's id of the invocation; it may
    post the reply and end the process.

    The handler answers every event. An error that is no PlatformError is a bug: it is logged, and
    the environment continues.

    Raises:
        ValueError: `sample_rate` is not above 0 and at most 1.
    """
    if not 0 < sample_rate <= 1:
        raise ValueError(
            f"the sample rate of the log must be above 0 and at most 1, not {sample_rate}"
        )
    first = True
    log = write or _to_stdout

    def lambda_handler(
        event: Mapping[str, Any], context: Any, began_ns: int | None = None
    ) -> dict[str, Any]:
        nonlocal first
        cold, first = first, False
        exchange = _Exchange(event, context, began_ns)
        response = _respond(service, exchange, event, context, inflated_limit, log)
        cold = cold or exchange.call.loaded
        _add_headers(response, exchange, cold)
        if exchange.method == "HEAD":
            response.body = b""
        rate = 1.0 if cold or response.status >= 300 else sample_rate
        if rate == 1 or chance() < rate:
            log(_line(exchange, response, cold, rate) + "\n")
        reply = response.to_event()
        if exchange.code in SHORTAGES:
            exchange.call.body = b""
            after_shortage(reply, getattr(context, "aws_request_id", ""))
        return reply

    return lambda_handler


def _to_stdout(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _respond(
    service: InferenceService,
    exchange: _Exchange,
    event: Mapping[str, Any],
    context: Any,
    inflated_limit: int,
    log: Callable[[str], object],
) -> HttpResponse:
    try:
        reply = _answer(service, exchange, event, context, inflated_limit)
        return _success(reply, exchange.accept_encoding)
    except PlatformError as error:
        return _refusal(error, exchange)
    except MemoryError:
        exchange.call.body = b""  # answered below, where the traceback holds no memory any more
    except Exception as error:
        log(bug_line(error, exchange.request_id) + "\n")
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return _error(status, "internal error", "INTERNAL_ERROR", exchange)
    return _refusal(PayloadTooLarge(OUT_OF_MEMORY, code="OUT_OF_MEMORY"), exchange)


def _answer(
    service: InferenceService,
    exchange: _Exchange,
    event: Mapping[str, Any],
    context: Any,
    inflated_limit: int,
) -> Reply:
    request = parse_event(event, ROOT)
    exchange.bytes_in, exchange.method = len(request.body), request.method
    match = _match(request.method, request.path)
    exchange.action = match.name
    call = exchange.call
    if hasattr(context, "get_remaining_time_in_millis"):
        call.deadline = _deadline(context.get_remaining_time_in_millis() / 1000)
    call.model = match.model
    call.reference = requested_version(match.version, request.headers, request.query)
    call.header_length = request.headers.get(HEADER_LOWER)
    call.body = inflate(request.body, request.headers.get("content-encoding"), inflated_limit)
    exchange.accept_encoding = accepted = request.headers.get("accept-encoding")
    if accepted and preferred(accepted):
        call.reply_bytes_max = EXPANDED_BYTES_MAX
    call.lap("receive")
    return match.action(service, call)


def _deadline(remaining_s: float) -> float:
    return time.monotonic() + remaining_s - min(RESERVE_SECONDS, RESERVE_SHARE * remaining_s)


def _success(reply: Reply, accept_encoding: str | None) -> HttpResponse:
    """Convert a reply to HTTP 200; compress only inference results.

    tritonclient.aio cannot decompress anything else.
    """
    if not isinstance(reply, InferReply):
        return _checked(json_response(HTTPStatus.OK, reply))
    body, encoding = compress(reply.body, accept_encoding, REPLY_BYTES_MAX)
    response = HttpResponse(OK, body, {"content-type": "application/json"})
    if reply.header_length is not None:
        response.headers["content-type"] = "application/octet-stream"
        response.headers[HEADER_LOWER] = str(reply.header_length)
    if encoding is not None:
        response.headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    return _checked(response)


def _checked(response: HttpResponse) -> HttpResponse:
    """Check an HTTP response against Lambda's size limit; return it unchanged."""
    if len(response.body) > REPLY_BYTES_MAX:
        compressed = ", compressed," if "content-encoding" in response.headers else ""
        raise PayloadTooLarge(
            f"the reply{compressed} takes more than {REPLY_BYTES_MAX} bytes, Lambda's limit: "
            "send fewer rows, or ask for less at once"
        )
    return response


def _refusal(error: PlatformError, exchange: _Exchange) -> HttpResponse:
    response = _error(STATUS[type(error)], str(error), error.instance_code, exchange)
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, MethodNotAllowed):
        response.headers["allow"] = ", ".join(error.allow)
    elif isinstance(error, UnsupportedEncoding):
        response.headers["accept-encoding"] = "gzip, deflate"
    return response


def _error(status: HTTPStatus, text: str, code: str, exchange: _Exchange) -> HttpResponse:
    exchange.code = code
    return json_response(status, {"error": text, "code": code, "request_id": exchange.request_id})


def _add_headers(response: HttpResponse, exchange: _Exchange, cold: bool) -> None:
    """Add request id, timing, cold-start and model headers to a response.

    x-cold-start is 1 if the request waited for a model or is the environment's first.
    """
    call = exchange.call
    timing = _timing(tuple(call.stages_ns)) % tuple([ns / 1e6 for ns in call.stages_ns.values()])
    headers = response.headers
    headers |= call.headers
    headers["x-request-id"] = exchange.request_id
    headers["x-cold-start"] = "1" if cold else "0"
    headers["server-timing"] = timing or "receive;dur=0"
    if call.resolved is not None:
        headers["x-model-version"] = str(call.resolved.version.number)
        if call.resolved.alias is not None:
            headers["x-model-alias"] = call.resolved.alias


@cache
def _timing(stages: tuple[str, ...]) -> str:
    """Return a server-timing header template with one placeholder per stage."""
    return ", ".join(f"{stage};dur=%.3f" for stage in stages)


def _line(exchange: _Exchange, response: HttpResponse, cold: bool, sample_rate: float) -> str:
    return request_line(
        exchange.call,
        action=exchange.action,
        request_id=exchange.request_id,
        status=response.status,
        code=exchange.code,
        latency_ns=time.perf_counter_ns() - exchange.began_ns,
        cold=cold,
        bytes_in=exchange.bytes_in,
        bytes_out=len(response.body),
        sample_rate=sample_rate,
    )
