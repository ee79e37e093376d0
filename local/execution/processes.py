"""Child processes that never outlive the stack: a small janitor ends them when the supervisor is gone, however it went.

python -m local.execution.processes      the janitor; reads "add <pid>", "remove <pid>" and "folder <path>" until its input ends
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
    """Whether the process has ended, or is about to: SIGKILL is pending or its exit has begun."""
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
    """SIGKILL the sessions led by `pids` and all their descendants, those in sessions of their own included."""
    family = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Janitor:
    """Remembers, in a process of its own, what has to end when this one is killed."""

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

    def tell(self, word: str, what: int | Path) -> None:
        with contextlib.suppress(
            BrokenPipeError
        ):  # the janitor was killed: the stack works on without it
            self._input.write(f"{word} {what}\n".encode())
            self._input.flush()

    def close(self) -> None:
        """The janitor cleans up what it still knows of, and ends."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.wait(timeout=10)


def main() -> None:
    pids: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        word, _, what = line.rstrip("\n").partition(" ")
        if word == "add":
            pids.add(int(what))
        elif word == "remove":
            pids.discard(int(what))
        elif word == "folder":
            folders.add(what)
    end(pids)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
