"""The instruments of benchmarks/peers.py: the load generator, the kernel's counts, the function's process."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.children.function import measure
from benchmarks.children.load import Connection, load
from benchmarks.harness.usage import cpu_seconds, memory_mb


class Echo(BaseHTTPRequestHandler):
    """Answers with what came; /refuse does not, /close hangs up after each answer."""

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
def test_a_connection_is_kept_where_the_server_keeps_it(
    port: int, path: str, connections: int
) -> None:
    connection, body = Connection(port, path, b"x" * 100_000), b"x" * 100_000

    assert [connection.ask() for _ in range(3)] == [(200, body)] * 3
    connection.close()
    assert Echo.connections == connections


def test_a_load_counts_every_request_but_the_warm_up(port: int) -> None:
    found = load(port, "/", b"{}", os.getpid(), clients=4, requests=40)

    assert found["clients"] == 4
    assert Echo.connections == 4
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["cpu_us"] > 0


def test_an_answer_that_is_no_200_ends_the_load(port: int) -> None:
    with pytest.raises(RuntimeError, match="503"):
        load(port, "/refuse", b"{}", os.getpid(), clients=1, requests=10)


def test_cpu_time_and_memory_are_those_of_the_whole_family() -> None:
    grandchild = "x = b'x' * 60_000_000\nfor _ in range(3_000_000): pass\nprint(flush=True)\nimport time\ntime.sleep(60)"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert memory_mb(process.pid) > 60
            assert cpu_seconds(process.pid) > 0.03
        finally:
            os.killpg(process.pid, 9)
    assert cpu_seconds(process.pid) == memory_mb(process.pid) == 0


def test_cpu_time_is_that_of_the_process_and_not_of_the_clock() -> None:
    before, spent = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - spent < 0.05:
        pass
    time.sleep(0.05)

    assert cpu_seconds(os.getpid()) - before == pytest.approx(time.process_time() - spent, abs=0.02)


def test_the_functions_process_is_measured_under_awss_runtime_client(tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text("{}")
    plan = {
        "handler": "benchmarks.children.empty.lambda_handler",
        "registry_url": "http://127.0.0.1:1",
        "storage_url": "http://127.0.0.1:1",
        "event": str(event),
        "folder": str(tmp_path),
        "loads": [{"clients": 1, "requests": 10}, {"clients": 4, "requests": 12}],
    }

    found = asyncio.run(measure(plan))

    assert found["answer"]["statusCode"] == 200
    assert [one["clients"] for one in found["loads"]] == [1, 4]
    assert all(one["cpu_us"] > 0 for one in found["loads"])
    assert found["memory_mb"] > 5
