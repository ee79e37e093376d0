"""Streamed replies on the way to the Runtime API: chunks, trailers, deadline.

The socket blocks, so a slow caller slows the iterator down. After the first byte an error can only
be told in trailers. https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html
"""

import threading
import time
from binascii import b2a_base64
from collections.abc import Iterator

from functions.core.watchdog import Watchdog
from functions.runtime.api import ApiError, Invocation, RuntimeApi
from functions.runtime.connection import Bytes
from functions.runtime.context import LambdaContext
from functions.runtime.errors import Fault, FunctionError, error_of, fault_error
from functions.runtime.late_reply import LATE_STATUS, Ending, LateReply, park, reserve_s
from functions.runtime.log import Log, log_error, log_record
from functions.runtime.replies import StreamedReply, chunked

TIMED_OUT = "Runtime.StreamTimedOut"
TIMED_OUT_MESSAGE = "the streamed reply was not finished before the function's deadline"
# Share of the reserve left when the watchdog steps in, after the sender should have by itself.
WATCHDOG_SHARE = 0.5
LAST = b"0\r\n"


class CallerGone(Exception):
    """Streamed reply that nobody reads any more."""


class StreamSender:
    """Sender of one streamed reply at a time, within the invocation's deadline."""

    def __init__(
        self,
        api: RuntimeApi,
        log: Log,
        watchdog: Watchdog,
        ending: Ending,
        late: LateReply | None,
    ) -> None:
        self._api = api
        self._log = log
        self._watchdog = watchdog
        self._ending = ending
        self._late = late

    def send(self, invocation: Invocation, context: LambdaContext, reply: StreamedReply) -> None:
        """Send a streamed reply; log an error after its start.

        Raises:
            Exception: of the reply's headers, or of the iterator before its first chunk; nothing
                was sent.
        """
        self._invocation, self._context = invocation, context
        self._begun = False
        self._writing = threading.Lock()  # taken for good by the watchdog when it ends the stream
        remaining_s = context.get_remaining_time_in_millis() / 1000
        reserve = reserve_s(remaining_s)
        self._deadline = time.monotonic() + remaining_s - reserve
        self._watchdog.watch(self, remaining_s - WATCHDOG_SHARE * reserve)
        chunks: Iterator[object] = iter(())
        try:
            chunks = iter(reply.chunks)
            self._send(chunks, reply.prelude())
        except CallerGone as gone:
            self._log_gone(str(gone))
        finally:
            self._close(chunks)
            if not self._watchdog.unwatch(self):
                park()

    def _send(self, chunks: Iterator[object], prelude: bytes) -> None:
        first = _flat(next(chunks, b""))
        head = self._api.stream_head(self._invocation)
        try:
            self._write(head, *chunked(prelude))
            self._write_chunk(first)
            for chunk in chunks:
                self._check_deadline()
                self._write_chunk(_flat(chunk))
        except Fault as fault:
            self._end(fault_error(fault, self._invocation.request_id))
        except CallerGone:
            raise
        except Exception as failure:  # the edge: the caller is told what the iterator raised
            self._end(error_of(failure, self._invocation.request_id))
        else:
            self._end(None)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise Fault(TIMED_OUT, TIMED_OUT_MESSAGE)

    def _write_chunk(self, chunk: Bytes) -> None:
        if self._api.has_answered():
            raise CallerGone("the Runtime API ended the reply")
        if len(chunk):  # an empty one would end the body
            self._write(*chunked(chunk))

    def _write(self, *parts: Bytes) -> None:
        with self._writing:
            self._begun = True
            try:
                self._api.send(*parts)
            except OSError as error:
                raise CallerGone(f"the connection broke: {error}") from error

    def _end(self, error: FunctionError | None) -> None:
        """Write the last chunk and the trailers; log the error."""
        if error is not None:
            log_error(self._log, error)
        self._write(LAST + trailers(error))
        try:
            self._api.end_stream()
        except OSError as failure:
            raise CallerGone(f"the connection broke: {failure}") from failure

    def _close(self, chunks: Iterator[object]) -> None:
        close = getattr(chunks, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as failure:  # the edge: the stream has ended
            log_error(self._log, error_of(failure, self._invocation.request_id))

    def _log_gone(self, reason: str) -> None:
        self._api.disconnect()
        log_record(self._log, "WARNING", "caller gone", self._invocation.request_id, reason)

    def terminate(self) -> None:
        """End an overdue stream and the process; called by the watchdog."""
        error = fault_error(Fault(TIMED_OUT, TIMED_OUT_MESSAGE), self._invocation.request_id)
        # Without the lock, the sender waits for a slow caller in the middle of a chunk.
        free = self._writing.acquire(timeout=self._context.get_remaining_time_in_millis() / 2000)
        try:
            if free:
                self._end_overdue(error)
        except (ApiError, OSError) as failure:
            self._log_gone(str(failure))
        log_error(self._log, error)
        self._ending.end(LATE_STATUS, self._context)

    def _end_overdue(self, error: FunctionError) -> None:
        if self._begun:
            self._api.send(LAST + trailers(error))
            self._api.end_stream()
        elif self._late is not None:
            self._late.post(self._invocation, self._context)
        else:
            self._api.fail(self._invocation, error)
            self._api.confirm()


def _flat(chunk: object) -> Bytes:
    """Return a chunk as bytes of one dimension.

    The length of another view, e.g. of floats, is not its number of bytes.

    Raises:
        TypeError: it is no bytes.
    """
    if not isinstance(chunk, Bytes):
        raise TypeError(f"a chunk of a streamed reply is bytes, not {type(chunk).__name__}")
    if isinstance(chunk, memoryview):
        is_flat = chunk.itemsize == chunk.ndim == 1 and chunk.contiguous
        return chunk if is_flat else chunk.tobytes()
    return chunk


def trailers(error: FunctionError | None) -> bytes:
    r"""Return the trailers of a chunked body, with the error if any.

    >>> trailers(None)
    b'\r\n'
    """
    if error is None:
        return b"\r\n"
    body = b2a_base64(error.to_json().encode(), newline=False).decode()
    lines = (
        f"Lambda-Runtime-Function-Error-Type: {error.type}",
        f"Lambda-Runtime-Function-Error-Body: {body}",
    )
    return "\r\n".join([*lines, "\r\n"]).encode()
