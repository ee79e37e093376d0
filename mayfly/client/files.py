"""PUT of a file to a signed URL."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from mayfly.client.errors import Disconnected, ServerError, Unavailable
from mayfly.client.http1 import address, requests
from mayfly.client.http1.messages import Reply, error_of
from mayfly.client.package import PIECE_BYTES, PackageFile

ATTEMPTS = 3  # a PUT to one key is safe to repeat
SILENCE_S = 60.0

Progress = Callable[[int, int], None]  # bytes sent, bytes in all


def silent(_sent: int, _size: int) -> None:
    """Report no progress."""


def put_file(url: str, headers: Mapping[str, str], file: PackageFile, progress: Progress) -> None:
    """Send a file to a signed URL.

    Raises:
        Disconnected: the connection failed three times.
        MayflyError: the storage refused the file.
    """
    for attempt in range(ATTEMPTS):
        try:
            status, body = _put(url, headers, file, progress)
        except (OSError, http.client.HTTPException) as error:
            if attempt + 1 == ATTEMPTS:
                raise Disconnected(f"{file.name} could not be sent: {error}", sent=True) from error
            continue
        # The URL works once: after a reply that was lost, it says that the object exists.
        if status < 300 or (status == 412 and attempt):
            return
        if status < 500 or attempt + 1 == ATTEMPTS:
            raise _refusal(file.name, status, body)


def _put(
    url: str, headers: Mapping[str, str], file: PackageFile, progress: Progress
) -> tuple[int, bytes]:
    parts = urlsplit(url)
    base = address.parse(f"{parts.scheme}://{parts.netloc}")
    connection = _connection(base)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    if requests.find_proxy(base) and base.scheme == "http":
        target = f"{base}{target}"
    size = file.size_bytes
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        connection.request(
            "PUT", target, _pieces(file, size, progress), {**sent, "content-length": str(size)}
        )
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _connection(base: address.Address) -> http.client.HTTPConnection:
    proxy = requests.find_proxy(base)
    host, port = (proxy.host, proxy.port) if proxy else (base.host, base.port)
    if base.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=SILENCE_S)
    context = requests.tls_context()
    connection = http.client.HTTPSConnection(host, port, timeout=SILENCE_S, context=context)
    if proxy:
        name, _, value = proxy.authorization.strip().partition(": ")
        connection.set_tunnel(base.host, base.port, {name: value} if value else None)
    return connection


def _pieces(file: PackageFile, size: int, progress: Progress) -> Iterator[bytes]:
    sent = 0
    with file.open() as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece
            sent += len(piece)
            progress(sent, size)


def _refusal(name: str, status: int, body: bytes) -> Exception:
    """Return the error for a refusal of S3, whose body is XML."""
    text = body.decode(errors="replace")
    message = text.partition("<Message>")[2].partition("</Message>")[0]
    code = text.partition("<Code>")[2].partition("</Code>")[0]
    if not message:
        return error_of(Reply(status, {}, body))
    kind = Unavailable if status >= 500 else ServerError
    return kind(f"{name} was refused by the storage: {message}", status=status, code=code)
