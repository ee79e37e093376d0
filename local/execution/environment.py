"""Lambda execution environment: process, Runtime API, /tmp and memory limit."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import psutil

from local.cloudformation import REGION
from local.execution import processes
from local.execution.logs import FunctionLog, ProcessOutput
from local.execution.responses import Answer, ResponseStream, failure
from local.execution.runtime_api import HOST, Exchange, Invocation, RuntimeApi
from local.template import Function

WRAPPER = "AWS_LAMBDA_EXEC_WRAPPER"
TASK_ROOT = "/var/task"  # folder of the code on Lambda
MEMORY_INTERVAL_S = 0.05  # s between measurements of an environment's memory
LAST_WORDS_S = 0.2  # s to read what a process sent before it ended

T = TypeVar("T")
Reply = Answer | ResponseStream


@dataclass(frozen=True, slots=True)
class Place:
    """Settings shared by all Lambda execution environments of a local stack."""

    endpoint_url: str  # URL of the stack's AWS services
    work_dir: Path  # holds the environments' /tmp
    janitor: processes.Janitor
    code_root: Path = processes.ROOT
    python: str = sys.executable
    built: Path | None = None  # output of sam build, used instead of code_root
    lambda_url: str = ""  # URL of the stack's Lambda API

    def code(self, function: Function) -> Path:
        """Return the folder with a Lambda function's code."""
        return self.built / function.name if self.built else self.code_root

    def layers(self, function: Function) -> list[Path]:
        """Return the folders of a Lambda function's layers; none without a build."""
        return [self.built / layer / "python" for layer in function.layers] if self.built else []

    def command(self, function: Function) -> list[str]:
        """Return the command of a function's process, behind its wrapper script.

        Source: docs.aws.amazon.com/lambda/latest/dg/runtimes-modify.html.
        """
        command = [self.python, "-m", "awslambdaric", function.handler]
        if (wrapper := function.environment.get(WRAPPER)) is None:
            return command
        task_path = PurePosixPath(wrapper)
        if task_path.is_relative_to(TASK_ROOT):
            wrapper = str(self.code(function) / task_path.relative_to(TASK_ROOT))
        return [wrapper, *command]

    def search_path(self, function: Function) -> list[Path]:
        """Return the folders of PYTHONPATH: code, layers, and libraries for a wrapper.

        A wrapper may start an interpreter that ignores its own site-packages.
        """
        folders = [self.code(function), *self.layers(function)]
        if WRAPPER in function.environment and not self.built:
            folders.append(site_packages(self.python))
        return folders


@cache
def site_packages(python: str) -> Path:
    """Return the folder where a Python interpreter has its installed packages."""
    if python == sys.executable:
        return Path(sysconfig.get_path("purelib"))
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    process = subprocess.run([python, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return Path(process.stdout.strip())


class InitFailed(Exception):
    """Failed start: the function's process never asked for an event."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.payload.decode())
        self.answer = answer


@dataclass
class Environment:
    """Lambda execution environment with process, Runtime API, /tmp and memory limit."""

    function: Function
    number: int  # counts the function's environments from 1
    place: Place
    log: FunctionLog
    state: str = "starting"
    max_memory_mb: int = 0
    init_ms: float = 0.0
    pid: int = 0
    ending: Answer | None = None  # failure that ended the process after its last answer
    _exit: "asyncio.Task[int] | None" = None

    async def start(self, limit_s: float, request_id: str) -> None:
        """Spawn the function's process; wait until it asks for an event.

        Raises:
            InitFailed: the process reported an error, ended, or exceeded time or memory.
        """
        loop = asyncio.get_running_loop()
        began, deadline = time.perf_counter(), loop.time() + limit_s
        self.output = ProcessOutput(self.log)
        self.tmp = self.place.work_dir / f"{self.function.name}-{self.number}"
        self.tmp.mkdir()
        self._api = RuntimeApi(self.function.arn)
        try:
            await self._spawn(await self._api.start())
        except OSError as error:
            message = f"fork/exec {error.filename}: {error.strerror}"
            failed: Answer | None = failure(
                "Runtime.InvalidEntrypoint", f"RequestId: {request_id} Error: {message}"
            )
        else:
            async with self._limited():
                failed = await self._until(self._api.ready, deadline, request_id)
        self.init_ms = (time.perf_counter() - began) * 1000
        if failed is not None:
            await self.stop()
            raise InitFailed(failed)

    async def _spawn(self, port: int) -> None:
        """Start the function's process.

        Raises:
            OSError: its wrapper script or its folder is missing or may not be used.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *self.place.command(self.function), cwd=self.place.code(self.function),
                env=self._variables(port), start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self.output.write_end, stderr=self.output.write_end,
            )  # fmt: skip
        finally:
            self.output.close_write_end()
        self.pid = process.pid
        self.place.janitor.tell("add", self.pid)
        asyncio.get_running_loop().add_reader(self.output, self._pump)
        self._exit = asyncio.create_task(process.wait())

    async def invoke(
        self, invocation: Invocation, limit_s: float, reply: "asyncio.Future[Reply] | None" = None
    ) -> Answer:
        """Send one event to the function's process; return its complete answer.

        `reply` is resolved earlier: with the response, while the process still works after it, or
        with the response's stream. It stays open when the environment ends without a response.
        """
        deadline = asyncio.get_running_loop().time() + limit_s
        self.state, ending = "busy", None
        exchange = Exchange(invocation)
        self._api.offer(exchange)
        async with self._limited():
            answer = await self._answer(exchange, deadline, reply)
            if not answer.fatal:
                self.state = "finishing"
                request_id = invocation.request_id
                ending = await self._until(exchange.asks_again, deadline, request_id)
        if answer.fatal or ending is not None:
            self.ending = None if self._has_left() else ending
            await self.stop()
        else:
            self._measure(children=False)
            self.output.pump()
            self.state = "idle"
        return answer

    async def _answer(
        self, exchange: Exchange, deadline: float, reply: "asyncio.Future[Reply] | None"
    ) -> Answer:
        """Pass the process's response on; return its complete answer."""
        request_id = exchange.invocation.request_id
        response = await self._until(exchange.reply, deadline, request_id)
        self.output.pump()  # logs the process's output before its caller goes on
        is_fatal = isinstance(response, Answer) and response.fatal
        if reply is not None and not is_fatal:
            reply.set_result(response)
        if isinstance(response, Answer):
            return response
        answer = failure("Sandbox.Failure", f"RequestId: {request_id} Error: stopped")
        try:
            answer = await self._until(exchange.answer, deadline, request_id)
        finally:
            self.output.pump()
            exchange.complete(answer)
        return answer

    def is_alive(self) -> bool:
        """Return True unless the function's process has ended or is ending."""
        exited = self._exit is not None and self._exit.done()
        return not exited and not processes.is_dying(self.pid)

    def _has_left(self) -> bool:
        """Return True if the process ended by itself with exit status 0."""
        return self._exit is not None and self._exit.done() and self._exit.result() == 0

    async def stop(self) -> None:
        """End the function's process, children, Runtime API and /tmp folder."""
        if self.state == "ended":
            return
        self.state = "ended"
        if self._exit is not None:
            processes.end([self.pid])
            await self._exit
            self.place.janitor.tell("remove", self.pid)
            asyncio.get_running_loop().remove_reader(self.output)
        self.output.close()
        await self._api.close()
        await asyncio.to_thread(shutil.rmtree, self.tmp, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        """Watch the memory of the function's processes."""
        self._memory = asyncio.create_task(self._watch_memory())
        try:
            yield
        finally:
            self._memory.cancel()

    async def _until(
        self, done: "asyncio.Future[T]", deadline: float, request_id: str
    ) -> T | Answer:
        """Wait for `done`; return its result, or the earlier failure or timeout."""
        exited = cast("asyncio.Task[int]", self._exit)
        events: set[asyncio.Future[Any]] = {done, exited, self._memory}
        limit_s = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if exited.done() and not done.done():
            await asyncio.wait({done}, timeout=LAST_WORDS_S)
        if done.done():
            return done.result()
        if self._memory.done() or exited.done():
            reason = exit_reason(-9 if self._memory.done() else exited.result())
            return failure("Runtime.ExitError", f"RequestId: {request_id} Error: {reason}")
        message = f"Task timed out after {self.function.timeout_s:.2f} seconds"
        return failure("Sandbox.Timedout", f"RequestId: {request_id} Error: {message}")

    async def _watch_memory(self) -> None:
        """Return once the function's processes exceed its memory limit."""
        for tick in range(sys.maxsize):
            self._measure(children=tick % 10 == 9)  # finding children reads all of /proc
            if self.max_memory_mb > self.function.memory_mb:
                return
            await asyncio.sleep(MEMORY_INTERVAL_S)

    def _measure(self, children: bool) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            used = process.memory_info().rss
            for child in process.children(recursive=True) if children else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    used += child.memory_info().rss
            self.max_memory_mb = max(self.max_memory_mb, used >> 20)

    def _pump(self) -> None:
        if not self.output.pump():
            asyncio.get_running_loop().remove_reader(self.output)

    def _variables(self, port: int) -> dict[str, str]:
        """Return the environment variables of the function's process.

        Lambda's own, the template's, and the search paths of this process.
        """
        name = self.function.name
        inherited = {
            key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ
        }
        code_root = self.place.code(self.function)
        search_path = self.place.search_path(self.function)
        return inherited | self.function.environment | {
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.place.endpoint_url,
            "AWS_ENDPOINT_URL_LAMBDA": self.place.lambda_url,  # empty counts as unset
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{self.function.runtime}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.function.memory_mb),
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"local/[$LATEST]{self.number}",
            "AWS_LAMBDA_RUNTIME_API": f"{HOST}:{port}",
            "LAMBDA_TASK_ROOT": str(code_root),
            "_HANDLER": self.function.handler,
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "TMPDIR": str(self.tmp),
            "PYTHONPATH": os.pathsep.join(map(str, search_path)),
        }  # fmt: skip


def exit_reason(status: int) -> str:
    """Describe a process's exit status in Lambda's words.

    >>> exit_reason(-9), exit_reason(1)
    ('Runtime exited with error: signal: killed', 'Runtime exited with error: exit status 1')
    """
    if status == -9:
        return "Runtime exited with error: signal: killed"
    if status < 0:
        names = {6: "aborted", 11: "segmentation fault", 15: "terminated"}
        return f"Runtime exited with error: signal: {names.get(-status, -status)}"
    return (
        f"Runtime exited with error: exit status {status}"
        if status
        else "Runtime exited without providing a reason"
    )
