"""First invocation of a Lambda function, in a new process."""

import json
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import ROOT

HOST = "127.0.0.1"
PREFIX = "/2018-06-01/runtime"
LIMIT_S = 120.0
POLL_S = 0.5  # between two looks whether a process without a reply has ended
FUNCTION_LIMIT_S = 29.0
ARN = "arn:aws:lambda:us-east-1:123456789012:function:InferFunction"
CLIENTS = MAYFLY, AWS = "mayfly", "aws"  # runtime clients


class RuntimeApi(ThreadingHTTPServer):
    """Lambda's Runtime API with one event; it notes when the reply arrives."""

    daemon_threads = True

    def __init__(self, event: bytes) -> None:
        super().__init__((HOST, 0), _Exchange)
        self.event = event
        self.events_left = threading.Semaphore(1)
        self.answered = threading.Event()
        self.answered_at = 0.0  # instant of time.perf_counter
        self.path = ""  # the address that the reply was posted to, which tells errors
        self.reply = b""

    def handle_error(self, *_: object) -> None:
        """Ignore a process that is killed while it waits for another event."""


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RuntimeApi

    def do_GET(self) -> None:
        if not self.server.events_left.acquire(timeout=LIMIT_S):
            return
        deadline_ms = round((time.time() + FUNCTION_LIMIT_S) * 1000)
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
        }
        self._send(200, headers, self.server.event)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        arrived = time.perf_counter()
        self._send(202, {}, b"")
        server = self.server
        server.answered_at, server.path, server.reply = arrived, self.path, body
        server.answered.set()

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def invoke(
    handler: str,
    event: Path,
    client: str,
    environment: Callable[[Path], Mapping[str, str]],
    folder: Path,
) -> tuple[float, Any]:
    """Invoke a function in a new process; return (milliseconds, reply).

    `environment` returns the variables of a process, given its temporary directory, which lies
    in `folder` and is removed afterwards.

    Raises:
        RuntimeError: it ended or failed.
    """
    api = RuntimeApi(event.read_bytes())
    threading.Thread(target=api.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
            variables = dict(environment(Path(name))) | {
                "AWS_LAMBDA_RUNTIME_API": f"{HOST}:{api.server_address[1]}",
                "_HANDLER": handler,
                "RUNTIME_CLIENT": client,
                # The interpreter may be started without its own site-packages.
                "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
            }
            started = time.perf_counter()
            _run(api, handler, variables, Path(name))
            return (api.answered_at - started) * 1000, json.loads(api.reply)
    finally:
        api.shutdown()
        api.server_close()


def _run(api: RuntimeApi, handler: str, variables: Mapping[str, str], tmp: Path) -> None:
    """Run the function behind the wrapper script until it has replied."""
    wrapper = ROOT / "functions" / "runtime" / "start"
    with (tmp / "output").open("w+b") as output:
        process = subprocess.Popen(
            [wrapper, sys.executable, "-m", "awslambdaric", handler],
            cwd=tmp,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        watchdog = threading.Timer(LIMIT_S, process.kill)
        watchdog.start()
        try:
            while not api.answered.wait(POLL_S) and process.poll() is None:
                pass
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
        if not api.path.endswith("/response"):
            output.seek(0)
            text = (api.reply or output.read()).decode(errors="replace").strip()[-1000:]
            raise RuntimeError(f"{handler} failed: {text}")
