"""Lambda execution environment: awslambdaric process, Runtime API server, memory limit.

Source: docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. awslambdaric accepts only a host and
a port, so each environment has its own port.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
from aiohttp import web

from local.cloudformation import REGION
from local.execution import processes
from local.execution.logs import FunctionLog, ProcessOutput
from local.template import Function

HOST = "127.0.0.1"
PAYLOAD_LIMIT = 6_291_456  # bytes of a synchronous event
RESPONSE_LIMIT = PAYLOAD_LIMIT + 100  # bytes, as measured on Lambda
WRAPPER = "AWS_LAMBDA_EXEC_WRAPPER"
TASK_ROOT = "/var/task"  # folder of the code on Lambda
MEMORY_INTERVAL_S = 0.05  # s between measurements of an environment's memory


@dataclass(frozen=True, slots=True)
class Place:
    """Settings shared by all Lambda execution environments of a local stack."""

    endpoint_url: str  # URL of the stack's AWS services
    work_dir: Path  # holds the environments' /tmp
    janitor: processes.Janitor
    code_root: Path = processes.ROOT
    python: str = sys.executable
    built: Path | None = None  # output of sam build, used instead of code_root

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


@dataclass(frozen=True, slots=True)
class Invocation:
    """Lambda event with the metadata that the Runtime API adds."""

    request_id: str
    event: bytes
    deadline: float  # seconds since the epoch
    trace_id: str
    client_context: str | None = None


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
    _queue: "asyncio.Queue[Invocation]" = field(default_factory=asyncio.Queue)
    _asking: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, limit_s: float, request_id: str) -> None:
        """Spawn the function's process; wait until it asks for an event.

        Raises:
            InitFailed: the process reported an error, ended, or exceeded time or memory.
        """
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Answer | None] = loop.create_future()
        self._answer: asyncio.Future[Answer | None] = loop.create_future()
        self.output = ProcessOutput(self.log)
        self.tmp = self.place.work_dir / f"{self.function.name}-{self.number}"
        self.tmp.mkdir()
        self._server = web.AppRunner(self._runtime_api(), access_log=None, shutdown_timeout=0.1)
        await self._server.setup()
        site = web.TCPSite(self._server, HOST, 0)
        await site.start()
        port = self._server.addresses[0][1]
        self._process = await asyncio.create_subprocess_exec(
            *self.place.command(self.function),
            cwd=self.place.code(self.function), env=self._variables(port), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self.output.write_end, stderr=self.output.write_end,
        )  # fmt: skip
        self.pid = self._process.pid
        self.place.janitor.tell("add", self.pid)
        self.output.close_write_end()
        loop.add_reader(self.output, self._pump)
        self._exit = asyncio.create_task(self._process.wait())
        failed = await self._until(self._ready, limit_s, request_id)
        self.init_ms = (time.perf_counter() - began) * 1000
        if failed is not None:
            await self.stop()
            raise InitFailed(failed)

    async def invoke(self, invocation: Invocation, limit_s: float) -> Answer:
        """Send one event to the function's process; return its answer."""
        self.state = "busy"
        self._answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(invocation)
        answer = await self._until(self._answer, limit_s, invocation.request_id) or Answer(b"null")
        if answer.fatal or not await self._asks_again(limit_s):
            await self.stop()
        else:
            self._measure(children=False)
            self.output.pump()
            self.state = "idle"
        return answer

    async def _asks_again(self, limit_s: float) -> bool:
        """Wait for the next event request; return False if the process ends."""
        asks = asyncio.create_task(self._asking.wait())
        try:
            await asyncio.wait(
                {asks, self._exit}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            return asks.done()
        finally:
            asks.cancel()

    def is_alive(self) -> bool:
        """Return True unless the function's process has ended or is ending."""
        return not self._exit.done() and not processes.is_dying(self.pid)

    async def stop(self) -> None:
        """End the function's process, children, Runtime API and /tmp folder."""
        if self.state == "ended":
            return
        self.state = "ended"
        processes.end([self.pid])
        await self._exit
        self.place.janitor.tell("remove", self.pid)
        asyncio.get_running_loop().remove_reader(self.output)
        self.output.close()
        await self._server.cleanup()
        await asyncio.to_thread(shutil.rmtree, self.tmp, ignore_errors=True)

    async def _until(
        self, done: "asyncio.Future[Answer | None]", limit_s: float, request_id: str
    ) -> Answer | None:
        """Wait for `done`; return its result, or the earlier failure or timeout."""
        memory = asyncio.create_task(self._watch_memory())
        events: set[asyncio.Future[Any]] = {done, self._exit, memory}
        try:
            await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            if memory.done() or self._exit.done():
                reason = exit_reason(-9 if memory.done() else self._exit.result())
                return failure("Runtime.ExitError", f"RequestId: {request_id} Error: {reason}")
            message = f"Task timed out after {self.function.timeout_s:.2f} seconds"
            return failure("Sandbox.Timedout", f"RequestId: {request_id} Error: {message}")
        finally:
            memory.cancel()

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

    # --- Runtime API routes ---

    def _runtime_api(self) -> web.Application:
        app = web.Application(client_max_size=RESPONSE_LIMIT + 1)
        runtime = "/2018-06-01/runtime"
        app.router.add_get(f"{runtime}/invocation/next", self._next)
        app.router.add_post(f"{runtime}/invocation/{{id}}/response", self._respond)
        app.router.add_post(f"{runtime}/invocation/{{id}}/error", self._fail)
        app.router.add_post(f"{runtime}/init/error", self._init_error)
        return app

    async def _next(self, _: web.Request) -> web.Response:
        if not self._ready.done():
            self._ready.set_result(None)
        self._asking.set()
        invocation = await self._queue.get()
        self._asking.clear()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self.function.arn,
            "Lambda-Runtime-Trace-Id": invocation.trace_id,
        }
        if invocation.client_context:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        return web.Response(body=invocation.event, headers=headers, content_type="application/json")

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            payload = await request.read()
        except web.HTTPRequestEntityTooLarge:
            size = request.content_length or 0
            message = (
                f"Response payload size ({size} bytes) exceeded maximum allowed payload size"
                f" ({RESPONSE_LIMIT} bytes)."
            )
            self._answered(failure("Function.ResponseSizeTooLarge", message, fatal=False))
            return web.json_response(
                {"errorType": "Function.ResponseSizeTooLarge", "errorMessage": message}, status=413
            )
        return self._answered(Answer(payload))

    async def _fail(self, request: web.Request) -> web.Response:
        return self._answered(Answer(await request.read(), error=True))

    async def _init_error(self, request: web.Request) -> web.Response:
        if not self._ready.done():
            self._ready.set_result(Answer(await request.read(), error=True, fatal=True))
        return web.json_response({"status": "OK"}, status=202)

    def _answered(self, answer: Answer) -> web.Response:
        if not self._answer.done():
            self._answer.set_result(answer)
        return web.json_response({"status": "OK"}, status=202)


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
