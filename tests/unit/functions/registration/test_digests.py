"""Digests that are begun while a file may still be written to: right whatever happens to it meanwhile."""

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from functions.core.errors import InvalidModel
from functions.core.registration import digests
from functions.core.registration.digests import SMALL_BYTES, Seals
from functions.core.registration.executor import Background

Prepare = Callable[[Path], Callable[[], None]]
CONTENT, OTHER = b"a" * (SMALL_BYTES + 5), b"b" * (SMALL_BYTES + 7)


@pytest.fixture
def seals(tmp_path: Path) -> Iterator[Seals]:
    (tmp_path / "weights").write_bytes(CONTENT)
    with Seals(tmp_path, Background(1)) as made:
        yield made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_nobody_touches_is_read_once(seals: Seals) -> None:
    seals.begin(["weights"])

    with mock.patch.object(
        digests.hashlib, "file_digest", side_effect=AssertionError("read again")
    ):
        blob = seals.blob("weights")

    assert (blob.name, blob.sha256, blob.size_bytes) == ("weights", sha256(CONTENT), len(CONTENT))


def test_a_file_that_somebody_asks_to_write_is_read_again(seals: Seals, tmp_path: Path) -> None:
    seals.begin(["weights"])
    with pytest.raises(BlockingIOError):  # it waits for the lease to go, or is told so
        os.open(tmp_path / "weights", os.O_WRONLY | os.O_NONBLOCK)

    with mock.patch.object(digests.hashlib, "file_digest", wraps=hashlib.file_digest) as read:
        assert seals.blob("weights").sha256 == sha256(CONTENT)
    assert read.called


def open_for_writing(path: Path) -> Callable[[], None]:
    file = path.open("r+b")
    return lambda: (file.write(OTHER), file.close())  # type: ignore[func-returns-value]


def mapped_for_writing(path: Path) -> Callable[[], None]:
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    return lambda: mapped.__setitem__(0, ord("b"))


def replaced(path: Path) -> Callable[[], None]:
    other = path.with_name("other")
    other.write_bytes(OTHER)
    return lambda: (other.rename(path), None)[1]


@pytest.mark.parametrize("prepare", [open_for_writing, mapped_for_writing, replaced])
def test_what_is_written_later_counts(seals: Seals, tmp_path: Path, prepare: Prepare) -> None:
    write = prepare(tmp_path / "weights")
    seals.begin(["weights"])
    write()

    assert (
        seals.blob("weights").sha256
        == sha256((tmp_path / "weights").read_bytes())
        != sha256(CONTENT)
    )


@pytest.mark.parametrize("name", ["nothing", "link", "folder", "twice", "small"])
def test_what_is_no_large_plain_file_is_told_at_the_end(
    seals: Seals, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link").symlink_to("weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "second").write_bytes(CONTENT)
    os.link(tmp_path / "second", tmp_path / "twice")

    seals.begin([name])

    if name == "small":
        assert seals.blob(name).sha256 == sha256(b"small")
        return
    with pytest.raises(InvalidModel) as caught:
        seals.blob(name)
    assert caught.value.instance_code == "SANDBOX_BAD_ANSWER"


def test_nothing_is_left_when_it_is_over(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(CONTENT)
    begun = threading.Event()
    digest = mock.Mock()
    background, open_files = Background(1), count_open_files()
    with (
        mock.patch.object(digests.hashlib, "sha256", return_value=digest),
        Seals(tmp_path, background) as seals,
    ):
        digest.update = mock.Mock(
            side_effect=lambda _: (begun.set(), seals._early["weights"]._stop.wait(10))
        )
        seals.begin(["weights"])
        assert begun.wait(10)

    assert digest.update.call_count == 1  # it was stopped
    assert count_open_files() == open_files
    with (tmp_path / "weights").open("r+b") as file:  # nobody has to wait
        file.write(OTHER)


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
