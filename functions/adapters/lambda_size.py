"""Limits that follow from a Lambda function's memory size."""

import math
import os
import time
from pathlib import Path

MB = 1024 * 1024
OUTSIDE_MB = 128  # resident, but no private writable memory: code of libraries, Lambda's own processes, page tables
PROCESS_MB = (
    48  # what Python and ONNX Runtime's library take before the first model (measured: 39-42 MB)
)
MODELS_SHARE = 0.6  # of the rest; requests need memory too
INIT_SECONDS = 10  # what Lambda gives an environment to start, before it starts it once more,
PREPARED_SECONDS = (
    60  # and what we take where it is started before there is a request: there are 15 minutes
)
INIT_RESERVE_SECONDS = 2.5  # of the former: what comes before the process and after the preloading
MB_PER_CPU = 1769  # Lambda's share


def threads_for(memory_mb: int) -> int:
    """How many CPUs a function with `memory_mb` has.

    >>> threads_for(512)
    1
    """
    return max(1, min(round(memory_mb / MB_PER_CPU), len(os.sched_getaffinity(0))))


def ceiling_bytes(memory_mb: int) -> int:
    """How much private writable memory the process of a function with `memory_mb` may have.

    >>> ceiling_bytes(3008) // MB, ceiling_bytes(128) // MB
    (2880, 64)
    """
    return max(memory_mb - OUTSIDE_MB, memory_mb // 2) * MB


def models_bytes(memory_mb: int) -> int:
    """How much of it models may take.

    >>> models_bytes(3008) // MB, models_bytes(512) // MB
    (1699, 201)
    """
    return int(MODELS_SHARE * max(0, ceiling_bytes(memory_mb) - PROCESS_MB * MB))


def memory_mb_for(resident_bytes: int, peak_bytes: int) -> int:
    """The smallest function that serves a model which keeps `resident_bytes` and takes `peak_bytes` at the most.

    >>> memory_mb_for(100 * MB, 120 * MB), models_bytes(343) // MB
    (343, 100)
    >>> memory_mb_for(1 * MB, 500 * MB), memory_mb_for(0, 0)
    (676, 96)
    """
    models = math.ceil(resident_bytes / MODELS_SHARE / MB)
    process = PROCESS_MB + max(models, math.ceil(peak_bytes / MB))
    return min(process + OUTSIDE_MB, 2 * process)  # the inverse of `ceiling_bytes`


def init_seconds(initialization: str) -> float:
    """How long INIT may go on, by Lambda's word for what kind of start this is."""
    if initialization != "on-demand":
        return PREPARED_SECONDS
    return max(0.0, INIT_SECONDS - INIT_RESERVE_SECONDS - _process_age())


def _process_age() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
