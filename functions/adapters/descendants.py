"""Cleanup of orphaned processes that a sandboxed child process left behind.

A child can fork, start a session of its own and fork again; killing its process group then misses
it. Linux hands such orphans to this process once it is a subreaper. They are recognised by their
start time, and by two marks that every descendant of a sandboxed child inherits: the limit on CPU
time, and no new privileges.
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
    """Error: an orphaned process of the sandbox could not be killed."""


def adopt_orphans() -> None:
    """Become the Linux subreaper, which adopts orphaned descendant processes."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def now_ticks() -> int:
    """Return the time since boot in clock ticks, as process starts count."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def end_orphans(spared: Set[int], cpu_s: int, since_ticks: int) -> int:
    """Kill orphaned sandbox processes; return their number.

    `spared` are the pids of sandboxed children in use; `cpu_s` is the hard limit on CPU time of
    sandboxed processes; an older process than `since_ticks` is none of them. An orphan's own
    children are adopted when it ends, and killed in turn.

    Raises:
        StillRunning: some are left after `END_S` seconds.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + END_S
    while True:
        adopted = _children(since_ticks) - spared
        orphans = [pid for pid in adopted if _is_sandboxed(pid, cpu_s)]
        if not orphans:
            return len(killed)
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        killed.update(orphans)
        if time.monotonic() > deadline:
            raise StillRunning(f"{len(orphans)} processes")
        time.sleep(POLL_S)


def _children(since_ticks: int) -> set[int]:
    """Return the pids of this process's younger children, zombies included."""
    own = os.getpid()
    return {pid for pid, parent, start in _processes() if parent == own and start >= since_ticks}


def _processes() -> Iterator[tuple[int, int, int]]:
    """Yield pid, parent's pid and start in clock ticks of each process."""
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            stat = (_PROC / entry.name / "stat").read_bytes()
        except OSError:  # the process ended
            continue
        fields = stat[stat.rindex(b")") + 1 :].split()  # a name may hold ")"
        yield int(entry.name), int(fields[1]), int(fields[19])  # proc(5): ppid, starttime


def _is_sandboxed(pid: int, cpu_s: int) -> bool:
    """Return True if a process has the marks of a sandboxed one."""
    try:
        limits, status = ((_PROC / str(pid) / name).read_text() for name in ("limits", "status"))
    except OSError:  # the process ended
        return False
    hard = next(line.split()[4] for line in limits.splitlines() if line.startswith("Max cpu time"))
    return hard.isdigit() and int(hard) <= cpu_s and "NoNewPrivs:\t1\n" in status
