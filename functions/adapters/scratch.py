"""A directory in the temporary storage that this process has for itself."""

import fcntl
import os
import weakref
from pathlib import Path


class Scratch:
    """An empty directory in `parent` under a name with `prefix`, removed at the end of this process.

    A process that is killed leaves its own behind, and Lambda starts the next one with the same storage. So those of
    processes that live no more, which hold no lock on them, are removed first.
    """

    def __init__(self, parent: Path, prefix: str) -> None:
        for left in parent.glob(f"{prefix}*"):
            _remove_if_left(left)
        lock = -1
        while lock < 0:  # another process may take a new one for left, until it is locked
            self.path = parent / f"{prefix}{os.urandom(8).hex()}"
            self.path.mkdir(mode=0o700)
            lock = _locked(self.path)
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove it now."""
        self._end()


def _remove(directory: Path, lock: int) -> None:
    import shutil  # with every kind of archive: where there is something to remove

    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _remove_if_left(directory: Path) -> None:
    lock = _locked(directory)
    if lock >= 0:
        _remove(directory, lock)


def _locked(directory: Path) -> int:
    """A descriptor of `directory` with a lock on it; below 0 if it is gone, or locked by somebody else."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return -1
