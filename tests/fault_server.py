"""HTTP server on loopback whose replies a test writes byte by byte.

It checks the signature of every request against botocore's.
"""

import datetime
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO
from unittest import mock

import botocore.auth
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SECRET = "secret"
AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=(\S+), .*"
)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """Request as it arrived, with its number and that of its connection (from 1)."""

    number: int
    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def range(self) -> range | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return range(int(match[1]), int(match[2]) + 1) if match else None


class ServerConnection:
    """Server's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.open = True

    def send(self, content: bytes) -> None:
        self._connection.sendall(content)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a complete response; the header argument `content_type` means content-type."""
        fields = {
            "content-length": str(len(body)),
            **{n.replace("_", "-"): v for n, v in headers.items()},
        }
        self.send(head(status, fields) + body)

    def hang_up(self) -> None:
        self.open = False

    def reset(self) -> None:
        """Close the connection so that the client sees a reset."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open = False


Behaviour = Callable[[ReceivedRequest, ServerConnection], None]


def head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} As Planned",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "\r\n"]).encode()


class FaultServer:
    """Server that runs `behave` for each request, with a thread for each connection.

    `errors` collects the exceptions of these threads.
    """

    def __init__(self, behave: Behaviour, context: ssl.SSLContext | None = None) -> None:
        self.behave = behave
        self.seen: list[ReceivedRequest] = []
        self.errors: list[BaseException] = []
        self.connections = 0
        self.signed = True  # requests must be signed
        self._context = context
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self.connections += 1
            threading.Thread(
                target=self._serve, args=(connection, self.connections), daemon=True
            ).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                self._talk(connection, stream, number)

    def _talk(self, connection: socket.socket, stream: BinaryIO, number: int) -> None:
        line = ServerConnection(connection)
        while line.open and (first := stream.readline()):
            words = first.decode("latin-1").split(" ")
            if len(words) != 3 or not words[2].startswith("HTTP/1.1"):  # perhaps a TLS handshake
                return
            method, path, _ = words
            headers = {}
            while (header := stream.readline().decode("latin-1").strip()) != "":
                name, _, value = header.partition(": ")
                headers[name.lower()] = value
            body = stream.read(int(headers.get("content-length", 0)))
            with self._lock:
                seen = ReceivedRequest(len(self.seen) + 1, number, method, path, headers, body)
                self.seen.append(seen)
            try:
                if self.signed:
                    check_signature(seen)
                self.behave(seen, line)
            except OSError:
                raise
            except BaseException as error:
                self.errors.append(error)
                return


@contextmanager
def fault_server(behave: Behaviour, context: ssl.SSLContext | None = None) -> Iterator[FaultServer]:
    """Run a FaultServer within the block, and raise its first error at the end."""
    server = FaultServer(behave, context=context)
    try:
        yield server
    finally:
        server.close()
    for error in server.errors:
        raise error


def check_signature(seen: ReceivedRequest) -> None:
    """Sign the request again with botocore and compare."""
    match = AUTHORIZATION.fullmatch(seen.headers["authorization"])
    assert match, seen.headers["authorization"]
    key, region, service, names = match.groups()
    signed = {name: seen.headers[name] for name in names.split(";")}
    moment = datetime.datetime.strptime(signed.pop("x-amz-date"), "%Y%m%dT%H%M%SZ")
    token = signed.pop("x-amz-security-token", None)
    url = f"http://{signed.pop('host')}{seen.path}"
    request = AWSRequest(seen.method, url, headers=signed, data=seen.body)
    auth = S3SigV4Auth if service == "s3" else SigV4Auth
    with mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment):
        auth(Credentials(key, SECRET, token), service, region).add_auth(request)
    assert request.headers["Authorization"] == seen.headers["authorization"]


class StoredObject:
    """Behaviour of S3 for one object, with `faults` for some requests (numbered from 1)."""

    def __init__(
        self, content: bytes, faults: Mapping[int, Behaviour] | None = None, etag: str = '"1"'
    ) -> None:
        self.content = content
        self.faults = dict(faults or {})
        self.etag = etag

    def __call__(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        if fault := self.faults.get(seen.number):
            fault(seen, line)
        else:
            self.answer(seen, line)

    def answer(self, seen: ReceivedRequest, line: ServerConnection) -> None:
        part = self.requested_range(seen)
        line.send(self.head(seen) + self.content[part.start : part.stop])

    def requested_range(self, seen: ReceivedRequest) -> range:
        return range(len(self.content)) if seen.range is None else seen.range

    def head(self, seen: ReceivedRequest, **changes: str) -> bytes:
        part = self.requested_range(seen)
        fields = {"etag": self.etag, "content-length": str(len(part))}
        if seen.range is not None:
            fields["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(self.content)}"
        fields |= {name.replace("_", "-"): value for name, value in changes.items()}
        return head(
            200 if seen.range is None else 206,
            {name: value for name, value in fields.items() if value},
        )
