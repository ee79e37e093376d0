"""A server that reads like S3: HEAD and GET with ranges, a delay to the first byte, a pace for each connection.

    python -m benchmarks.harness.storage FOLDER [--first-byte-ms 15] [--mb-per-second 90]

Objects are FOLDER/<bucket>/<key>. Prints {"port": …} once it listens. The sum of all connections has no limit, and
there is no TLS; signatures are not looked at. 0 switches the delay or the pace off.
"""

import argparse
import email.utils
import json
import os
import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
CHUNK = 256 * 1024  # 3 ms at 90 MB/s
NOT_FOUND = (
    b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
)


def byte_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks of an object of `size`; None if it holds none of them.

    >>> byte_range("bytes=2-3", 10), byte_range("bytes=8-99", 10), byte_range("bytes=-2", 10), byte_range(None, 10)
    (range(2, 4), range(8, 10), range(8, 10), range(0, 10))
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return range(size)
    first, last = match.groups()
    if not first:
        found = range(max(0, size - int(last)), size)
    else:
        found = range(int(first), min(int(last) + 1, size) if last else size)
    return found or None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    first_byte_s: float
    bytes_per_second: float

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        time.sleep(self.first_byte_s)
        path = (self.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            self._head(HTTPStatus.NOT_FOUND, len(NOT_FOUND), {"content-type": "application/xml"})
            if body:
                self.wfile.write(NOT_FOUND)
            return
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            wanted = byte_range(self.headers["range"], status.st_size)
            headers = {
                "etag": f'"{status.st_ino:032x}"',
                "accept-ranges": "bytes",
                "content-type": "binary/octet-stream",
                "last-modified": email.utils.formatdate(status.st_mtime, usegmt=True),
            }
            if wanted is None:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, headers)
            elif self.headers["range"]:
                headers["content-range"] = (
                    f"bytes {wanted.start}-{wanted.stop - 1}/{status.st_size}"
                )
                self._head(HTTPStatus.PARTIAL_CONTENT, len(wanted), headers)
            else:
                self._head(HTTPStatus.OK, len(wanted), headers)
            if body and wanted:
                self._send(file.fileno(), wanted)

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            headers | {"content-length": str(length), "x-amz-request-id": "LOCAL"}
        ).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, file: int, wanted: range) -> None:
        """No byte leaves before its time."""
        self.wfile.flush()
        began = time.perf_counter()
        sent = 0
        while sent < len(wanted):
            size = min(CHUNK, len(wanted) - sent)
            if self.bytes_per_second:
                early = (sent + size) / self.bytes_per_second - (time.perf_counter() - began)
                time.sleep(max(0.0, early))
            count = os.sendfile(self.connection.fileno(), file, wanted.start + sent, size)
            if not count:
                raise ConnectionError("the object became shorter while it was sent")
            sent += count


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:  # a client that hung up
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harness.storage", description="Files, read like S3 objects."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-byte-ms", type=float, default=15.0)
    parser.add_argument(
        "--mb-per-second",
        type=float,
        default=90.0,
        help="of one connection; 1 MB is 1,000,000 bytes",
    )
    arguments = parser.parse_args()
    Handler.folder = arguments.folder.resolve()
    Handler.first_byte_s = arguments.first_byte_ms / 1000
    Handler.bytes_per_second = arguments.mb_per_second * 1e6
    server = Server((HOST, 0), Handler)
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
