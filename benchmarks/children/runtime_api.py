"""Lambda Runtime API of one process, on a blocking socket.

It is as lean as the clients of load.py. A larger server would evict the function's code from the
processor's caches between two requests, which no peer's client does.
"""

import contextlib
import socket
import time

HOST = "127.0.0.1"
LIMIT_S = 30.0
HEAD = """\
HTTP/1.1 200 OK\r
Content-Type: application/json\r
Content-Length: {length}\r
Lambda-Runtime-Aws-Request-Id: c6af9ac6-7b61-11e6-9a41-93e8deadbeef\r
Lambda-Runtime-Deadline-Ms: {deadline_ms}\r
Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:123456789012:function:measured\r
Lambda-Runtime-Trace-Id: Root=1-0-0;Sampled=0\r
\r
"""
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"


class RuntimeApi:
    """Runtime API that gives a function's process one event at a time."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self._server.settimeout(LIMIT_S)
        self.address = f"{HOST}:{self._server.getsockname()[1]}"
        self._connection: socket.socket | None = None
        self._is_asked = False

    def close(self) -> None:
        """Close the server and its connection."""
        self._disconnect()
        self._server.close()

    def invoke(self, event: bytes) -> bytes:
        """Give the process an event; return its reply.

        Raises:
            RuntimeError: it posted an error.
            OSError: it broke the connection, or said nothing in time.
        """
        self.wait()
        self._is_asked = False
        deadline_ms = round((time.time() + LIMIT_S) * 1000)
        head = HEAD.format(length=len(event), deadline_ms=deadline_ms)
        self._connect().sendall(head.encode() + event)
        path, reply = self._receive()
        if not path.endswith("/response"):
            raise RuntimeError(f"{path}: {reply[:300]!r}")
        self._connect().sendall(ACCEPTED)
        return reply

    def wait(self) -> None:
        """Wait until the process asks for an event, its last one done.

        Raises:
            RuntimeError, OSError: as `invoke`.
        """
        if not self._is_asked:
            path, body = self._receive()
            if not path.endswith("/next"):
                raise RuntimeError(f"{path}: {body[:300]!r}")
            self._is_asked = True

    def _connect(self) -> socket.socket:
        if self._connection is None:
            self._connection, _ = self._server.accept()
            self._connection.settimeout(LIMIT_S)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _receive(self) -> tuple[str, bytes]:
        """Return path and body of the process's next request."""
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive_some()
        head, body = received[:end].decode().lower(), received[end + 4 :]
        _, path, _ = head.split(" ", 2)
        _, _, rest = head.partition("\ncontent-length:")
        length = int(rest.partition("\r")[0] or 0)
        while len(body) < length:
            body += self._receive_some()
        return path, body

    def _receive_some(self) -> bytes:
        while not (chunk := self._connect().recv(65536)):
            self._disconnect()  # the process opens another connection
        return chunk
