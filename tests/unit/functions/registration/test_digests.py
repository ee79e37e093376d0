"""Digests of the sandbox's output files."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from blake3 import blake3

from functions.core.errors import InvalidModel
from functions.core.registration.digests import MB, hash_files, open_regular, range_bytes
from functions.core.registration.registration import RECORD_BYTES
from functions.core.registration.sandbox_protocol import SERVED_FILES
from functions.core.registry.items import blob_to_record, ranges_to_record
from functions.core.registry.version import DIGEST_BYTES, Blob


def test_a_file_is_hashed_with_its_name_and_size(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"content")
    (tmp_path / "empty").touch()

    files = hash_files([tmp_path / "weights", tmp_path / "empty"])

    assert files == (
        Blob("weights", hashlib.sha256(b"content").hexdigest(), 7),
        Blob("empty", hashlib.sha256(b"").hexdigest(), 0),
    )


def test_each_range_of_a_larger_file_has_a_digest(tmp_path: Path) -> None:
    content = os.urandom(2 * MB + 1)
    (tmp_path / "weights").write_bytes(content)

    [blob] = hash_files([tmp_path / "weights"])

    assert blob.sha256 == hashlib.sha256(content).hexdigest()
    assert blob.range_bytes == MB
    ranges = [content[:MB], content[MB : 2 * MB], content[2 * MB :]]
    assert [blob.range_digest(at * MB) for at in range(4)] == [
        *(blake3(part).digest() for part in ranges),
        b"",
    ]


def test_a_file_of_one_range_needs_no_other_digest(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"0" * MB)

    [blob] = hash_files([tmp_path / "model"])

    assert (blob.range_bytes, blob.range_digests) == (0, b"")


@pytest.mark.parametrize("files", [1, 2, SERVED_FILES])
@pytest.mark.parametrize("total", [10 * MB, 434_000_000, 10_240 * MB, 10**12])
def test_the_digests_of_a_version_fit_into_its_record(files: int, total: int) -> None:
    length = range_bytes(total)
    sizes = [total // files] * (files - 1) + [total - total // files * (files - 1)]
    blobs = [
        Blob("weights", "0" * 64, size, length, bytes(DIGEST_BYTES * -(-size // length)))
        for size in sizes
        if size > length
    ]

    record = json.dumps([ranges_to_record(blobs), *map(blob_to_record, blobs)])

    assert len(record) + RECORD_BYTES < 400_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"content")
    (tmp_path / "link").symlink_to("weights")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "weights", tmp_path / "second name")
    return tmp_path


@pytest.mark.parametrize("name", ["nothing", "link", "folder", "fifo", "second name"])
def test_only_a_regular_file_with_one_link_is_read(folder: Path, name: str) -> None:
    open_files = count_open_files()

    with pytest.raises(InvalidModel) as caught, open_regular(folder / name):
        pass

    assert caught.value.instance_code == "SANDBOX_BAD_ANSWER"
    assert count_open_files() == open_files


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
