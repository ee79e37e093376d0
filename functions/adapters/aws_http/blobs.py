"""Blobs out of the serving bucket: ranges in parallel, straight into the file, hashed while the rest arrives"""

import hashlib
import os
import re
import threading
import time
from pathlib import Path

from functions.adapters.aws_http.client import Client, Patience, Refused, Request
from functions.adapters.aws_http.connection import Broken, Reply
from functions.adapters.aws_http.settings import Settings
from functions.adapters.aws_http.sigv4 import NO_PAYLOAD, encoded
from functions.core.errors import Unavailable
from functions.core.registry.version import Blob

MB = 1024 * 1024
RANGE_BYTES = (
    1 * MB,
    4 * MB,
)  # the least and the most of one request; larger ones leave the hash for the end
BUFFER_BYTES = 256 * 1024  # of a thread, between the socket and the file
CONNECTIONS = 16  # at a time; one gets about 90 MB/s from S3
SLOWEST_BYTES_S = (
    4 * MB
)  # of one connection, after ANSWER_S; a slower one is given up, what it brought is kept
ANSWER_S = 2.0
ATTEMPTS = 4
STACK_BYTES = 1 * MB  # of a thread, instead of the 8 MB that the memory limit would count
_GONE = {"NoSuchBucket", "NoSuchKey", "MethodNotAllowed"}  # the last is a delete marker
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)


class Changed(Exception):
    """When the object was put anew while parts of it were read."""


class BlobReader:
    """`core.serving.Blobs` over a lean client."""

    def __init__(
        self,
        client: Client,
        bucket: str,
        prefix: str = "",
        *,
        range_bytes: tuple[int, int] = RANGE_BYTES,
        connections: int = CONNECTIONS,
    ) -> None:
        """`prefix` comes before the key in a path, e.g. "/bucket" where the host does not name it."""
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._range_bytes = range_bytes
        self._connections = connections

    @classmethod
    def of(cls, settings: Settings, bucket: str) -> "BlobReader":
        endpoint, prefix = settings.bucket(bucket)
        return cls(Client(settings, "s3", endpoint), bucket, prefix)

    def open_ahead(self, connections: int = 1) -> None:
        """Begin to open so many connections, while something else is done."""
        self._client.open_ahead(connections)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._client.close()

    def fetch(self, blob: Blob, path: Path) -> None:
        """Write the blob to `path`, complete and verified or not at all.

        Raises:
            Unavailable: it could not be read, or what came is not what its digest says; try again.
        """
        part = path.with_name(path.name + ".part")
        try:
            try:
                digest = self._download(blob, part)
            except Changed:  # one object again
                digest = self._download(blob, part)
            if digest != blob.sha256:
                raise Unavailable(
                    "a model file arrived corrupted from storage", code="BLOB_CORRUPTED"
                )
            part.replace(path)
        except (Broken, Changed) as error:
            raise Unavailable("storage cannot be reached; try again") from error
        except Refused as error:
            if error.code in _GONE or error.status in (404, 405):
                raise Unavailable(
                    "a model file is missing in storage", code="BLOB_MISSING"
                ) from error
            if error.status == 403 and error.code in ("AccessDenied", "403"):
                raise Unavailable(
                    f"access to the bucket {self._bucket} is denied", code="ACCESS_DENIED"
                ) from error
            if error.is_transient:
                raise Unavailable("storage does not answer; try again") from error
            raise
        finally:
            part.unlink(missing_ok=True)

    def _download(self, blob: Blob, path: Path) -> str:
        """The SHA-256 of what is now in `path`."""
        key = self._prefix + encoded(f"/{blob.key}", safe="/")
        download = _Download(
            self._client, key, path, blob.size_bytes, self._range_bytes_of(blob.size_bytes)
        )
        try:
            download.start(self._connections)
            return download.digest()
        finally:
            download.leave()

    def _range_bytes_of(self, size: int) -> int:
        """Such that every connection has as many ranges to fetch, and none waits for the last of another."""
        least, most = self._range_bytes
        turns = max(1, -(-size // (self._connections * most)))
        return max(least, -(-size // (self._connections * turns)))


class _Download:
    """One object on its way into a file. Threads take its ranges in their order; whoever waits for it hashes them."""

    def __init__(self, client: Client, key: str, path: Path, size: int, range_bytes: int) -> None:
        self._client = client
        self._key = key
        self._size = size
        self._spans = [
            range(at, min(at + range_bytes, size)) for at in range(0, size, range_bytes)
        ] or [range(0)]
        self._waiting = iter(self._spans)  # whose next() is atomic
        self._end = time.monotonic() + ATTEMPTS * ANSWER_S + size / SLOWEST_BYTES_S
        self._condition = threading.Condition()
        self._done: set[range] = set()
        self._error: BaseException | None = None
        self._etag: str | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._users = 1  # of the file; the last one closes it
        if size:
            os.posix_fallocate(self._file, 0, size)

    def start(self, connections: int) -> None:
        """Fetch with so many threads; what is one range, in this one."""
        if len(self._spans) == 1:
            self._work()
            return
        usual = threading.stack_size(STACK_BYTES)
        try:
            for _ in range(min(connections, len(self._spans))):
                self._users += 1
                threading.Thread(target=self._thread, name="fetch", daemon=True).start()
        except RuntimeError:  # no memory for more
            self.leave()
            if self._users == 1:
                self._work()
        finally:
            threading.stack_size(usual)

    def digest(self) -> str:
        """The SHA-256 of all of it, once it is there.

        Raises:
            Broken, Refused, Changed, Unavailable: it did not come.
        """
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(MB, self._size)))
        for span in self._spans:
            with self._condition:
                while span not in self._done and self._error is None:
                    self._condition.wait()
            if self._error is not None:
                raise self._error
            for at in range(span.start, span.stop, MB):
                piece = buffer[: min(MB, span.stop - at)]
                os.preadv(self._file, [piece], at)
                digest.update(piece)
        return digest.hexdigest()

    def leave(self) -> None:
        """Say that the file is not needed any more."""
        with self._condition:
            self._users -= 1
            if not self._users:
                os.close(self._file)

    def _thread(self) -> None:
        try:
            self._work()
        finally:
            self.leave()

    def _work(self) -> None:
        buffer = memoryview(bytearray(min(BUFFER_BYTES, len(self._spans[0]))))
        try:
            while self._error is None and (span := next(self._waiting, None)) is not None:
                self._get(span, buffer)
                with self._condition:
                    self._done.add(span)
                    self._condition.notify_all()
        except BaseException as error:  # whatever it is, it is told to the one who waits
            with self._condition:
                self._error = self._error or error
                self._condition.notify_all()

    def _get(self, span: range, buffer: memoryview) -> None:
        at = span.start

        def prepare() -> Request:
            headers = {}
            if len(self._spans) > 1 or at:
                headers["range"] = f"bytes={at}-{span.stop - 1}"
            if self._etag is not None:
                headers["if-match"] = self._etag
            return Request("GET", self._key, headers, b"", NO_PAYLOAD)

        def take(reply: Reply) -> None:
            nonlocal at
            self._check(reply, at, span.stop)
            while at < span.stop:
                wanted = buffer[: span.stop - at]
                came = 0
                try:
                    while came < len(wanted):
                        came += _some(reply, wanted[came:])
                finally:
                    self._store(wanted[:came], at)
                    at += came
            if reply.length is None:
                reply.read_into(
                    buffer[:1]
                )  # the end of the last chunk, so that the connection can be kept

        patience = Patience(
            attempts=ATTEMPTS,
            attempt_s=ANSWER_S + len(span) / SLOWEST_BYTES_S,
            total_s=self._end - time.monotonic(),
        )
        try:
            self._client.call(prepare, take, patience)
        except Refused as error:
            if error.status == 412:
                raise Changed from error
            if error.status == 416:
                raise Unavailable(f"fewer than {self._size} bytes arrived from storage") from error
            raise

    def _check(self, reply: Reply, at: int, stop: int) -> None:
        """See that `reply` goes on at `at` of the same object, and ends at `stop`; read on to there where it is all."""
        etag = reply.headers.get("etag")
        with self._condition:
            self._etag = self._etag or etag
        if etag != self._etag:
            raise Changed
        if reply.status == 206:
            match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
            if match is None:
                raise Broken("S3 does not say which range it answers")
            first, last, total = map(int, match.groups())
            self._check_size(total)
            if (first, last + 1) != (at, stop) or reply.length not in (stop - at, None):
                raise Broken("S3 answered another range")
        elif reply.status == 200:  # whoever answers knows no ranges
            if reply.length is not None:
                self._check_size(reply.length)
            scratch = memoryview(bytearray(min(at, BUFFER_BYTES)))
            while at:
                at -= _some(reply, scratch[:at])
        else:
            raise Broken(f"S3 answered {reply.status} to a read")

    def _store(self, content: memoryview, at: int) -> None:
        while content:
            count = os.pwrite(self._file, content, at)
            content, at = content[count:], at + count

    def _check_size(self, total: int) -> None:
        if total != self._size:
            raise Unavailable(f"{total} of {self._size} bytes arrived from storage")


def _some(reply: Reply, view: memoryview) -> int:
    count = reply.read_into(view)
    if not count:
        raise Broken("an answer of S3 ended too early")
    return count
