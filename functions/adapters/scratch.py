"""Temporary directory that belongs to one process and is removed with it."""

import atexit
import fcntl
import os
from functools import partial
from pathlib import Path


class Scratch:
    """Empty directory in `parent`, named `prefix` and random digits, removed at exit.

    A killed process leaves its directory behind, and Lambda starts the next process with the same
    storage. So each process locks its directory, and first removes all that nobody has locked.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        for directory in parent.glob(f"{prefix}*"):
            _remove_abandoned(directory)
        lock = -1
        while lock < 0:  # until it is locked, another process may take it for abandoned
            self.path = parent / f"{prefix}{os.urandom(8).hex()}"
            self.path.mkdir(mode=0o700)
            lock = _lock(self.path)
        self._remove = partial(_remove, self.path, lock)
        atexit.register(self._remove)

    def close(self) -> None:
        """Remove the temporary directory now instead of at exit."""
        atexit.unregister(self._remove)
        self._remove()


def _remove(directory: Path, lock: int) -> None:
    import shutil  # not at the top: it imports archive formats a cold start does not need

    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(directory: Path) -> None:
    lock = _lock(directory)
    if lock >= 0:
        _remove(directory, lock)


def _lock(directory: Path) -> int:
    """Lock a directory for this process and return its file descriptor.

    The result is -1 if the directory is gone, or locked by another process.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The path may lead to another directory by now.
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return -1
