"""SHA-256 digests of the files that an ended sandbox process has written.

A digest is computed after the sandbox has ended: before, a hostile process could still write.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from functions.core.errors import shown
from functions.core.registration.sandbox_answers import bad_answer
from functions.core.registry.version import Blob


def hash_file(path: Path) -> Blob:
    """Return name, SHA-256 and size of a sandbox's output file.

    Call it only after the sandbox has ended.

    Raises:
        InvalidModel: it is no regular file with one link; the code is `SANDBOX_BAD_ANSWER`.
    """
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(path.name, sha256, size_bytes=file.tell())


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a sandbox's output file for reading; refuse links and devices.

    Raises:
        InvalidModel: it is no regular file with one link; the code is `SANDBOX_BAD_ANSWER`.
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
