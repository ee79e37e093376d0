"""What a server uses: CPU time and memory of all its processes, as the kernel counts them (Linux)."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: with a process id, the id of its CPU clock
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} ([0-9a-f]+) (\S+) (\d+)")  # offset, device, inode


def family(pid: int) -> list[int]:
    """A process and all its descendants, those in sessions of their own included."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and those of its descendants that live, to the nanosecond."""
    found = 0.0
    for one in family(pid):
        with contextlib.suppress(OSError):  # it ended just now
            found += time.clock_gettime(~one << 3 | CPUCLOCK_SCHED)
    return found


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, in 10⁶ bytes, as if they were alone on the machine.

    A page that several of them hold counts once; one that other processes hold, too, counts in full. (The proportional
    set size would share the pages of a library with whoever else has mapped the same file.)
    """
    return resident_bytes(_read(pid, "smaps")) / 1e6


def resident_bytes(smaps: Iterator[str]) -> int:
    """Of the processes whose /proc/<pid>/smaps are given: what is mapped from a file once, in the most that any of them
    holds of it; the rest by the proportional share, which they have with nobody else.
    """
    files: dict[tuple[str, ...], int] = {}
    rest = 0
    for text in smaps:
        held: dict[tuple[str, ...], int] = {}
        for mapping, sizes in _mappings(text):
            if mapping[-1] == "0":
                rest += sizes["Pss"]
            else:
                held[mapping] = held.get(mapping, 0) + sizes["Rss"]
        for mapping, size in held.items():
            files[mapping] = max(size, files.get(mapping, 0))
    return (rest + sum(files.values())) * 1024


def _mappings(text: str) -> Iterator[tuple[tuple[str, ...], Mapping[str, int]]]:
    """((offset, device, inode), kB by name) of each mapping; inode 0 is no file's."""
    mapping: tuple[str, ...] | None = None
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        if head := MAPPING.match(line):
            if mapping is not None:
                yield mapping, sizes
            mapping, sizes = head.groups(), {}
        elif line.endswith(" kB"):
            name, _, size = line.removesuffix(" kB").partition(":")
            sizes[name] = int(size)
    if mapping is not None:
        yield mapping, sizes


def _read(pid: int, name: str) -> Iterator[str]:
    for one in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
            yield Path(f"/proc/{one}/{name}").read_text()
