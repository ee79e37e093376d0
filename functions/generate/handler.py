"""Lambda handler of /v1 and of Triton's generate: requests, streams, log."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from functions.core.access.gate import Gate
from functions.core.errors import PayloadTooLarge, PlatformError, TimedOut
from functions.core.names import parse_reference
from functions.core.openai.fields import to_json
from functions.core.openai.replies import Document
from functions.core.openai.service import LanguageService, Stream
from functions.core.serving.compression import INFLATED_BYTES_MAX, inflate
from functions.core.serving.cors import Cors
from functions.core.serving.events import Event
from functions.core.serving.http import HttpRequest, load_event, parse_event, request_id
from functions.core.serving.paths import USER_HEADER
from functions.core.serving.request_log import bug_line, language_line
from functions.core.usage.meter import Meter
from functions.generate.exchange import Exchange
from functions.generate.routes import Match, match, root_of
from functions.runtime.replies import StreamedReply

RESERVE_SECONDS = 1.0  # time left to end a reply before Lambda ends the invocation
RESERVE_SHARE = 0.2  # at most this share of the remaining time is kept as reserve
DONE = b"data: [DONE]\n\n"
CALLER_GONE = "CALLER_GONE"  # code in the log, for a stream that nobody reads any more
# After one of these, memory may be missing for the next request, or a processor busy for good.
SHORTAGES = frozenset(
    {"OUT_OF_MEMORY", "MODELS_BUSY", "MODEL_TOO_LARGE", "TIMED_OUT", "SCHEMA_OVERTIME"}
)
UNSTOPPABLE = (
    "the model did not finish in time and could not be stopped, so this environment ends; "
    "send a shorter prompt"
)
OUT_OF_MEMORY = "this request needs more memory than this function has; send a shorter prompt"
NO_ROOM = "this function's memory has no room for a request of %d bytes now; send a shorter one"


def _to_stdout(line: bytes) -> None:
    output = sys.stdout.buffer
    output.write(line)
    output.flush()


class GenerateHandler:
    """Lambda handler of all routes of language models.

    Every reply is streamed, as the routes are; one that is no stream has a single chunk. Errors are
    OpenAI's documents, those of Triton's routes the protocol's. An error in the middle of a stream
    is its last event.

    `meter` counts requests and tokens. `gate` checks access keys, if callers need any.
    `after_shortage` is called with an error's code, after a reply that may leave the environment
    short of memory or of a processor; it may end the process.
    """

    takes_bytes = True  # for our runtime client
    streams = True

    def __init__(
        self,
        service: LanguageService,
        *,
        meter: Meter | None = None,
        gate: Gate | None = None,
        cors: Cors | None = None,
        write: Callable[[bytes], object] = _to_stdout,
        after_shortage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._service = service
        self._meter = meter
        self._gate = gate
        self._cors = cors
        self._write = write
        self._after_shortage = after_shortage
        self._first = True
        self._exchange: Exchange | None = None  # the request in progress

    def __call__(self, event: Event | bytes, context: Any) -> StreamedReply:
        first, self._first = self._first, False
        self._exchange = exchange = Exchange(context, first)
        status, content = self._respond(exchange, event, context)
        headers = exchange.reply_headers(isinstance(content, Stream))
        if isinstance(content, Stream):
            chunks = self._stream(exchange, content, context)
        else:
            is_empty = exchange.method == "HEAD" or status == HTTPStatus.NO_CONTENT
            body = b"" if is_empty else content
            exchange.bytes_out = len(body)
            chunks = iter((body,))
            self._finish_later(exchange, status, context)
        return StreamedReply(status, headers, chunks)

    def late_reply(self, context: Any) -> bytes:
        """Log, count and answer a request that cannot be stopped.

        Our runtime client calls this from another thread, posts the reply, calls `last_work` and
        ends the process.
        """
        exchange = self._exchange or Exchange(context, False)
        status, document = exchange.refuse(TimedOut(UNSTOPPABLE))
        self._finish(exchange, status)
        return _as_bytes(status, exchange.reply_headers(False), document)

    def last_work(self) -> None:
        """Log and count a stream that was cut off; write all counts."""
        exchange = self._exchange
        if exchange is not None:  # no late reply was posted, as the reply had begun
            if not exchange.end_ns:
                exchange.code = TimedOut.code
                exchange.status = TimedOut.status
            self._finish(exchange, exchange.status)
        if self._meter is not None:
            self._meter.flush_all()

    def refuse_large(self, context: Any, size_bytes: int) -> bytes:
        """Return and log the reply to an event that memory cannot hold.

        Our runtime client calls this in place of the handler.
        """
        exchange = Exchange(context, False)
        exchange.bytes_in = size_bytes
        refusal = PayloadTooLarge(NO_ROOM % size_bytes, code="OUT_OF_MEMORY")
        status, document = exchange.refuse(refusal)
        self._finish_later(exchange, status, context)
        return _as_bytes(status, exchange.reply_headers(False), document)

    def _respond(
        self, exchange: Exchange, event: Event | bytes, context: Any
    ) -> tuple[int, bytes | Stream]:
        """Return the status and the stream or JSON of a reply."""
        refusal = None
        try:
            content = self._answer(exchange, event, context)
            return exchange.status, content if isinstance(content, Stream) else to_json(content)
        except PlatformError as error:
            refusal = exchange.refuse(error)
        except MemoryError:
            exchange.body = b""  # answered below, where the traceback holds no memory any more
        except Exception as error:  # the edge: a bug is logged, and answered by 500
            self._log_bug(exchange, error)
            refusal = exchange.fail()
        status, document = refusal or exchange.refuse(_out_of_memory())
        return status, to_json(document)

    def _answer(self, exchange: Exchange, event: Event | bytes, context: Any) -> Document | Stream:
        document = load_event(event) if isinstance(event, bytes) else event
        exchange.request_id = request_id(document) or exchange.request_id
        path = str(document.get("rawPath") or document.get("path") or "")
        exchange.root = root_of(path)
        request = parse_event(document, exchange.root)
        exchange.bytes_in, exchange.method = len(request.body), request.method
        if self._cors is not None:
            exchange.cors_headers = dict(self._cors.headers(request.headers))
            if headers := self._cors.preflight(request.method, request.headers):
                exchange.action, exchange.status = "preflight", int(HTTPStatus.NO_CONTENT)
                exchange.cors_headers |= headers
                return {}
        matched = match(request.method, request.path)
        exchange.action = matched.route.name
        if self._gate is not None:
            exchange.grant = self._gate.authorize(request.headers, matched.route.scope)
        if hasattr(context, "get_remaining_time_in_millis"):
            exchange.deadline = _deadline(context.get_remaining_time_in_millis() / 1000)
        self._read(exchange, request, matched)
        return matched.route.action(self._service, exchange)

    def _read(self, exchange: Exchange, request: HttpRequest, matched: Match) -> None:
        exchange.model = matched.model
        if matched.version:
            exchange.reference = parse_reference(matched.version)
        exchange.user = request.headers.get(USER_HEADER)
        exchange.body = request.body
        encoding = request.headers.get("content-encoding")
        if encoding or len(request.body) > INFLATED_BYTES_MAX:
            exchange.body = inflate(request.body, encoding, INFLATED_BYTES_MAX)
        exchange.lap("receive")

    def _stream(self, exchange: Exchange, stream: Stream, context: Any) -> Iterator[bytes]:
        """Yield the events of a stream; log its end."""
        exchange.code = CALLER_GONE
        try:
            for document in stream.documents:
                yield _event(exchange, document)
            exchange.code = None
        except PlatformError as error:
            yield _event(exchange, exchange.refuse(error)[1])
        except MemoryError:
            yield _event(exchange, exchange.refuse(_out_of_memory())[1])
        except Exception as error:  # the edge: a bug is logged, and told to the caller
            self._log_bug(exchange, error)
            yield _event(exchange, exchange.fail()[1])
        else:
            if stream.done:
                exchange.bytes_out += len(DONE)
                yield DONE
        finally:
            close = getattr(stream.documents, "close", None)
            if close is not None:
                close()
            self._finish_later(exchange, exchange.status, context)

    def _finish_later(self, exchange: Exchange, status: int, context: Any) -> None:
        """Log and count a request once its reply is sent."""
        exchange.end_ns = time.perf_counter_ns()
        _after_reply(context, partial(self._finish, exchange, status))
        if exchange.code in SHORTAGES:
            _after_reply(context, partial(self._after_shortage, exchange.code))

    def _finish(self, exchange: Exchange, status: int) -> None:
        latency_ns = (exchange.end_ns or time.perf_counter_ns()) - exchange.began_ns
        self._exchange = None
        self._write(
            language_line(
                exchange,
                action=exchange.action,
                request_id=exchange.request_id,
                status=status,
                code=exchange.code,
                latency_ns=latency_ns,
                cold=exchange.cold,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                tokens={
                    "tokens_in": exchange.tokens_in,
                    "tokens_out": exchange.tokens_out,
                    "first_token_ms": exchange.first_ns // 1000 / 1000,
                    "tokens_per_s": round(exchange.tokens_per_s, 2),
                    "finish": exchange.finish,
                },
            )
        )
        if self._meter is not None:
            if exchange.resolved is not None and exchange.method == "POST":
                _count(self._meter, exchange, status, latency_ns)
            self._flush(self._meter, exchange)

    def _flush(self, meter: Meter, exchange: Exchange) -> None:
        try:
            # After a shortage the environment may end, and its counts with it.
            meter.flush_due(early=exchange.code in SHORTAGES)
        except Exception as error:  # the edge: a bug of the meter does not change the reply
            self._log_bug(exchange, error)

    def _log_bug(self, exchange: Exchange, error: Exception) -> None:
        self._write(bug_line(error, exchange.request_id).encode() + b"\n")


def _count(meter: Meter, exchange: Exchange, status: int, latency_ns: int) -> None:
    resolved = exchange.resolved
    if resolved is None:
        return
    meter.count(
        resolved.version.model,
        resolved.version.number,
        resolved.alias or "",
        exchange.grant.key_id,
        exchange.traffic,
        status,
        latency_ns,
        cold=exchange.cold,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        inferences=exchange.inferences,
        tokens_in=exchange.tokens_in,
        tokens_out=exchange.tokens_out,
        drawn=exchange.drawn,
        stages_ns=exchange.stages_ns,
        has_quota=exchange.grant.quota is not None,
    )


def _event(exchange: Exchange, document: Document) -> bytes:
    """Return a server-sent event with a document."""
    event = b"data: " + to_json(document) + b"\n\n"
    exchange.bytes_out += len(event)
    return event


def _as_bytes(status: int, headers: Mapping[str, str], document: Document) -> bytes:
    """Return a reply in API Gateway's format, as JSON."""
    body = to_json(document).decode()
    reply = {"statusCode": status, "headers": headers, "body": body, "isBase64Encoded": False}
    return to_json(reply)


def _after_reply(context: Any, task: Callable[[], object]) -> None:
    """Run a task once the reply is sent, or now without `after`."""
    after = getattr(context, "after", None)
    if after is None:
        task()
    else:
        after(task)


def _out_of_memory() -> PayloadTooLarge:
    return PayloadTooLarge(OUT_OF_MEMORY, code="OUT_OF_MEMORY")


def _deadline(remaining_s: float) -> float:
    return time.monotonic() + remaining_s - min(RESERVE_SECONDS, RESERVE_SHARE * remaining_s)
