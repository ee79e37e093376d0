"""Digests of the files that an ended sandbox process has written.

A digest is computed after the sandbox has ended: before, a hostile process could still write. A
file's SHA-256 is its address. The BLAKE3 of its ranges lets a load verify each range as it arrives
(docs/decisions/0034-digests-of-ranges.md).
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from blake3 import blake3

from functions.core.errors import shown
from functions.core.registration.sandbox_answers import bad_answer
from functions.core.registry.version import Blob

MB = 1024 * 1024
CONNECTIONS = 16  # parallel range requests of a load (`aws_http/blobs.py`), for equal work in each
# Bytes of the smallest and largest range, until ROUNDS would be exceeded: smaller ones cost
# requests, and a slow connection delays a larger one.
RANGE_BYTES = (1 * MB, 16 * MB)
ROUNDS = 16  # ranges of one connection: 256 ranges have 11 KB of digests in the version's record
ALIGNMENT = 64 * 1024  # bytes; ranges share no page of the file that a load writes
CHUNK = 256 * 1024  # bytes hashed at a time, which the processor's cache holds


def hash_files(paths: Sequence[Path]) -> tuple[Blob, ...]:
    """Return name, size and digests of a sandbox's output files.

    Call it only after the sandbox has ended.

    Raises:
        InvalidModel: one is no regular file with one link; the code is `SANDBOX_BAD_ANSWER`.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(open_regular(path)) for path in paths]
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        length = range_bytes(sum(sizes))
        return tuple(
            _hash(file, path.name, size, length)
            for file, path, size in zip(files, paths, sizes, strict=True)
        )


def range_bytes(total: int) -> int:
    """Return the size of a version's verified ranges, from its total size.

    >>> [range_bytes(size * MB) / MB for size in (10, 100, 1_000, 10_000)]
    [1.0, 6.25, 15.625, 39.0625]
    """
    smallest, largest = RANGE_BYTES
    rounds = min(ROUNDS, -(-total // (CONNECTIONS * largest)))
    shares = CONNECTIONS * max(1, rounds) * ALIGNMENT
    return max(smallest, -(-total // shares) * ALIGNMENT)


def _hash(file: BufferedReader, name: str, size: int, length: int) -> Blob:
    """Return an open file's digests, also of its ranges if several."""
    if size <= length:
        return Blob(name, hashlib.file_digest(file, "sha256").hexdigest(), size)
    with ThreadPoolExecutor(1) as pool:  # SHA-256 takes longer, so BLAKE3 costs no time beside it
        ranges = pool.submit(_hash_ranges, file.fileno(), size, length)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(name, sha256, size, length, ranges.result())


def _hash_ranges(file: int, size: int, length: int) -> bytes:
    """Return the concatenated BLAKE3 digests of a file's ranges of `length` bytes."""
    buffer = memoryview(bytearray(CHUNK))
    digests = []
    for start in range(0, size, length):
        digest, stop = blake3(), min(start + length, size)
        for at in range(start, stop, CHUNK):
            count = os.preadv(file, [buffer[: stop - at]], at)
            digest.update(buffer[:count])
        digests.append(digest.digest())
    return b"".join(digests)


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
