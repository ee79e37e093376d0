"""Instruments of benchmarks/peers.py: load generator, process usage, measured function."""

import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.children.function import measure
from benchmarks.children.load import Connection, load
from benchmarks.harness.measure import ROOT
from benchmarks.harness.usage import cpu_seconds, memory_mb


class Echo(BaseHTTPRequestHandler):
    """Echo each body; /refuse answers 503, /close closes the connection after the answer."""

    connections = 0

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if self.path == "/refuse" else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Echo.connections, Echo.protocol_version = 0, "HTTP/1.1"
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(("path", "connections"), [("/", 1), ("/close", 3)])
def test_a_connection_stays_open_if_the_server_keeps_it(
    port: int, path: str, connections: int
) -> None:
    connection, body = Connection(port, path, b"x" * 100_000), b"x" * 100_000

    assert [connection.ask() for _ in range(3)] == [(200, body)] * 3
    connection.close()
    assert Echo.connections == connections


def test_a_load_counts_every_request_but_the_warm_up(port: int) -> None:
    summary = load(port, "/", b"{}", os.getpid(), clients=4, requests=40)

    assert summary["clients"] == 4
    assert Echo.connections == 4
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert summary["cpu_us"] > 0


def test_a_status_other_than_200_ends_the_load(port: int) -> None:
    with pytest.raises(RuntimeError, match="503"):
        load(port, "/refuse", b"{}", os.getpid(), clients=1, requests=10)


GRANDCHILD = """
import time
x = b"x" * 60_000_000
while time.process_time() < 0.1:
    pass
print(flush=True)
time.sleep(60)
"""


def test_cpu_time_and_memory_include_descendants() -> None:
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {GRANDCHILD!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert memory_mb(process.pid) > 60
            assert cpu_seconds(process.pid) > 0.1
        finally:
            os.killpg(process.pid, 9)
    assert cpu_seconds(process.pid) == memory_mb(process.pid) == 0


WORK_AND_SLEEP = """
import os, time
from benchmarks.harness.measure import ROOT
from benchmarks.harness.usage import cpu_seconds
while time.process_time() < 0.3:
    pass
time.sleep(0.2)
print(time.process_time(), cpu_seconds(os.getpid()), time.process_time())
"""


def test_cpu_time_counts_work_and_not_sleep() -> None:
    output = subprocess.check_output([sys.executable, "-c", WORK_AND_SLEEP], cwd=ROOT)
    before, measured, after = map(float, output.split())

    assert 0.3 <= before <= measured <= after


def plan_for(handler: str, client: str, folder: Path) -> dict[str, Any]:
    event = folder / "event.json"
    event.write_text("{}")
    variables = {
        "PATH": os.environ["PATH"],
        "LAMBDA_TASK_ROOT": str(ROOT),
        "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
        "RUNTIME_CLIENT": client,
        "_HANDLER": handler,
    }
    return {
        "handler": handler,
        "variables": variables,
        "event": str(event),
        "folder": str(folder),
        "loads": [{"clients": 1, "requests": 10}, {"clients": 4, "requests": 12}],
    }


@pytest.mark.parametrize("client", ["mayfly", "aws"])
def test_the_function_s_process_is_measured_under_each_runtime_client(
    client: str, tmp_path: Path
) -> None:
    measured = measure(plan_for("benchmarks.children.empty.lambda_handler", client, tmp_path))

    assert measured["answer"]["statusCode"] == 200
    assert [summary["clients"] for summary in measured["loads"]] == [1, 4]
    assert all(summary["cpu_us"] > 0 for summary in measured["loads"])
    assert measured["memory_mb"] > 5


@pytest.mark.parametrize(
    ("handler", "reason"), [("os.getcwd", "error"), ("benchmarks.none.handler", "init/error")]
)
@pytest.mark.parametrize("client", ["mayfly", "aws"])
def test_a_function_that_fails_ends_the_measurement(
    client: str, handler: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=reason):
        measure(plan_for(handler, client, tmp_path))
