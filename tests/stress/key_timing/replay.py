"""Server on loopback that repeats DynamoDB's replies, each in the same time.

It stands before an emulator, whose own time depends on what it looks up and filters. The first
request about a sort key is forwarded, and its reply is kept; later ones get that reply.
"""

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from urllib.parse import urlsplit

HOST = "127.0.0.1"
SORT_KEY = re.compile(rb"SECRET#[0-9a-f]{64}")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
READ_BYTES = 65536


@contextmanager
def replaying(upstream: str) -> Iterator[str]:
    """Serve one connection at a time in another process; return the address."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        process = get_context("fork").Process(target=_serve, args=(server, upstream), daemon=True)
        process.start()
        try:
            yield f"http://{HOST}:{port}"
        finally:
            process.kill()
            process.join()


def _serve(server: socket.socket, upstream: str) -> None:
    replies: dict[bytes, bytes] = {}
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while request := _read(connection):
                [sort_key] = set(SORT_KEY.findall(request))
                if sort_key not in replies:
                    replies[sort_key] = _forward(upstream, request)
                connection.sendall(replies[sort_key])


def _read(connection: socket.socket) -> bytes:
    """Return the next request whole; nothing once the caller has gone."""
    request = b""
    while chunk := connection.recv(READ_BYTES):
        request += chunk
        head, end, body = request.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if end and length and len(body) >= int(length[1]):
            return request
    return b""


def _forward(upstream: str, request: bytes) -> bytes:
    """Return the emulator's reply to a request, as bytes of HTTP."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    headers = {name.decode(): value.decode() for name, value in lines}
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc)
    connection.request("POST", "/", body, headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    kept = [(name, value) for name, value in reply.getheaders() if name.lower().startswith("x-amz")]
    fields = "".join(f"{name}: {value}\r\n" for name, value in kept)
    start = f"HTTP/1.1 {reply.status} OK\r\n{fields}content-length: {len(content)}\r\n\r\n"
    return start.encode() + content
