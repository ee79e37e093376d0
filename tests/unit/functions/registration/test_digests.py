"""Digests of the sandbox's output files."""

import hashlib
import os
from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.registration.digests import hash_file, open_regular
from functions.core.registry.version import Blob


def test_a_file_is_hashed_with_its_name_and_size(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"content")

    blob = hash_file(tmp_path / "weights")

    assert blob == Blob("weights", hashlib.sha256(b"content").hexdigest(), 7)


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
