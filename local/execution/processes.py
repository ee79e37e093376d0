"""Janitor process that ends the stack's children once the supervisor is gone.

    python -m local.execution.processes

reads "add <pid>", "remove <pid>" and "folder <path>" from standard input. At its end, however the
supervisor ended, it kills the processes and removes the folders.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

import psutil

ROOT = Path(__file__).resolve().parents[2]
PF_EXITING = 0x4  # include/linux/sched.h


def is_dying(pid: int) -> bool:
    """Return True if a process has ended or is about to.

    That is, SIGKILL is pending or the exit has begun.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except (FileNotFoundError, ProcessLookupError):
        return True
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return (
        fields["State"][0] in "ZX"
        or bool(flags & PF_EXITING)
        or bool(pending >> (signal.SIGKILL - 1) & 1)
    )


def end(pids: Iterable[int]) -> None:
    """Kill the sessions led by these processes, and all their descendants."""
    descendants = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    for pid in descendants:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Janitor:
    """Handle of the janitor process that cleans up after a crash."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "local.execution.processes"]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._input = cast(IO[bytes], self._process.stdin)
        self.pid = self._process.pid

    def tell(self, word: str, target: int | Path) -> None:
        """Tell the janitor about a process or folder to clean up.

        `word` is `add`, `remove` or `folder`. Ignored if the janitor was killed.
        """
        with contextlib.suppress(BrokenPipeError):
            self._input.write(f"{word} {target}\n".encode())
            self._input.flush()

    def close(self) -> None:
        """Let the janitor process clean up, and wait for its end."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.wait(timeout=10)


def main() -> None:
    """Read processes and folders from stdin; clean them up at its end."""
    pids: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        word, _, target = line.rstrip("\n").partition(" ")
        if word == "add":
            pids.add(int(target))
        elif word == "remove":
            pids.discard(int(target))
        elif word == "folder":
            folders.add(target)
    end(pids)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
