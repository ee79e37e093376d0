"""S3-like HTTP server of local files, with delay and rate limit.

    python -m benchmarks.harness.storage FOLDER [--first-byte-ms 15] [--mb-per-second 90]

It answers HEAD and GET, with ranges, for the objects FOLDER/<bucket>/<key>, and prints
{"port": …} once it listens. The rate limits each connection; their sum has no limit. There is no
TLS, and signatures are not checked. 0 switches the delay or the limit off.
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
CHUNK = 256 * 1024  # bytes of one write: 3 ms at 90 MB/s
NOT_FOUND = (
    b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
)


def byte_range(header: str | None, size: int) -> range | None:
    """Parse an HTTP Range header; return None if it selects no byte.

    An absent or malformed header selects the whole object.

    >>> byte_range("bytes=2-3", 10), byte_range("bytes=8-99", 10)
    (range(2, 4), range(8, 10))
    >>> byte_range("bytes=-2", 10), byte_range(None, 10)
    (range(8, 10), range(0, 10))
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return range(size)
    first, last = match.groups()
    if not first:
        selected = range(max(0, size - int(last)), size)
    else:
        selected = range(int(first), min(int(last) + 1, size) if last else size)
    return selected or None


class Handler(BaseHTTPRequestHandler):
    """HTTP request handler of HEAD and GET for files, with pacing.

    `main` sets its folder, delay and rate.
    """

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
            selected = byte_range(self.headers["range"], status.st_size)
            headers = {
                "etag": f'"{status.st_ino:032x}"',
                "accept-ranges": "bytes",
                "content-type": "binary/octet-stream",
                "last-modified": email.utils.formatdate(status.st_mtime, usegmt=True),
            }
            if selected is None:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, headers)
            elif self.headers["range"]:
                span = f"{selected.start}-{selected.stop - 1}"
                headers["content-range"] = f"bytes {span}/{status.st_size}"
                self._head(HTTPStatus.PARTIAL_CONTENT, len(selected), headers)
            else:
                self._head(HTTPStatus.OK, len(selected), headers)
            if body and selected:
                self._send(file.fileno(), selected)

    def _head(self, status: HTTPStatus, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        headers = headers | {"content-length": str(length), "x-amz-request-id": "LOCAL"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, file: int, selected: range) -> None:
        """Send a byte range of a file at the configured rate.

        No byte leaves earlier than the rate allows.
        """
        self.wfile.flush()
        began = time.perf_counter()
        sent = 0
        while sent < len(selected):
            size = min(CHUNK, len(selected) - sent)
            if self.bytes_per_second:
                early = (sent + size) / self.bytes_per_second - (time.perf_counter() - began)
                time.sleep(max(0.0, early))
            count = os.sendfile(self.connection.fileno(), file, selected.start + sent, size)
            if not count:
                raise ConnectionError("the object became shorter while it was sent")
            sent += count


class Server(ThreadingHTTPServer):
    """Threaded HTTP server that ignores clients that hang up."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harness.storage", description="Serve files as S3 objects."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-byte-ms", type=float, default=15.0)
    rate_help = "of one connection; 1 MB is 1,000,000 bytes"
    parser.add_argument("--mb-per-second", type=float, default=90.0, help=rate_help)
    arguments = parser.parse_args()
    Handler.folder = arguments.folder.resolve()
    Handler.first_byte_s = arguments.first_byte_ms / 1000
    Handler.bytes_per_second = arguments.mb_per_second * 1e6
    server = Server((HOST, 0), Handler)
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
