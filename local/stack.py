"""Supervisor of the local stack: start and stop all its parts.

moto and the functions are child processes; gateway, control API and pollers run in this process.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from aiohttp import web
from botocore.config import Config

from local.aws.provision import Deployed, local_session, provision
from local.aws.stack_descriptions import FILE_VARIABLE, write_description
from local.cloudformation import REGION
from local.execution import processes
from local.execution.control import make_control_app
from local.execution.environment import Place
from local.execution.logs import Echo, FunctionLog
from local.execution.pool import CONCURRENCY, FunctionPool
from local.execution.runtime_api import HOST
from local.gateway import TIMEOUT_S, Gateway
from local.poller import Poller
from local.template import Template

AWS_START_S = 600  # generous, for busy machines; a process that ends is noticed at once
STACK_FILE = "stack.json"  # in the stack's temporary folder


class StackError(Exception):
    """Failure of the local stack; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the local stack; port 0 means a free port."""

    template: Path = processes.ROOT / "template.yaml"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    state_dir: Path = processes.ROOT / ".local"
    api_port: int = 0
    root_port: int = 0
    aws_port: int = 0
    control_port: int = 0
    concurrency: int = CONCURRENCY
    api_timeout_s: float = TIMEOUT_S
    code_root: Path = processes.ROOT
    python: str = sys.executable
    built: Path | None = None  # output of sam build; functions run from it, with their layers
    function_endpoint_url: str | None = None  # AWS endpoint for functions, e.g. a faulty proxy
    echo: Echo | None = None  # called with (function, line) for each log line


class Stack:
    """Local stack as an async context manager that leaves nothing behind."""

    deployed: Deployed
    endpoint_url: str
    api_url: str
    root_url: str
    lambda_url: str
    pools: dict[str, FunctionPool]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log_dir = settings.state_dir.resolve() / "logs"
        # Resolves to the reason when a part of the stack stops.
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Stack":
        try:
            await self._start()
        except BaseException:  # cancellation included: end all that was started
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    def describe(self) -> dict[str, Any]:
        """Return the local stack's addresses, outputs and environment variables for JSON."""
        return {
            "api_url": self.api_url,
            "root_url": self.root_url,
            "endpoint_url": self.endpoint_url,
            "lambda_url": self.lambda_url,
            "log_dir": str(self.log_dir),
            "outputs": self.deployed.outputs,
            "environment": self.deployed.environment,
            "pid": os.getpid(),
        }

    async def create_key(self) -> str:
        """Create an access key for everything; "" where callers need none."""
        manage = self.pools.get("ManageFunction")
        if manage is None or self.deployed.template.parameters.get("Auth") != "keys":
            return ""
        event = {"operation": "create-key", "name": "local", "scopes": ["admin"]}
        result = await manage.invoke(json.dumps(event).encode())
        answer = json.loads(result.payload)
        if "key" not in answer:
            raise StackError(f"no access key was created; see {self.log_dir}/ManageFunction.log")
        return str(answer["key"])

    async def _start(self) -> None:
        settings = self.settings
        template = Template.load(settings.template, settings.parameters)
        if shutil.which(settings.python) is None:
            raise StackError(f"there is no Python at {settings.python}; see --python")
        names = ("api", "root", "control")
        api_socket, root_socket, control_socket = (
            _listen(name, getattr(settings, f"{name}_port")) for name in names
        )
        for listening in (api_socket, root_socket, control_socket):
            self._exits.callback(listening.close)
        api_origin, self.root_url, self.lambda_url = (
            f"http://{HOST}:{listening.getsockname()[1]}"
            for listening in (api_socket, root_socket, control_socket)
        )
        stage = f"/{template.api.stage}" if template.api else ""
        self.api_url = api_origin + stage

        self.log_dir.mkdir(parents=True, exist_ok=True)
        work_dir = Path(tempfile.mkdtemp(prefix="mayfly-"))
        self._exits.callback(shutil.rmtree, work_dir, ignore_errors=True)
        janitor = processes.Janitor()
        self._exits.push_async_callback(asyncio.to_thread, janitor.close)
        janitor.tell("folder", work_dir)

        self.endpoint_url = await self._start_aws(janitor, work_dir)
        session = local_session()
        self.deployed = await asyncio.to_thread(
            provision, template, session, self.endpoint_url, api_origin
        )

        name, outputs = self.deployed.template.stack_name, self.deployed.outputs
        write_description(work_dir / STACK_FILE, name, outputs)

        place = Place(
            endpoint_url=settings.function_endpoint_url or self.endpoint_url,
            work_dir=work_dir,
            janitor=janitor,
            code_root=settings.code_root.resolve(),
            python=settings.python,
            built=settings.built and settings.built.resolve(),
            lambda_url=self.lambda_url,
        )
        self.pools = {}
        for name, function in self.deployed.template.functions.items():
            log = FunctionLog(self.log_dir, name, settings.echo)
            self._exits.callback(log.close)
            self.pools[name] = FunctionPool(function, place, log, settings.concurrency)
            self._exits.push_async_callback(self.pools[name].stop)

        sqs = session.client(
            "sqs",
            endpoint_url=self.endpoint_url,
            config=Config(proxies={}, retries={"total_max_attempts": 1}, read_timeout=60),
        )
        for name, function in self.deployed.template.functions.items():
            for source in function.sources:
                self._run(Poller(self.pools[name], source, sqs).run(), f"the poller of {name}")

        if (api := self.deployed.template.api) is not None:
            for prefix, listening in ((stage, api_socket), ("", root_socket)):
                gateway = Gateway(api, self.pools, prefix, settings.api_timeout_s)
                await self._serve(gateway.app(), listening)
        await self._serve(make_control_app(self.pools), control_socket)

    async def _start_aws(self, janitor: processes.Janitor, work_dir: Path) -> str:
        """Start moto's AWS server as a child process; return its URL."""
        with (self.log_dir / "aws.log").open("wb") as log:
            variables = {
                name: value for name, value in os.environ.items() if not name.startswith("AWS_")
            } | {
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
                "AWS_DEFAULT_REGION": REGION,
                "AWS_REGION": REGION,
                "MAYFLY_STATE_DIR": str(self.settings.state_dir.resolve()),
                "MAYFLY_LAMBDA_URL": self.lambda_url,  # invokes functions for state machines
                FILE_VARIABLE: str(work_dir / STACK_FILE),
                "TMPDIR": str(work_dir),
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "local.aws.server", "--port", str(self.settings.aws_port),
                cwd=processes.ROOT, start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=log, env=variables,
            )  # fmt: skip
        janitor.tell("add", process.pid)

        async def stop() -> None:
            processes.end([process.pid])
            await process.wait()
            janitor.tell("remove", process.pid)

        self._exits.push_async_callback(stop)
        stdout = cast(asyncio.StreamReader, process.stdout)
        try:
            line = await asyncio.wait_for(stdout.readline(), AWS_START_S)
        except TimeoutError as error:
            raise StackError(
                f"moto did not start within {AWS_START_S} s; see {self.log_dir}/aws.log"
            ) from error
        if not line:
            log_path = self.log_dir / "aws.log"
            last = log_path.read_text().strip().splitlines()[-1:] or ["no message"]
            raise StackError(
                f"moto did not start: {last[0]}; see {log_path} or choose another --aws-port"
            )
        self._run(self._fail_after(process), "AWS")
        return f"http://{HOST}:{json.loads(line)['port']}"

    async def _fail_after(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        raise StackError(f"moto has ended; see {self.log_dir}/aws.log")

    async def _serve(self, app: web.Application, listening: socket.socket) -> None:
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.2)
        await runner.setup()
        self._exits.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listening).start()

    def _run(self, work: Coroutine[Any, Any, None], title: str) -> None:
        """Run a background task; its early end fails the local stack."""
        task = asyncio.create_task(work)

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and not self.failed.done():
                self.failed.set_result(f"{title} stopped: {task.exception()}")

        task.add_done_callback(ended)
        self._exits.push_async_callback(_cancel, task)


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _listen(name: str, port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise StackError(
            f"port {port} is not free ({why}): choose another --{name}-port"
        ) from error
