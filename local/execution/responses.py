"""Responses of Lambda functions: complete answers, and streams of chunks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

PAYLOAD_LIMIT = 6_291_456  # bytes of a synchronous event
RESPONSE_LIMIT = PAYLOAD_LIMIT + 100  # bytes, as measured on Lambda
STREAM_LIMIT = 200 << 20  # bytes of a streamed response, Lambda's default quota


@dataclass(frozen=True, slots=True)
class Answer:
    """Outcome of an invocation; with `error`, the payload is Lambda's error JSON."""

    payload: bytes
    error: bool = False
    fatal: bool = False  # the environment has ended


def failure(error_type: str, message: str, fatal: bool = True) -> Answer:
    """Return a failed invocation's answer with Lambda's error JSON."""
    return Answer(
        json.dumps({"errorType": error_type, "errorMessage": message}).encode(),
        error=True,
        fatal=fatal,
    )


def too_large(size: int, limit: int) -> Answer:
    """Return the answer of an invocation whose response exceeds Lambda's limit."""
    message = (
        f"Response payload size ({size} bytes) exceeded maximum allowed payload size"
        f" ({limit} bytes)."
    )
    return failure("Function.ResponseSizeTooLarge", message, fatal=False)


class StreamBroken(Exception):
    """Error: a stream ended before its response was complete; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.payload.decode(errors="replace"))
        self.answer = answer


@dataclass
class ResponseStream:
    """Streamed response of a function, from one writer to one reader.

    `put` waits until the reader asks for the next chunk, so that a slow reader slows the function.
    """

    content_type: str
    _chunks: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    _demand: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: Answer | None = None
    _abandoned: bool = False

    async def put(self, chunk: bytes) -> None:
        """Hand a chunk to the reader; drop it after the reader left."""
        if not self._abandoned:
            self._demand.clear()
            self._chunks.put_nowait(chunk)
            await self._demand.wait()

    def end(self, answer: Answer) -> None:
        """Complete the stream, or break it if `answer` is an error."""
        self._failure = answer if answer.error else None
        self._chunks.put_nowait(None)

    def abandon(self) -> None:
        """Stop reading: the function goes on, and its chunks are dropped."""
        self._abandoned = True
        self._demand.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks as they arrive.

        Raises:
            StreamBroken: the function failed, or ended before its response.
        """
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
            self._demand.set()
        if self._failure is not None:
            raise StreamBroken(self._failure)

    async def collect(self) -> Answer:
        """Return the whole response, as a caller without streaming gets it."""
        payload = bytearray()
        try:
            async for chunk in self.chunks():
                payload += chunk
                if len(payload) > RESPONSE_LIMIT:
                    return too_large(len(payload), RESPONSE_LIMIT)
        except StreamBroken as error:
            return error.answer
        finally:
            self.abandon()
        return Answer(bytes(payload))
