"""Local stack in a child process, for tests and the demo."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from botocore.config import Config

from local.aws.provision import local_session
from local.execution.processes import ROOT

START_S = 900  # generous, for busy machines; a process that ends is noticed at once
# HTTP client without HTTP_PROXY, which is not for loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class RunningStack:
    """Running local stack: its URLs, outputs, boto3 clients and logs."""

    api_url: str  # http://127.0.0.1:PORT/<stage>
    root_url: str  # the same API without the stage
    endpoint_url: str  # URL of the stack's AWS services
    lambda_url: str
    log_dir: Path
    outputs: dict[str, str]
    environment: dict[str, dict[str, str]]
    pid: int

    def client(self, service: str) -> Any:
        """Return a boto3 client for one service of the local stack.

        "lambda" invokes the stack's functions.
        """
        url = self.lambda_url if service == "lambda" else self.endpoint_url
        config = Config(proxies={}, retries={"total_max_attempts": 1}, read_timeout=900)
        return self.session().client(service, endpoint_url=url, config=config)

    def session(self) -> Any:
        """Return a boto3 session with placeholder credentials for the local stack."""
        return local_session()

    def create_key(self, *scopes: str, models: Sequence[str] = ("*",)) -> str:
        """Create an access key for the local stack's API and return it."""
        event = {"operation": "create-key", "name": "local", "scopes": scopes, "models": models}
        reply = self.client("lambda").invoke(
            FunctionName="ManageFunction", Payload=json.dumps(event).encode()
        )
        answer = json.loads(reply["Payload"].read())
        if "key" not in answer:
            raise RuntimeError(f"the manage function created no key: {answer}")
        return str(answer["key"])

    def environments(self, function: str) -> list[dict[str, Any]]:
        """Return a Lambda function's execution environments; the last is reused next.

        E.g. [{"pid": 123, "number": 1, "state": "idle"}].
        """
        with _direct.open(f"{self.lambda_url}/environments", timeout=10) as answer:
            return list(json.load(answer)[function])

    def recycle(self, function: str) -> None:
        """End a Lambda function's idle environments, to force a cold start."""
        url = f"{self.lambda_url}/environments/{function}"
        request = urllib.request.Request(url, method="DELETE")  # noqa: S310 (loopback)
        _direct.open(request, timeout=30).close()

    def log(self, function: str) -> str:
        """Return the text of a Lambda function's log so far."""
        return (self.log_dir / f"{function}.log").read_text()


@contextlib.contextmanager
def start_stack(
    template: str | Path = ROOT / "template.yaml",
    *,
    parameters: Mapping[str, Any] | None = None,
    state_dir: str | Path = ROOT / ".local",
    arguments: tuple[str, ...] = (),
) -> Iterator[RunningStack]:
    """Start the local stack, wait until it serves, stop it afterwards.

    Runs `python -m local up`; `arguments` are appended to its command line.

    Raises:
        RuntimeError: the stack ended, with its last line of output, or START_S passed.
    """
    state = Path(state_dir).resolve()
    state.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "local", "up", "--json", "--with-parent"]
    command += ["--template", str(Path(template).resolve()), "--state-dir", str(state), *arguments]
    for name, value in (parameters or {}).items():
        command += ["--parameter", f"{name}={value}"]
    errors_path = state / "stack.log"
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with errors_path.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": search_path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        line = stdout.readline()
        if not line:
            reason = _reason(process, errors_path)
            raise RuntimeError(f"the local stack did not start: {reason}")
        watchdog.cancel()
        description = json.loads(line)
        description["log_dir"] = Path(description["log_dir"])
        yield RunningStack(**description)
    finally:
        watchdog.cancel()
        stdin.close()  # ends the child, because of --with-parent
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # the janitor ends its children
            process.wait()
        stdout.close()


def _reason(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return why a stack's process ended, e.g. its last line of output."""
    if process.wait() == -signal.SIGKILL:
        return f"it did not serve within {START_S} s, or was killed for its memory; see {log}"
    last = log.read_text().strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
    return last[0].removeprefix("error: ")
