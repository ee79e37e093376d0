"""Parallel download of model files from S3, verified by their digests."""

import hashlib
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from functions.adapters.aws_errors import ErrorKind
from functions.adapters.aws_http.client import Client, Request, RetryPolicy, ServiceError
from functions.adapters.aws_http.connection import BrokenConnection, Reply
from functions.adapters.aws_http.settings import Settings
from functions.adapters.aws_http.sigv4 import NO_PAYLOAD
from functions.core.errors import Unavailable
from functions.core.registry.version import Blob
from functions.core.threads import start_thread

if TYPE_CHECKING:
    from blake3 import blake3

MB = 1024 * 1024
# Bytes of the smallest and largest range request; larger ones would delay hashing to the end
RANGE_BYTES = (1 * MB, 4 * MB)
BUFFER_BYTES = 256 * 1024  # buffer between socket and file, for each thread
CONNECTIONS = 16  # one connection gets about 90 MB/s from S3
SLOWEST_BYTES_S = 4 * MB  # a slower connection is dropped; the bytes it brought are kept
ANSWER_S = 2.0  # s to wait for the first byte, before SLOWEST_BYTES_S applies
ATTEMPTS = 4
STACK_BYTES = 1 * MB  # stack of each thread; the default 8 MB would count towards the memory limit
_UNAVAILABLE = {
    ErrorKind.GONE: ("a model file is missing in storage", "BLOB_MISSING"),
    ErrorKind.DENIED: ("access to storage is denied", "ACCESS_DENIED"),
    ErrorKind.TRANSIENT: ("storage does not answer; try again", None),
}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.ASCII)


class ObjectChanged(Exception):
    """Error: the S3 object was overwritten during its download."""


class BlobReader:
    """Reader that downloads model files from an S3 bucket."""

    def __init__(
        self,
        client: Client,
        prefix: str = "",
        *,
        owner: str | None = None,
        range_bytes: tuple[int, int] = RANGE_BYTES,
        connections: int = CONNECTIONS,
    ) -> None:
        """Create a reader of the files in an S3 bucket.

        `prefix` precedes the keys in a path, e.g. "/bucket" if the host does not name it. `owner`
        is the account that the bucket must belong to.
        """
        self._client = client
        self._prefix = prefix
        self._headers = {"x-amz-expected-bucket-owner": owner} if owner else {}
        self._range_bytes = range_bytes
        self._connections = connections

    @classmethod
    def from_settings(
        cls, settings: Settings, bucket: str, owner: str | None = None
    ) -> "BlobReader":
        """Create a reader of an S3 bucket with a new HTTP client."""
        endpoint, prefix = settings.bucket(bucket)
        return cls(Client(settings, "s3", endpoint), prefix, owner=owner)

    def preconnect(self, connections: int = 1) -> None:
        """Start to open connections to S3 in background threads."""
        self._client.preconnect(connections)

    def close(self) -> None:
        """Close the idle connections to S3."""
        self._client.close()

    def fetch(self, blob: Blob, path: Path) -> None:
        """Download a model file to `path`, verified by its digests.

        They are those of its ranges, or else its SHA-256. `path` appears complete or not at all.

        Raises:
            Unavailable: it could not be read, or a digest is wrong; try again.
        """
        part = path.with_name(path.name + ".part")
        try:
            self._download_twice(blob, part)
            part.replace(path)
        except (BrokenConnection, ObjectChanged) as error:
            raise Unavailable("storage cannot be reached; try again") from error
        except ServiceError as error:
            if error.kind not in _UNAVAILABLE:
                raise
            message, code = _UNAVAILABLE[error.kind]
            raise Unavailable(message, code=code) from error
        finally:
            part.unlink(missing_ok=True)

    def _download_twice(self, blob: Blob, path: Path) -> None:
        """Download a blob, twice if overwritten meanwhile."""
        try:
            self._download(blob, path)
        except ObjectChanged:
            self._download(blob, path)

    def _download(self, blob: Blob, path: Path) -> None:
        whole = Request("GET", f"{self._prefix}/{blob.key}", self._headers, b"", NO_PAYLOAD)
        range_bytes = blob.range_bytes or self._range_size(blob.size_bytes)
        download = _Download(self._client, whole, path, blob, range_bytes)
        try:
            download.start(self._connections)
            download.verify()
        finally:
            download.release()

    def _range_size(self, size: int) -> int:
        """Return the bytes of each range of a blob without range digests.

        All connections get equal work.
        """
        smallest, largest = self._range_bytes
        rounds = max(1, -(-size // (self._connections * largest)))
        return max(smallest, -(-size // (self._connections * rounds)))


class _Download:
    """Download of one S3 object in byte ranges, by several threads.

    They take the ranges in order. Each verifies its own by their digests; without these, the
    thread that waits in verify() hashes all ranges.
    """

    def __init__(
        self, client: Client, whole: Request, path: Path, blob: Blob, range_bytes: int
    ) -> None:
        """Open the file; `whole` requests all bytes of the blob."""
        self.whole = whole
        self.blob = blob
        self._client = client
        size = blob.size_bytes
        starts = range(0, size, range_bytes)
        self._ranges = [range(at, min(at + range_bytes, size)) for at in starts] or [range(0)]
        self._waiting = iter(self._ranges)  # next() is atomic
        self._end = time.monotonic() + ATTEMPTS * ANSWER_S + size / SLOWEST_BYTES_S
        self._condition = threading.Condition()
        self._done: set[range] = set()
        self._error: BaseException | None = None
        self.etag: str | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._users = 1  # threads that use the file; the last one closes it
        if size:
            os.posix_fallocate(self._file, 0, size)

    def start(self, connections: int) -> None:
        """Start up to `connections` download threads; a single range needs none."""
        if len(self._ranges) == 1:
            self._work()
            return
        try:
            for _ in range(min(connections, len(self._ranges))):
                self._users += 1
                thread = threading.Thread(target=self._run_thread, name="fetch", daemon=True)
                start_thread(thread, STACK_BYTES)
        except RuntimeError:  # no memory for another thread
            self.release()
            if self._users == 1:
                self._work()

    def verify(self) -> None:
        """Wait for the download and check its digests.

        Raises:
            BrokenConnection, ServiceError, ObjectChanged: the download failed.
            Unavailable: too few bytes arrived, or corrupted ones.
        """
        if self.blob.range_digests:
            import_blake3()  # while the threads wait for their first byte
            for span in self._ranges:
                self._wait_for(span)
        elif self._sha256() != self.blob.sha256:
            raise _corrupted()

    def _sha256(self) -> str:
        """Return the SHA-256 of the whole file, hashed while ranges still arrive."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(MB, self.blob.size_bytes)))
        for span in self._ranges:
            self._wait_for(span)
            for at in range(span.start, span.stop, MB):
                piece = buffer[: min(MB, span.stop - at)]
                os.preadv(self._file, [piece], at)
                digest.update(piece)
        return digest.hexdigest()

    def release(self) -> None:
        """Release the file for one thread; close it after the last."""
        with self._condition:
            self._users -= 1
            if not self._users:
                os.close(self._file)

    def _wait_for(self, span: range) -> None:
        with self._condition:
            while span not in self._done and self._error is None:
                self._condition.wait()
        if self._error is not None:
            raise self._error

    def _run_thread(self) -> None:
        try:
            self._work()
        finally:
            self.release()

    def _work(self) -> None:
        """Download byte ranges until none is left or a thread failed."""
        buffer = memoryview(bytearray(min(BUFFER_BYTES, len(self._ranges[0]))))
        try:
            while self._error is None and (span := next(self._waiting, None)) is not None:
                self._fetch(_Range(self, span, buffer))
                with self._condition:
                    self._done.add(span)
                    self._condition.notify_all()
        except BaseException as error:  # raised again in the thread that waits in verify()
            with self._condition:
                self._error = self._error or error
                self._condition.notify_all()

    def _fetch(self, part: "_Range") -> None:
        """Download one byte range; each retry requests only its missing rest."""
        policy = RetryPolicy(
            attempts=ATTEMPTS,
            attempt_s=ANSWER_S + len(part.span) / SLOWEST_BYTES_S,
            total_s=self._end - time.monotonic(),
        )
        try:
            self._client.call(part.request, part.read, policy)
        except ServiceError as error:
            if error.status == 412:
                raise ObjectChanged from error
            if error.status == 416:
                size = self.blob.size_bytes
                raise Unavailable(f"fewer than {size} bytes arrived from storage") from error
            raise
        part.check_digest()

    @property
    def is_whole(self) -> bool:
        """True if one range has all bytes of the object."""
        return len(self._ranges) == 1

    def check_etag(self, etag: str | None) -> None:
        """Raise ObjectChanged if a range belongs to another S3 object version."""
        with self._condition:
            self.etag = self.etag or etag
        if etag != self.etag:
            raise ObjectChanged

    def check_size(self, size: int) -> None:
        """Check the size of the object in S3."""
        if size != self.blob.size_bytes:
            raise Unavailable(f"{size} of {self.blob.size_bytes} bytes arrived from storage")

    def write(self, content: memoryview, at: int) -> None:
        """Write bytes to the file at an offset."""
        while content:
            count = os.pwrite(self._file, content, at)
            content, at = content[count:], at + count


class _Range:
    """Byte range of a download: its progress and its digest."""

    def __init__(self, download: _Download, span: range, buffer: memoryview) -> None:
        self.span = span
        self._download = download
        self._buffer = buffer
        self._at = span.start  # bytes before it have arrived
        self._digest: blake3 | None = None

    def request(self) -> Request:
        """Return the GetObject request for the missing rest of the range."""
        whole = self._download.whole
        headers = dict(whole.headers)
        if self._at or not self._download.is_whole:
            headers["range"] = f"bytes={self._at}-{self.span.stop - 1}"
        if self._download.etag is not None:
            headers["if-match"] = self._download.etag
        return Request(whole.method, whole.path, headers, whole.body, whole.payload_hash)

    def read(self, reply: Reply) -> None:
        """Write the reply's bytes to the file, and hash them."""
        self._check_reply(reply)
        if self._digest is None and self._download.blob.range_digests:
            self._digest = import_blake3()()
        while self._at < self.span.stop:
            piece = self._buffer[: self.span.stop - self._at]
            count = 0
            try:
                while count < len(piece):
                    count += _read_some(reply, piece[count:])
            finally:
                self._keep(piece[:count])
        if reply.length is None:  # read to the last chunk's end, to reuse the connection
            reply.read_into(self._buffer[:1])

    def check_digest(self) -> None:
        """Compare the range's digest with the recorded one.

        Raises:
            Unavailable: it differs.
        """
        blob = self._download.blob
        if not blob.range_digests:
            return
        if self._digest is None or self._digest.digest() != blob.range_digest(self.span.start):
            raise _corrupted()

    def _keep(self, piece: memoryview) -> None:
        if self._digest is not None:
            self._digest.update(piece)
        self._download.write(piece, self._at)
        self._at += len(piece)

    def _check_reply(self, reply: Reply) -> None:
        """Check that a GetObject reply has the requested bytes and ETag.

        If it has the whole object instead, skip to the missing ones.
        """
        self._download.check_etag(reply.headers.get("etag"))
        if reply.status == 206:
            self._check_range(reply)
        elif reply.status == 200:
            if reply.length is not None:
                self._download.check_size(reply.length)
            _skip(reply, self._at)
        else:
            raise BrokenConnection(f"S3 answered {reply.status} to a read")

    def _check_range(self, reply: Reply) -> None:
        match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
        if match is None:
            raise BrokenConnection("S3 does not say which range it answers")
        first, last, total = map(int, match.groups())
        self._download.check_size(total)
        rest = self.span.stop - self._at
        if (first, last + 1) != (self._at, self.span.stop) or reply.length not in (rest, None):
            raise BrokenConnection("S3 answered another range")


def import_blake3() -> "type[blake3]":
    """Import BLAKE3, which only blobs of several ranges need."""
    from blake3 import blake3

    return blake3


def _corrupted() -> Unavailable:
    return Unavailable("a model file arrived corrupted from storage", code="BLOB_CORRUPTED")


def _skip(reply: Reply, count: int) -> None:
    scratch = memoryview(bytearray(min(count, BUFFER_BYTES)))
    while count:
        count -= _read_some(reply, scratch[:count])


def _read_some(reply: Reply, view: memoryview) -> int:
    count = reply.read_into(view)
    if not count:
        raise BrokenConnection("an answer of S3 ended too early")
    return count
