"""A function as its callers see it: cold and warm environments, one invocation at a time each, Lambda's log lines."""

import asyncio
import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

from local.execution.logs import FunctionLog
from local.execution.runtime_api import (
    PAYLOAD_LIMIT,
    Answer,
    Environment,
    InitFailed,
    Invocation,
    Place,
)
from local.template import Function

INIT_LIMIT_S = 10.0
CONCURRENCY = 10  # what a new AWS account has


class Throttled(Exception):
    """Every environment that the function may have is busy."""


class PayloadTooLarge(Exception):
    """The event exceeds Lambda's limit for synchronous invocations."""


@dataclass(frozen=True, slots=True)
class Result:
    request_id: str
    payload: bytes
    error: bool
    log_tail: str


class FunctionPool:
    """The environments of one function. The one used last is used next, as Lambda seems to do."""

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
        self._running: set[asyncio.Task[Result]] = set()

    def environments(self) -> list[dict[str, Any]]:
        return [
            {"pid": one.pid, "number": one.number, "state": one.state} for one in self._environments
        ]

    async def invoke(self, event: bytes, client_context: str | None = None) -> Result:
        """The function's answer. It runs to its end even if the caller stops waiting.

        Raises:
            Throttled, PayloadTooLarge: it was not started.
        """
        if len(event) > PAYLOAD_LIMIT:
            raise PayloadTooLarge(
                f"{len(event)} bytes exceeded the maximum of {PAYLOAD_LIMIT} bytes"
            )
        environment, cold = await self._take()
        task = asyncio.create_task(self._run(environment, cold, event, client_context))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def recycle(self) -> None:
        """End the idle environments, so that the next invocation is a cold start."""
        idle = [one for one in self._environments if one.state == "idle"]
        self._environments = [one for one in self._environments if one not in idle]
        await asyncio.gather(*(one.stop() for one in idle))

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self._environments if one.pid))

    async def _take(self) -> tuple[Environment, bool]:
        for environment in reversed(self._environments):
            if environment.state == "idle":
                environment.state = "busy"
                if environment.is_alive():
                    return environment, False
                await self._drop(environment)
        if len(self._environments) >= self.concurrency:
            raise Throttled(
                f"{self.function.name} already runs {self.concurrency} times; see --concurrency"
            )
        return self._new(), True

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
        self, environment: Environment, cold: bool, event: bytes, client_context: str | None
    ) -> Result:
        request_id = str(uuid.uuid4())
        init_ms: float | None = (
            None  # as reported; an init run again counts as part of the invocation
        )
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
            invocation = Invocation(request_id, event, time.time() + limit_s, trace, client_context)
            answer = await environment.invoke(invocation, limit_s)
        self._report(
            environment, request_id, answer, (time.perf_counter() - began + spent_s) * 1000, init_ms
        )
        if answer.fatal:
            await self._drop(environment)
        else:
            self._environments.remove(environment)
            self._environments.append(environment)  # used last
        return Result(request_id, answer.payload, answer.error, "\n".join(output.recent)[-4096:])

    async def _init(
        self, environment: Environment, request_id: str
    ) -> tuple[Environment, Answer | None, float]:
        """A started environment, or the answer that says why there is none, and the invocation's seconds spent on it.

        As on Lambda: ten seconds of its own, then once more inside the invocation, under the function's timeout.
        """
        try:
            await environment.start(INIT_LIMIT_S, request_id)
        except InitFailed as error:
            status = _status(error.answer)
            self._log.write(
                f"INIT_REPORT Init Duration: {environment.init_ms:.2f} ms\tPhase: init\tStatus: {status}"
            )
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
        status = _status(answer) if answer.fatal else ""
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


def _status(answer: Answer) -> str:
    return "timeout" if b'"Sandbox.Timedout"' in answer.payload else "error"
