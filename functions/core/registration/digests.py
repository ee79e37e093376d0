"""The digests of what a workbench leaves behind, computed while it still works where that can be trusted.

The workbench may turn hostile at any moment, and can write to every file of its user. So a digest that was begun early
counts only if nobody could have written since: the kernel grants a lease on a file only while nobody has it open, or
mapped, for writing, and it is lost as soon as somebody asks to. What has no such lease is read at the end.
"""

import fcntl
import hashlib
import os
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from functions.core.errors import InvalidModel, shown
from functions.core.registration.executor import Background, Task
from functions.core.registration.sandbox_protocol import bad_answer
from functions.core.registry.version import Blob

CHUNK = 1024 * 1024
SMALL_BYTES = 8 * CHUNK  # what is smaller takes no time at the end


class Seals:
    """The blobs in `folder`. As a context manager: at the end of the block nothing is read any more."""

    def __init__(self, folder: Path, background: Background) -> None:
        self._folder = folder
        self._background = background
        self._early: dict[str, _Early] = {}

    def begin(self, names: Sequence[str]) -> None:
        """Begin with these files, which are said to be complete."""
        for name in names:
            with suppress(OSError, InvalidModel):  # then it is read at the end, where this is told
                early = _Early(self._folder / name)
                if early.is_held() and early.size_bytes >= SMALL_BYTES:
                    self._early[name] = early
                    early.task = self._background.start(early.digest)
                else:
                    early.close()

    def blob(self, name: str) -> Blob:
        """What the file `name` is, once nobody works in the folder any more.

        Raises:
            InvalidModel: it is no regular file with one name; the code is `SANDBOX_BAD_ANSWER`.
        """
        with opened(self._folder / name) as file:
            early = self._early.get(name)
            if early and early.task and early.is_of(file):
                digest = early.task.result()
                if early.is_held():
                    return Blob(name, digest, early.size_bytes)
            return Blob(name, hashlib.file_digest(file, "sha256").hexdigest(), file.tell())

    def __enter__(self) -> "Seals":
        return self

    def __exit__(self, *_: object) -> None:
        for early in self._early.values():
            early.close()


class _Early:
    """A file under a lease, if there is one, and its digest."""

    def __init__(self, path: Path) -> None:
        with opened(path) as file:
            self._file = os.dup(file.fileno())
        self._stop = threading.Event()
        self.task: Task[str] | None = None
        self.size_bytes = os.fstat(self._file).st_size
        with suppress(
            OSError
        ):  # somebody has it open for writing, or the file system has no leases
            fcntl.fcntl(
                self._file, fcntl.F_SETSIG, signal.SIGURG
            )  # is ignored; SIGIO would end this process
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    def is_held(self) -> bool:
        return fcntl.fcntl(self._file, fcntl.F_GETLEASE) == fcntl.F_RDLCK

    def is_of(self, file: BufferedReader) -> bool:
        return os.path.sameopenfile(self._file, file.fileno())

    def digest(self) -> str:
        digest, buffer, at = hashlib.sha256(), bytearray(CHUNK), 0
        while not self._stop.is_set() and (size := os.preadv(self._file, [buffer], at)):
            digest.update(memoryview(buffer)[:size])
            at += size
        return digest.hexdigest()

    def close(self) -> None:
        self._stop.set()
        if self.task:
            self.task.end()
        os.close(self._file)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A file that the workbench left: a regular one, without another name.

    Raises:
        InvalidModel: it is something else, or not there; the code is `SANDBOX_BAD_ANSWER`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise bad_answer(f"{shown(path.name)} is not there, or a link") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise bad_answer(f"{shown(path.name)} has two names, or is no regular file")
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
        yield file
