"""Pool of a function's execution environments, with Lambda's log lines."""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from local.execution.environment import Environment, InitFailed, Place, Reply
from local.execution.logs import FunctionLog
from local.execution.responses import PAYLOAD_LIMIT, Answer, ResponseStream, StreamBroken
from local.execution.runtime_api import Caller, Invocation
from local.template import Function

INIT_LIMIT_S = 10.0
CONCURRENCY = 10  # environments of a function at most; a new AWS account has this limit
# s to wait for an environment that has answered rather than start another: callers one after the
# other share an environment, as on AWS, where a network lies between two calls
FINISH_S = 1.0
NOBODY = Caller()


class Throttled(Exception):
    """Throttled call: all execution environments of the function are busy."""


class PayloadTooLarge(Exception):
    """Error: the event exceeds Lambda's size limit for synchronous invocations."""


@dataclass(frozen=True, slots=True)
class Result:
    """Invocation result: payload, error flag and last 4 KB of log."""

    request_id: str
    payload: bytes
    error: bool
    log_tail: str  # empty unless asked for


@dataclass(frozen=True, slots=True)
class Call:
    """Running invocation whose response, or its stream, has arrived."""

    request_id: str
    reply: Reply
    log_tail: "asyncio.Task[str]"  # done when the environment is free again or has ended

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the response as it arrives; drop what is not read.

        Raises:
            StreamBroken: the function failed, before its response or in its middle.
        """
        if isinstance(self.reply, Answer):
            if self.reply.error:
                raise StreamBroken(self.reply)
            yield self.reply.payload
            return
        try:
            async for chunk in self.reply.chunks():
                yield chunk
        finally:
            self.reply.abandon()

    async def answer(self) -> Answer:
        """Return the whole response."""
        if isinstance(self.reply, ResponseStream):
            return await self.reply.collect()
        return self.reply


class FunctionPool:
    """Execution environments of one Lambda function; the last used is reused first."""

    def __init__(
        self, function: Function, place: Place, log: FunctionLog, concurrency: int = CONCURRENCY
    ) -> None:
        self.function = function
        reserved = function.reserved_concurrency
        self.concurrency = concurrency if reserved is None else reserved
        self._place = place
        self._log = log
        self._environments: list[Environment] = []  # least recently used first
        self._started = 0
        self._running: set[asyncio.Task[str]] = set()
        self._change = asyncio.Event()  # set when an environment is free again or has ended

    def environments(self) -> list[dict[str, Any]]:
        """Return pid, number and state of each execution environment."""
        return [
            {"pid": environment.pid, "number": environment.number, "state": environment.state}
            for environment in self._environments
        ]

    async def invoke(self, event: bytes, caller: Caller = NOBODY, tail: bool = False) -> Result:
        """Run the function on an event; return its whole response.

        With `tail`, wait for the end of the invocation and return its log too.

        Raises:
            Throttled: all environments are busy.
            PayloadTooLarge: the event is too large.
        """
        call = await self.open(event, caller)
        answer = await call.answer()
        log_tail = await asyncio.shield(call.log_tail) if tail else ""
        return Result(call.request_id, answer.payload, answer.error, log_tail)

    async def open(self, event: bytes, caller: Caller = NOBODY) -> Call:
        """Run the function on an event, even if the caller stops waiting.

        Returns as soon as the response, or the beginning of its stream, has arrived. A stream has
        to be read or abandoned.

        Raises:
            Throttled: all environments are busy.
            PayloadTooLarge: the event is too large.
        """
        if len(event) > PAYLOAD_LIMIT:
            raise PayloadTooLarge(
                f"{len(event)} bytes exceeded the maximum of {PAYLOAD_LIMIT} bytes"
            )
        environment, cold = await self._take()
        request_id = str(uuid.uuid4())
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(environment, cold, request_id, event, caller, reply))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            events: set[asyncio.Future[Any]] = {reply, task}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            reply.add_done_callback(_abandon)
            raise
        if not reply.done():
            task.result()  # raises: the pool was stopped
        return Call(request_id, reply.result(), task)

    async def settle(self) -> None:
        """Wait until environments that have answered are free or ended."""
        deadline = time.monotonic() + FINISH_S
        while await self._is_freed(deadline):
            pass

    async def recycle(self) -> None:
        """End the function's idle environments; the next invocation is a cold start."""
        await self.settle()
        idle = [each for each in self._environments if each.state == "idle"]
        self._environments = [each for each in self._environments if each not in idle]
        await asyncio.gather(*(environment.stop() for environment in idle))

    async def stop(self) -> None:
        """Cancel running invocations and end all execution environments."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(each.stop() for each in self._environments if each.pid))

    async def _take(self) -> tuple[Environment, bool]:
        """Return a free environment, or a new one to be started."""
        deadline = time.monotonic() + FINISH_S
        while (environment := await self._idle()) is None and await self._is_freed(deadline):
            pass
        if environment is not None:
            return environment, False
        if len(self._environments) >= self.concurrency:
            raise Throttled(
                f"{self.function.name} already runs {self.concurrency} times; see --concurrency"
            )
        return self._new(), True

    async def _idle(self) -> Environment | None:
        """Return the idle environment that was used last, marked as busy."""
        for environment in reversed(self._environments):
            if environment.state == "idle":
                environment.state = "busy"
                if environment.is_alive():
                    return environment
                await self._drop(environment)
        return None

    async def _is_freed(self, deadline: float) -> bool:
        """Wait for an answered environment; return False if none comes."""
        left_s = deadline - time.monotonic()
        if left_s <= 0 or all(each.state != "finishing" for each in self._environments):
            return False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), left_s)
        return True

    def _new(self) -> Environment:
        self._started += 1
        environment = Environment(self.function, self._started, self._place, self._log)
        self._environments.append(environment)
        return environment

    async def _drop(self, environment: Environment) -> None:
        if environment in self._environments:
            self._environments.remove(environment)
        await environment.stop()

    async def _run(
        self,
        environment: Environment,
        cold: bool,
        request_id: str,
        event: bytes,
        caller: Caller,
        reply: "asyncio.Future[Reply]",
    ) -> str:
        """Run an invocation to its end; return its log's last 4 KB."""
        init_ms: float | None = None  # not reported when init ran again inside the invocation
        spent_s = 0.0
        answer: Answer | None = None
        if cold:
            environment, answer, spent_s = await self._init(environment, request_id)
            init_ms = None if spent_s else environment.init_ms
        output = environment.output
        output.pump()
        output.recent.clear()
        output.line(f"START RequestId: {request_id} Version: $LATEST")
        began = time.perf_counter()
        if answer is None:
            limit_s = max(0.0, self.function.timeout_s - spent_s)
            trace = f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0"
            invocation = Invocation(request_id, event, time.time() + limit_s, trace, caller)
            answer = await environment.invoke(invocation, limit_s, reply)
        if answer.error and reply.done() and isinstance(reply.result(), ResponseStream):
            error = answer.payload.decode(errors="replace")
            output.line(f"RequestId: {request_id} Error: the response stream broke: {error}")
        duration_ms = (time.perf_counter() - began + spent_s) * 1000
        self._report(environment, request_id, answer, duration_ms, init_ms)
        await self._release(environment)
        if not reply.done():
            reply.set_result(answer)
        return "\n".join(output.recent)[-4096:]

    async def _release(self, environment: Environment) -> None:
        """Make an environment the most recently used; drop an ended one."""
        if environment.state != "idle":
            await self._drop(environment)
        else:
            self._environments.remove(environment)
            self._environments.append(environment)
        self._change.set()
        self._change = asyncio.Event()

    async def _init(
        self, environment: Environment, request_id: str
    ) -> tuple[Environment, Answer | None, float]:
        """Start an environment as Lambda does: 10 s, then a second try.

        The second start counts towards the function's timeout. Returns the environment, the error
        if it did not start, and the seconds that count towards the invocation.
        """
        try:
            await environment.start(INIT_LIMIT_S, request_id)
        except InitFailed as error:
            status = _status(error.answer)
            duration = f"Init Duration: {environment.init_ms:.2f} ms"
            self._log.write(f"INIT_REPORT {duration}\tPhase: init\tStatus: {status}")
        else:
            return environment, None, 0.0
        await self._drop(environment)
        environment = self._new()
        try:
            await environment.start(self.function.timeout_s, request_id)
        except InitFailed as error:
            return environment, error.answer, environment.init_ms / 1000
        return environment, None, environment.init_ms / 1000

    def _report(
        self,
        environment: Environment,
        request_id: str,
        answer: Answer,
        duration_ms: float,
        init_ms: float | None,
    ) -> None:
        line = environment.output.line
        ending = environment.ending or answer
        status = _status(ending) if ending.fatal else ""
        if status == "timeout":
            line(f"{request_id} Task timed out after {self.function.timeout_s:.2f} seconds")
        line(f"END RequestId: {request_id}")
        parts = [
            f"REPORT RequestId: {request_id}",
            f"Duration: {duration_ms:.2f} ms",
            f"Billed Duration: {math.ceil(duration_ms + (init_ms or 0))} ms",
            f"Memory Size: {self.function.memory_mb} MB",
            f"Max Memory Used: {environment.max_memory_mb} MB",
        ]
        parts += [f"Init Duration: {init_ms:.2f} ms"] if init_ms is not None else []
        parts += [f"Status: {status}"] if status else []
        line("\t".join(parts))


def _abandon(reply: "asyncio.Future[Reply]") -> None:
    """Drop the chunks of a stream whose caller has gone."""
    if not reply.cancelled() and isinstance(stream := reply.result(), ResponseStream):
        stream.abandon()


def _status(answer: Answer) -> str:
    return "timeout" if b'"Sandbox.Timedout"' in answer.payload else "error"
