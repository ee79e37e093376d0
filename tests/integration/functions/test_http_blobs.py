"""Download of blobs from a server with every fault that storage may have."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3

from functions.adapters.aws_http import blobs as blobs_adapter
from functions.adapters.aws_http.blobs import ATTEMPTS, BlobReader
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.settings import Settings
from functions.core.errors import Unavailable
from functions.core.registry.version import Blob
from tests.fault_server import (
    Behaviour,
    FaultServer,
    ReceivedRequest,
    ServerConnection,
    StoredObject,
    fault_server,
)

CONTENT = bytes(range(256)) * 40
BLOB = Blob("model.onnx", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
RANGE = 1000
OWNER = "123456789012"
RANGES = -(-len(CONTENT) // RANGE)
DIGESTS = [blake3(CONTENT[at : at + RANGE]).digest() for at in range(0, len(CONTENT), RANGE)]
RANGED = replace(BLOB, range_bytes=RANGE, range_digests=b"".join(DIGESTS))
either = pytest.mark.parametrize("blob", [BLOB, RANGED], ids=["SHA-256", "ranges"])
CHUNKED = (
    b"HTTP/1.1 206 OK\r\ntransfer-encoding: chunked\r\n"
    b'content-range: bytes 0-999/10240\r\netag: "1"\r\n\r\n'
)
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>no</Message></Error>"


class Reading:
    """Reader of the server's objects; `waits` records its pauses instead of sleeping."""

    clients: ClassVar[list[Client]] = []

    def __init__(
        self, url: str, connections: int = 3, range_bytes: int = RANGE, read_s: float = 5.0
    ) -> None:
        environment = {
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        settings = Settings.from_environment({**environment, "AWS_ENDPOINT_URL_S3": url})
        endpoint, prefix = settings.bucket("models")
        self.waits: list[float] = []
        client = Client(
            settings,
            "s3",
            endpoint,
            pause=self.waits.append,
            chance=lambda: 1.0,
            connect_s=10,
            read_s=read_s,
        )
        self.reader = BlobReader(
            client,
            prefix,
            owner=OWNER,
            range_bytes=(range_bytes, range_bytes),
            connections=connections,
        )
        self.client = client
        self.clients.append(client)

    def fetch(self, directory: Path, blob: Blob = BLOB) -> bytes:
        self.reader.fetch(blob, directory / "copy")
        assert [path.name for path in directory.iterdir()] == ["copy"]
        return (directory / "copy").read_bytes()

    def fails(self, directory: Path, blob: Blob = BLOB) -> Unavailable:
        before = list(directory.iterdir())
        with pytest.raises(Unavailable) as caught:
            self.reader.fetch(blob, directory / "copy")
        assert list(directory.iterdir()) == before
        return caught.value


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the reader patient, so that a busy machine is not taken for a slow server."""
    monkeypatch.setattr(blobs_adapter, "ANSWER_S", 20.0)
    yield
    for thread in threading.enumerate():
        if thread.name == "fetch":  # nobody waits for these after an error
            thread.join(10)
    while Reading.clients:
        Reading.clients.pop().close()


@pytest.fixture
def stored() -> StoredObject:
    return StoredObject(CONTENT)


@pytest.fixture
def server(stored: StoredObject) -> Iterator[FaultServer]:
    with fault_server(stored) as running:
        yield running


def requested_ranges(server: FaultServer) -> list[range]:
    return sorted((one.range for one in server.seen if one.range), key=lambda one: one.start)


@either
def test_a_blob_comes_in_ranges_over_kept_connections(
    server: FaultServer, tmp_path: Path, blob: Blob
) -> None:
    reading = Reading(server.url)

    assert reading.fetch(tmp_path, blob) == CONTENT
    assert requested_ranges(server) == [
        range(at, min(at + RANGE, len(CONTENT))) for at in range(0, len(CONTENT), RANGE)
    ]
    assert {one.path for one in server.seen} == {f"/models/{BLOB.key}"}
    assert reading.fetch(tmp_path, blob) == CONTENT
    assert server.connections <= 3
    assert reading.waits == []


def test_every_request_names_the_account_that_owns_the_bucket(
    server: FaultServer, tmp_path: Path
) -> None:
    Reading(server.url).fetch(tmp_path)

    assert {seen.headers["x-amz-expected-bucket-owner"] for seen in server.seen} == {OWNER}


def test_a_small_blob_is_one_request(server: FaultServer, tmp_path: Path) -> None:
    reading = Reading(server.url, range_bytes=len(CONTENT))

    assert reading.fetch(tmp_path) == CONTENT
    assert [one.range for one in server.seen] == [None]


@pytest.mark.parametrize(
    ("least", "most", "requests"),
    [(1000, 9000, 4), (9000, 9000, 2), (1000, 2000, 8), (20_000, 90_000, 1)],
)
def test_a_blob_is_divided_among_the_connections(
    server: FaultServer, tmp_path: Path, least: int, most: int, requests: int
) -> None:
    reading = Reading(server.url)
    reader = BlobReader(reading.client, "/models", range_bytes=(least, most), connections=4)

    reader.fetch(BLOB, tmp_path / "copy")

    assert len(server.seen) == requests


def test_an_empty_blob_is_a_file(server: FaultServer, stored: StoredObject, tmp_path: Path) -> None:
    stored.content = b""

    assert Reading(server.url).fetch(tmp_path, Blob("w", hashlib.sha256(b"").hexdigest(), 0)) == b""


def truncated(
    stored: StoredObject, count: int, end: Callable[[ServerConnection], None]
) -> Behaviour:
    """Return a behaviour that sends only `count` bytes of the announced length."""

    def behave(seen: ReceivedRequest, line: ServerConnection) -> None:
        wanted = stored.requested_range(seen)
        line.send(stored.head(seen) + stored.content[wanted.start : wanted.start + count])
        end(line)

    return behave


@either
@pytest.mark.parametrize(
    "end", [ServerConnection.hang_up, ServerConnection.reset], ids=["closed", "reset"]
)
@pytest.mark.parametrize("number", [1, 4, RANGES])
def test_after_a_break_only_the_missing_bytes_are_requested(
    server: FaultServer,
    stored: StoredObject,
    tmp_path: Path,
    end: Callable[[ServerConnection], None],
    number: int,
    blob: Blob,
) -> None:
    stored.faults[number] = truncated(stored, 123, end)
    reading = Reading(server.url, connections=1)

    assert reading.fetch(tmp_path, blob) == CONTENT
    broken, again = server.seen[number - 1], server.seen[number]
    assert broken.range is not None
    assert again.range is not None
    if end is ServerConnection.hang_up:  # a reset may overtake what was sent
        assert again.range.start == broken.range.start + 123
    assert again.range.stop == broken.range.stop
    assert again.headers["if-match"] == '"1"'
    assert reading.waits == [0.05]


def test_a_broken_small_blob_is_resumed(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    stored.faults[1] = truncated(stored, 5000, ServerConnection.hang_up)

    assert Reading(server.url, range_bytes=len(CONTENT)).fetch(tmp_path) == CONTENT
    assert [one.range for one in server.seen] == [None, range(5000, len(CONTENT))]


@either
def test_a_dripping_connection_is_dropped_and_its_bytes_are_kept(
    server: FaultServer,
    stored: StoredObject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blob: Blob,
) -> None:
    monkeypatch.setattr(blobs_adapter, "ANSWER_S", 1.0)
    over = threading.Event()

    def drips(seen: ReceivedRequest, line: ServerConnection) -> None:
        wanted = stored.requested_range(seen)
        line.send(stored.head(seen))
        for at in wanted:
            line.send(stored.content[at : at + 1])
            if over.wait(0.02):
                return

    stored.faults[1] = drips
    try:
        assert Reading(server.url, connections=1).fetch(tmp_path, blob) == CONTENT
    finally:
        over.set()

    assert server.seen[1].range is not None
    assert 1 <= server.seen[1].range.start < RANGE


def test_a_silent_connection_is_dropped(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    over = threading.Event()
    stored.faults[2] = lambda *_: (over.wait(10), None)[1]
    try:
        assert Reading(server.url, read_s=0.5).fetch(tmp_path) == CONTENT
    finally:
        over.set()


@either
@pytest.mark.parametrize(
    "content_range",
    ["bytes 1-1000/10240", "bytes 0-998/10240", "bytes 0-999/*", "0-999/10240", ""],
    ids=["late", "short", "no size", "no unit", "missing"],
)
def test_a_wrong_range_is_requested_again(
    server: FaultServer, stored: StoredObject, tmp_path: Path, content_range: str, blob: Blob
) -> None:
    def wrong(seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(
            stored.head(seen, content_range=content_range)
            + CONTENT[1 : len(stored.requested_range(seen)) + 1]
        )

    stored.faults[1] = wrong
    reading = Reading(server.url, connections=1)

    assert reading.fetch(tmp_path, blob) == CONTENT
    assert server.seen[1].range == range(RANGE)

    stored.faults = dict.fromkeys(range(1, 99), wrong)
    assert reading.fails(tmp_path, blob).instance_code == "UNAVAILABLE"


@either
def test_a_server_without_ranges_is_read(
    server: FaultServer, stored: StoredObject, tmp_path: Path, blob: Blob
) -> None:
    def whole(seen: ReceivedRequest, line: ServerConnection) -> None:
        line.answer(200, CONTENT, etag=stored.etag)

    stored.faults = dict.fromkeys(range(1, 99), whole)

    assert Reading(server.url).fetch(tmp_path, blob) == CONTENT


@either
def test_a_chunked_body_is_read(
    server: FaultServer, stored: StoredObject, tmp_path: Path, blob: Blob
) -> None:
    def chunked(seen: ReceivedRequest, line: ServerConnection) -> None:
        wanted = stored.requested_range(seen)
        line.send(stored.head(seen, content_length="", transfer_encoding="chunked"))
        for at in range(wanted.start, wanted.stop, 300):
            piece = CONTENT[at : min(at + 300, wanted.stop)]
            line.send(b"%x;a=b\r\n%s\r\n" % (len(piece), piece))
        line.send(b"0\r\ntrailer: 1\r\n\r\n")

    stored.faults = dict.fromkeys(range(1, RANGES + 1), chunked)
    reading = Reading(server.url)

    assert reading.fetch(tmp_path, blob) == CONTENT
    assert reading.waits == []
    assert server.connections <= 3  # such a connection is kept, too


def test_busy_storage_is_retried_with_growing_waits(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    def busy(_: ReceivedRequest, line: ServerConnection) -> None:
        line.answer(503, SLOW_DOWN)

    stored.faults = dict.fromkeys([2, 3, 4], busy)
    reading = Reading(server.url, connections=1)

    assert reading.fetch(tmp_path) == CONTENT
    assert reading.waits == [0.05, 0.1, 0.2]
    assert server.connections == 1

    stored.faults = dict.fromkeys(range(1, 99), busy)
    reading, before = Reading(server.url, connections=1), len(server.seen)
    assert str(reading.fails(tmp_path)) == "storage does not answer; try again"
    assert len(server.seen) - before == ATTEMPTS


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_errors_are_retried(
    server: FaultServer, stored: StoredObject, tmp_path: Path, status: int
) -> None:
    stored.faults[1] = lambda _, line: line.answer(status)

    assert Reading(server.url).fetch(tmp_path) == CONTENT


@pytest.mark.parametrize("at", [0, 5000, len(CONTENT) - 1])
@either
def test_corrupted_bytes_are_never_served(
    server: FaultServer, stored: StoredObject, tmp_path: Path, at: int, blob: Blob
) -> None:
    stored.content = CONTENT[:at] + b"X" + CONTENT[at + 1 :]

    error = Reading(server.url).fails(tmp_path, blob)

    assert error.instance_code == "BLOB_CORRUPTED"
    assert str(error) == "a model file arrived corrupted from storage"


def test_the_digest_of_each_range_replaces_that_of_the_file(
    server: FaultServer, tmp_path: Path
) -> None:
    blob = replace(RANGED, sha256="0" * 64)

    assert Reading(server.url).fetch(tmp_path, blob) == CONTENT


@pytest.mark.parametrize("digests", [DIGESTS[:-1], [], DIGESTS[1:], DIGESTS[::-1]])
def test_a_range_without_its_own_digest_is_corrupted(
    server: FaultServer, tmp_path: Path, digests: list[bytes]
) -> None:
    blob = replace(RANGED, sha256="0" * 64, range_digests=b"".join(digests))

    assert Reading(server.url).fails(tmp_path, blob).instance_code == "BLOB_CORRUPTED"


@pytest.mark.parametrize("last", [1, 5, RANGES])
def test_ranges_are_verified_in_the_order_they_arrive(
    server: FaultServer, stored: StoredObject, tmp_path: Path, last: int
) -> None:
    others = threading.Semaphore(0)

    def others_first(seen: ReceivedRequest, line: ServerConnection) -> None:
        if seen.number == last:
            for _ in range(RANGES - 1 if last < RANGES else 0):
                assert others.acquire(timeout=60)
        line.send(stored.head(seen) + CONTENT[seen.range.start : seen.range.stop])
        others.release()

    stored.faults = dict.fromkeys(range(1, 99), others_first)

    assert Reading(server.url, connections=RANGES).fetch(tmp_path, RANGED) == CONTENT


def test_the_first_corrupted_range_ends_the_download(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    stored.content = b"X" + CONTENT[1:]

    Reading(server.url, connections=1).fails(tmp_path, RANGED)

    assert len(server.seen) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"+", b"", CONTENT[:RANGE]])
@pytest.mark.parametrize("range_bytes", [RANGE, len(CONTENT)])
def test_a_wrong_size_is_never_served(
    server: FaultServer, stored: StoredObject, tmp_path: Path, content: bytes, range_bytes: int
) -> None:
    def as_s3_does(seen: ReceivedRequest, line: ServerConnection) -> None:
        if seen.range and seen.range.start >= len(content):
            line.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        elif seen.range:
            cut = content[seen.range.start : seen.range.stop]
            last = seen.range.start + len(cut) - 1
            line.answer(
                206,
                cut,
                content_range=f"bytes {seen.range.start}-{last}/{len(content)}",
                etag='"1"',
            )
        else:
            line.answer(200, content, etag='"1"')

    stored.faults = dict.fromkeys(range(1, 99), as_s3_does)

    error = Reading(server.url, range_bytes=range_bytes).fails(tmp_path)

    assert error.instance_code == "UNAVAILABLE"
    assert "bytes arrived from storage" in str(error)


@pytest.mark.parametrize(
    ("blob", "old"),
    [(BLOB, bytes(reversed(CONTENT))), (RANGED, CONTENT)],
    ids=["SHA-256", "ranges"],
)
def test_ranges_of_two_objects_are_never_combined(
    server: FaultServer, stored: StoredObject, tmp_path: Path, blob: Blob, old: bytes
) -> None:
    """The object is overwritten after the third read; S3 refuses reads of the old ETag."""
    stored.content, stored.etag = old, '"old"'
    reading = Reading(server.url, connections=1)

    def as_s3_does(seen: ReceivedRequest, line: ServerConnection) -> None:
        if seen.number == 4:
            stored.content, stored.etag = CONTENT, '"new"'
        if seen.headers.get("if-match", stored.etag) != stored.etag:
            line.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            stored.answer(seen, line)

    stored.faults = dict.fromkeys(range(1, 99), as_s3_does)

    assert reading.fetch(tmp_path, blob) == CONTENT


@either
def test_an_object_that_keeps_changing_is_not_served(
    server: FaultServer, stored: StoredObject, tmp_path: Path, blob: Blob
) -> None:
    def another(seen: ReceivedRequest, line: ServerConnection) -> None:
        wanted = stored.requested_range(seen)
        etag = f'"{seen.number}"'
        line.send(stored.head(seen, etag=etag) + CONTENT[wanted.start : wanted.stop])

    stored.faults = dict.fromkeys(range(1, 99), another)

    assert Reading(server.url).fails(tmp_path, blob).instance_code == "UNAVAILABLE"


@either
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", "BLOB_MISSING"),
        (404, "NoSuchBucket", "BLOB_MISSING"),
        (405, "MethodNotAllowed", "BLOB_MISSING"),
        (403, "AccessDenied", "ACCESS_DENIED"),
        (400, "RequestTimeout", "UNAVAILABLE"),
    ],
)
def test_an_error_of_s3_has_a_code_of_ours(
    server: FaultServer,
    stored: StoredObject,
    tmp_path: Path,
    status: int,
    code: str,
    expected: str,
    blob: Blob,
) -> None:
    body = (
        f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    )
    stored.faults = dict.fromkeys(range(1, 99), lambda _, line: line.answer(status, body))

    error = Reading(server.url).fails(tmp_path, blob)

    assert error.instance_code == expected
    assert "models" not in str(error)  # the bucket's name


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0x10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000,
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\n\0b\r\n3e7\r\n" + CONTENT[1:1000] + b"\r\n0\r\n\r\n",
        b"",
    ],
    ids=lambda garbage: repr(garbage[:60]),
)  # fmt: skip
def test_a_malformed_reply_is_retried(
    server: FaultServer, stored: StoredObject, tmp_path: Path, garbage: bytes
) -> None:
    def talk(_: ReceivedRequest, line: ServerConnection) -> None:
        line.send(garbage)
        line.hang_up()

    stored.faults[1] = talk
    reading = Reading(server.url, connections=1)

    assert reading.fetch(tmp_path) == CONTENT
    assert reading.waits == [0.05]


def test_an_interim_reply_is_skipped(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    def early(seen: ReceivedRequest, line: ServerConnection) -> None:
        line.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        stored.answer(seen, line)

    stored.faults[1] = early

    assert Reading(server.url).fetch(tmp_path) == CONTENT


def test_an_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    reading = Reading(f"http://127.0.0.1:{port}", connections=1)

    assert str(reading.fails(tmp_path)) == "storage cannot be reached; try again"
    assert reading.waits == [0.05, 0.1, 0.2]


def test_a_connection_that_was_closed_while_idle_costs_no_attempt(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    def last(seen: ReceivedRequest, line: ServerConnection) -> None:
        stored.answer(seen, line)
        line.hang_up()

    stored.faults = dict.fromkeys(range(1, 99), last)
    reading = Reading(server.url, connections=1)

    assert reading.fetch(tmp_path) == CONTENT
    assert reading.waits == []
    assert server.connections == RANGES


def test_a_connection_that_idles_too_long_is_not_used(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(server.url, connections=1)
    reading.fetch(tmp_path)
    assert server.connections == 1
    monkeypatch.setattr("functions.adapters.aws_http.pool.IDLE_S", 0.0)

    reading.fetch(tmp_path)

    assert server.connections > 1


def test_connections_are_opened_in_advance(server: FaultServer, tmp_path: Path) -> None:
    reading = Reading(server.url, connections=2)

    reading.reader.preconnect(2)
    deadline = time.monotonic() + 10
    while (
        len(reading.client._pool._idle) < 2 or server.connections < 2
    ) and time.monotonic() < deadline:
        time.sleep(0.005)

    assert server.connections == 2
    assert reading.fetch(tmp_path) == CONTENT
    assert server.connections == 2
    reading.reader.close()
    assert reading.fetch(tmp_path) == CONTENT
    assert server.connections > 2


def test_two_blobs_are_read_at_once(
    server: FaultServer, stored: StoredObject, tmp_path: Path
) -> None:
    reading = Reading(server.url)
    found: dict[str, bytes] = {}

    def fetch(name: str) -> None:
        (tmp_path / name).mkdir()
        found[name] = reading.fetch(tmp_path / name)

    threads = [threading.Thread(target=fetch, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {"a": CONTENT, "b": CONTENT}


def test_without_threads_the_caller_downloads(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reading, start = Reading(server.url), threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda t: refuse(t) if t.name == "fetch" else start(t)
    )

    assert reading.fetch(tmp_path) == CONTENT
