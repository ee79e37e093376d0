"""Lambda handler of /v1 and of Triton's generate: requests, streams, log."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from functions.core.access.cors import Cors
from functions.core.access.gate import Gate
from functions.core.errors import PayloadTooLarge, PlatformError, TimedOut
from functions.core.names import parse_reference
from functions.core.openai.fields import to_json
from functions.core.openai.replies import Document
from functions.core.openai.routing import match, root_of
from functions.core.openai.service import LanguageService, Stream
from functions.core.serving.events import Event
from functions.core.serving.handler import RequestHandler, after_reply, read_event, to_stdout
from functions.core.serving.http import parse_event
from functions.core.serving.request_log import language_line
from functions.core.usage.meter import Meter
from functions.generate.exchange import Exchange
from functions.runtime.replies import StreamedReply

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


class GenerateHandler(RequestHandler):
    """Lambda handler of all routes of language models.

    Every reply is streamed, as the routes are; one that is no stream has a single chunk. Errors are
    OpenAI's documents, those of Triton's routes the protocol's. An error in the middle of a stream
    is its last event.

    `meter` counts requests and tokens. `gate` checks access keys, if callers need any.
    `after_shortage` is called with an error's code, after a reply that may leave the environment
    short of memory or of a processor; it may end the process.
    """

    streams = True

    def __init__(
        self,
        service: LanguageService,
        *,
        meter: Meter | None = None,
        gate: Gate | None = None,
        cors: Cors | None = None,
        write: Callable[[bytes], object] = to_stdout,
        after_shortage: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(match, meter, gate, cors, write=write)
        self._service = service
        self._after_shortage = after_shortage
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
        document = read_event(exchange, event)
        exchange.root = root_of(str(document.get("rawPath") or document.get("path") or ""))
        match = self._admit(exchange, parse_event(document, exchange.root), context)
        if match is None:
            exchange.status = int(HTTPStatus.NO_CONTENT)
            return {}
        if match.version:
            exchange.reference = parse_reference(match.version)
        exchange.lap("receive")
        content: Document | Stream = match.action(self._service, exchange)
        return content

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
        after_reply(context, partial(self._finish, exchange, status))
        if exchange.code in SHORTAGES:
            after_reply(context, partial(self._after_shortage, exchange.code))

    def _finish(self, exchange: Exchange, status: int) -> None:
        latency_ns = (exchange.end_ns or time.perf_counter_ns()) - exchange.began_ns
        self._exchange = None
        metrics = {
            "FirstTokenMs": exchange.first_ns // 1000 / 1000,
            "TokensPerSecond": round(exchange.tokens_per_s, 2),
            "PromptTokens": exchange.tokens_in,
            "CompletionTokens": exchange.tokens_out,
        }
        line = language_line(exchange, status, latency_ns, exchange.cold, exchange.finish, metrics)
        self._write(line)
        if self._meter is not None:
            if exchange.method == "POST":
                exchange.count(self._meter, status, latency_ns, exchange.cold)
            self._flush(self._meter, exchange, exchange.code in SHORTAGES)


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


def _out_of_memory() -> PayloadTooLarge:
    return PayloadTooLarge(OUT_OF_MEMORY, code="OUT_OF_MEMORY")
