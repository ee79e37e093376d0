"""A running stack for tests and the demo: a child process that ends with the block, or with this process."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from botocore.config import Config

from local.aws.provision import local_session
from local.execution.processes import ROOT

START_S = 90
_direct = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # HTTP_PROXY is not for loopback


@dataclass(frozen=True, slots=True)
class RunningStack:
    """Where everything of a running stack is."""

    api_url: str  # http://127.0.0.1:PORT/<stage>
    root_url: str  # the same API without a stage
    endpoint_url: str  # AWS
    lambda_url: str
    log_dir: Path
    outputs: dict[str, str]
    environment: dict[str, dict[str, str]]
    pid: int

    def client(self, service: str) -> Any:
        """A boto3 client of the stack; that of "lambda" invokes its functions."""
        url = self.lambda_url if service == "lambda" else self.endpoint_url
        config = Config(proxies={}, retries={"total_max_attempts": 1}, read_timeout=900)
        return self.session().client(service, endpoint_url=url, config=config)

    def session(self) -> Any:
        return local_session()

    def environments(self, function: str) -> list[dict[str, Any]]:
        """Its execution environments, the one to be used next last: [{"pid": 123, "number": 1, "state": "idle"}]."""
        with _direct.open(f"{self.lambda_url}/environments", timeout=10) as answer:
            return list(json.load(answer)[function])

    def recycle(self, function: str) -> None:
        """End its idle environments: the next call is a cold start."""
        url = f"{self.lambda_url}/environments/{function}"
        request = urllib.request.Request(url, method="DELETE")  # noqa: S310 (loopback)
        _direct.open(request, timeout=30).close()

    def log(self, function: str) -> str:
        return (self.log_dir / f"{function}.log").read_text()


@contextlib.contextmanager
def start_stack(
    template: str | Path = ROOT / "template.yaml",
    *,
    parameters: Mapping[str, Any] | None = None,
    state_dir: str | Path = ROOT / ".local",
    arguments: tuple[str, ...] = (),
) -> Iterator[RunningStack]:
    """Start `python -m local up` and wait until it serves; `arguments` are further ones of its command line.

    Raises:
        RuntimeError: it did not start; the message is the last thing it said.
    """
    state = Path(state_dir).resolve()
    state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "local", "up", "--json", "--with-parent"]
    command += ["--template", str(Path(template).resolve()), "--state-dir", str(state), *arguments]
    for name, value in (parameters or {}).items():
        command += ["--parameter", f"{name}={value}"]
    said = state / "stack.log"
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with said.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": search_path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        line = stdout.readline()
        watchdog.cancel()
        if not line:
            last = said.read_text().strip().splitlines()[-1:] or [f"nothing within {START_S} s"]
            raise RuntimeError(f"the local stack did not start: {last[0].removeprefix('error: ')}")
        told = json.loads(line)
        yield RunningStack(**{**told, "log_dir": Path(told["log_dir"])})
    finally:
        watchdog.cancel()
        stdin.close()  # --with-parent: this is how it knows
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # its janitor ends the rest
            process.wait()
        stdout.close()
