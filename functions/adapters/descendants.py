"""Processes that a sandboxed child leaves behind, found in /proc and ended.

A child can fork, start a session of its own and fork again; killing its process group then misses
it. Linux hands such orphans to this process once it is a subreaper. They are recognised by the
limit on CPU time, which every descendant of a sandboxed child inherits.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator, Set
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PROC = Path("/proc")
END_S = 30  # s for the kernel to free the memory of killed processes
POLL_S = 0.002


class StillRunning(Exception):
    """Error: a process that a sandboxed child left behind cannot be ended."""


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans (subreaper)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(spared: Set[int], cpu_s: int) -> int:
    """Kill this process's orphans of the sandbox; return how many there were.

    `spared` are the pids of sandboxed children in use; `cpu_s` is the hard limit on CPU time of
    sandboxed processes. An orphan's own children are handed on when it ends, until none is left.

    Raises:
        StillRunning: some are left after `END_S` seconds.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + END_S
    while orphans := [pid for pid in _children() - spared if _is_sandboxed(pid, cpu_s)]:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        killed.update(orphans)
        if time.monotonic() > deadline:
            raise StillRunning(f"{len(orphans)} processes")
        time.sleep(POLL_S)
    return len(killed)


def _children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    own = os.getpid()
    return {pid for pid, parent in _processes() if parent == own}


def _processes() -> Iterator[tuple[int, int]]:
    """Yield (pid, parent's pid) of every process."""
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            stat = (_PROC / entry.name / "stat").read_bytes()
        except OSError:  # the process ended
            continue
        _, parent = stat[stat.rindex(b")") + 1 :].split(maxsplit=2)[:2]  # a name may hold ")"
        yield int(entry.name), int(parent)


def _is_sandboxed(pid: int, cpu_s: int) -> bool:
    """Return True if a process's CPU limit is the sandbox's or lower."""
    try:
        lines = (_PROC / str(pid) / "limits").read_text().splitlines()
    except OSError:  # the process ended
        return False
    hard = next((line.split()[4] for line in lines if line.startswith("Max cpu time")), "unlimited")
    return hard.isdigit() and int(hard) <= cpu_s
