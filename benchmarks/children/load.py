"""A lean load generator: one request over and over, from as many clients as asked. `load.py PLAN`

PLAN is JSON: {"port", "path", "body": file, "pid": of the server, "loads": [{"clients", "requests"}, …]}. Each client
is a thread with a connection that stays open if the server lets it; a tenth of the requests, before the others, does
not count. Prints one `summary` a load.
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
    """One client of an HTTP server: the same request each time, nothing but the status and the length read."""

    def __init__(self, port: int, path: str, body: bytes | None) -> None:
        """POST of JSON, or, without a body, GET."""
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = f"{head}\r\n".encode() + (body or b"")
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self) -> tuple[int, bytes]:
        """(status, body) of one answer.

        Raises:
            OSError: nobody listens, or the connection broke.
            ValueError: the answer does not say how long it is.
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
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _receive(connection: socket.socket) -> tuple[bytes, bytes, int]:
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _some(connection)
        head, body = received[:end].lower(), received[end + 4 :]
        _, found, after = head.partition(b"\ncontent-length:")
        if not found:
            raise ValueError(f"an answer without a length: {head[:200]!r}")
        length = int(after.partition(b"\r")[0])
        while len(body) < length:
            body += _some(connection)
        return head, body, length


def _some(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionResetError("the server hung up")
    return chunk


def summary(clients: int, taken: Sequence[float], seconds: float, cpu_s: float) -> dict[str, float]:
    """What one load came to; `taken` are the seconds of each request, in any order.

    >>> summary(8, [0.001] * 98 + [0.002, 0.003], 0.1, 0.05)
    {'clients': 8, 'p50_ms': 1.0, 'p99_ms': 2.0, 'rps': 1000.0, 'cpu_us': 500.0}
    """
    ordered = sorted(taken)
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
    """Raises:
    RuntimeError: an answer was no 200, or none came.
    """
    each = max(1, requests // clients)
    connections = [Connection(port, path, body) for _ in range(clients)]
    try:
        _run(connections, max(1, each // 10))
        before, began = cpu_seconds(pid), time.perf_counter()
        taken = _run(connections, each)
        seconds, after = time.perf_counter() - began, cpu_seconds(pid)
    finally:
        for connection in connections:
            connection.close()
    return summary(clients, taken, seconds, after - before)


def _run(connections: Sequence[Connection], each: int) -> list[float]:
    taken: list[float] = []
    failures: list[str] = []

    def client(connection: Connection) -> None:
        try:
            for _ in range(each):
                began = time.perf_counter()
                status, body = connection.ask()
                taken.append(time.perf_counter() - began)
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
    return taken


def main() -> None:
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = plan["port"], plan["path"], Path(plan["body"]).read_bytes(), plan["pid"]
    print(
        json.dumps([load(*target, one["clients"], one["requests"]) for one in plan["loads"]]),
        flush=True,
    )


if __name__ == "__main__":
    main()
