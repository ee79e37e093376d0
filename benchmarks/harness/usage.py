"""CPU time and memory of a process with its descendants, from Linux."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: with a process id, the id of its CPU clock
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} ([0-9a-f]+) (\S+) (\d+)")  # offset, device, inode
Mapped = tuple[str, ...]  # offset, device and inode of a mapping


def family(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants.

    Descendants in sessions of their own are included.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def cpu_seconds(pid: int) -> float:
    """Return CPU seconds (user and system) of a process and living descendants.

    The kernel counts CPU time in nanoseconds.
    """
    seconds = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):  # the process ended
            seconds += time.clock_gettime(~member << 3 | CPUCLOCK_SCHED)
    return seconds


def memory_mb(pid: int) -> float:
    """Return resident memory of a process and its descendants, in 10⁶ bytes.

    A page that several of them hold counts once. A page that unrelated processes hold, too, counts
    in full; the kernel's proportional set size would divide it by the number of those processes.
    """
    return resident_bytes(_read_smaps(pid)) / 1e6


def resident_bytes(smaps: Iterator[str]) -> int:
    """Return the resident bytes of related processes, from /proc/<pid>/smaps texts.

    A mapped file counts once, with the most that any of the processes holds of it. Memory without
    a file counts by its proportional share, for only these processes share it.
    """
    files: dict[Mapped, int] = {}
    anonymous = 0
    for text in smaps:
        resident: dict[Mapped, int] = {}
        for mapping, sizes in _mappings(text):
            if mapping[-1] == "0":
                anonymous += sizes["Pss"]
            else:
                resident[mapping] = resident.get(mapping, 0) + sizes["Rss"]
        for mapping, size in resident.items():
            files[mapping] = max(size, files.get(mapping, 0))
    return (anonymous + sum(files.values())) * 1024


def _mappings(text: str) -> Iterator[tuple[Mapped, Mapping[str, int]]]:
    """Yield each memory mapping in an smaps text with sizes in kB.

    A mapping without a file has inode 0.
    """
    mapping: Mapped | None = None
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


def _read_smaps(pid: int) -> Iterator[str]:
    for member in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process ended
            yield Path(f"/proc/{member}/smaps").read_text()
