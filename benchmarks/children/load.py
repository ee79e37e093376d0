"""Load generator: one HTTP request repeated by several clients.

    load.py PLAN

PLAN is JSON: {"port", "path", "body": file, "pid": server's process, "loads": [{"clients",
"requests"}, …]}. Each client is a thread with its own connection, which stays open if the server
keeps it. A tenth of the requests come first as a warm-up and are not counted. Prints a list with
the `summary` of each load.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.usage import cpu_seconds

HOST = "127.0.0.1"
LIMIT_S = 30.0


class Connection:
    """HTTP connection that sends one fixed request again and again.

    Of a reply it parses the status and the length only.
    """

    def __init__(self, port: int, path: str, body: bytes | None) -> None:
        """Prepare the request: POST of JSON or, without body, GET."""
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = f"{head}\r\n".encode() + (body or b"")
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self) -> tuple[int, bytes]:
        """Send the HTTP request; return status and body of the reply.

        Raises:
            OSError: nobody listens, or the connection broke.
            ValueError: the reply does not state its length.
        """
        if self._socket is None:
            self._socket = socket.create_connection((HOST, self._port), LIMIT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(self._request)
            head, body, length = self._receive(self._socket)
        except BaseException:
            self.close()
            raise
        if b"\nconnection: close" in head or head.startswith(b"http/1.0"):
            self.close()
        return int(head[9:12]), body[:length]

    def close(self) -> None:
        """Close the HTTP connection; the next request opens a new connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _receive(connection: socket.socket) -> tuple[bytes, bytes, int]:
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _receive_some(connection)
        head, body = received[:end].lower(), received[end + 4 :]
        _, header, rest = head.partition(b"\ncontent-length:")
        if not header:
            raise ValueError(f"an answer without a length: {head[:200]!r}")
        length = int(rest.partition(b"\r")[0])
        while len(body) < length:
            body += _receive_some(connection)
        return head, body, length


def _receive_some(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionResetError("the server hung up")
    return chunk


def summary(
    clients: int, durations_s: Sequence[float], seconds: float, cpu_s: float
) -> dict[str, float]:
    """Summarize a load: latency, requests per second, CPU time per request.

    `durations_s` are those of the requests, in any order; `seconds` and `cpu_s` are of the load.

    >>> summary(8, [0.001] * 98 + [0.002, 0.003], 0.1, 0.05)
    {'clients': 8, 'p50_ms': 1.0, 'p99_ms': 2.0, 'rps': 1000.0, 'cpu_us': 500.0}
    """
    ordered = sorted(durations_s)
    count = len(ordered)
    return {
        "clients": clients,
        "p50_ms": round(ordered[(count - 1) // 2] * 1000, 3),
        "p99_ms": round(ordered[(count * 99 - 1) // 100] * 1000, 3),
        "rps": round(count / seconds, 1),
        "cpu_us": round(cpu_s / count * 1e6, 1),
    }


def load(
    port: int, path: str, body: bytes, pid: int, clients: int, requests: int
) -> dict[str, float]:
    """Send HTTP requests from `clients` threads; return latency and CPU summary.

    Raises:
        RuntimeError: a reply's status was not 200, or a client had no reply.
    """
    each = max(1, requests // clients)
    connections = [Connection(port, path, body) for _ in range(clients)]
    try:
        _run(connections, max(1, each // 10))
        cpu_before, started = cpu_seconds(pid), time.perf_counter()
        durations_s = _run(connections, each)
        seconds, cpu_after = time.perf_counter() - started, cpu_seconds(pid)
    finally:
        for connection in connections:
            connection.close()
    return summary(clients, durations_s, seconds, cpu_after - cpu_before)


def _run(connections: Sequence[Connection], each: int) -> list[float]:
    durations_s: list[float] = []
    failures: list[str] = []

    def client(connection: Connection) -> None:
        try:
            for _ in range(each):
                started = time.perf_counter()
                status, body = connection.ask()
                durations_s.append(time.perf_counter() - started)
                if status != 200:
                    raise ValueError(f"{status} {body[:200]!r}")
        except (OSError, ValueError) as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=client, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(connections)} clients failed: {failures[0]}")
    return durations_s


def main() -> None:
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = plan["port"], plan["path"], Path(plan["body"]).read_bytes(), plan["pid"]
    summaries = [load(*target, each["clients"], each["requests"]) for each in plan["loads"]]
    print(json.dumps(summaries), flush=True)


if __name__ == "__main__":
    main()
