"""Lambda's INIT time limit, and CPU and memory limits by function size."""

import math
import os
import time
from pathlib import Path

MB = 1024 * 1024
# Resident, but not private writable memory: code of libraries, Lambda's processes, page tables.
OUTSIDE_MB = 128
PROCESS_MB = 48  # Python and ONNX Runtime's library before the first model (measured: 39-42 MB)
MODELS_SHARE = 0.6  # models' part of the memory beyond PROCESS_MB; the rest is for requests
IDLE_MIN_MB = 32  # stacks of threads, caches and gaps in the heap, beyond PROCESS_MB and models
INIT_SECONDS = 10  # Lambda restarts INIT after 10 s
# Part of INIT_SECONDS for Lambda's work before the process starts and ours after preloading.
INIT_RESERVE_SECONDS = 2.5
# Limit of our own if Lambda starts environments ahead of requests: it then allows 15 minutes.
PREPARED_SECONDS = 60
MB_PER_CPU = 1769  # Lambda gives a function one CPU per 1,769 MB


def threads_for(memory_mb: int) -> int:
    """Return the CPU count of a Lambda function from its memory size.

    >>> threads_for(512)
    1
    """
    return max(1, min(round(memory_mb / MB_PER_CPU), len(os.sched_getaffinity(0))))


def ceiling_bytes(memory_mb: int) -> int:
    """Return the private memory, in bytes, a Lambda function's process may use.

    >>> ceiling_bytes(3008) // MB, ceiling_bytes(128) // MB
    (2880, 64)
    """
    return max(memory_mb - OUTSIDE_MB, memory_mb // 2) * MB


def models_bytes(memory_mb: int) -> int:
    """Return the bytes that loaded models may take in a Lambda function.

    >>> models_bytes(3008) // MB, models_bytes(512) // MB
    (1699, 201)
    """
    return int(MODELS_SHARE * max(0, ceiling_bytes(memory_mb) - PROCESS_MB * MB))


def idle_bytes(memory_mb: int, held_bytes: int) -> int:
    """Return the private memory limit of an idle process, in bytes.

    `held_bytes` is the size of its loaded models. Memory above the limit is reserved for requests
    and further models.

    >>> idle_bytes(3008, 0) // MB, idle_bytes(512, 100 * MB) // MB
    (228, 180)
    """
    return PROCESS_MB * MB + held_bytes + max(IDLE_MIN_MB * MB, ceiling_bytes(memory_mb) // 16)


def memory_mb_for(resident_bytes: int, peak_bytes: int) -> int:
    """Return the smallest Lambda memory size, in MB, that serves a model.

    The model keeps `resident_bytes` and takes at most `peak_bytes`. The result is the inverse of
    `ceiling_bytes` and `models_bytes`.

    >>> memory_mb_for(100 * MB, 120 * MB), models_bytes(343) // MB
    (343, 100)
    >>> memory_mb_for(1 * MB, 500 * MB), memory_mb_for(0, 0)
    (676, 96)
    """
    models = math.ceil(resident_bytes / MODELS_SHARE / MB)
    process = PROCESS_MB + max(models, math.ceil(peak_bytes / MB))
    return min(process + OUTSIDE_MB, 2 * process)


def init_seconds(initialization: str) -> float:
    """Return the seconds that Lambda's INIT phase may still take.

    `initialization` is AWS_LAMBDA_INITIALIZATION_TYPE.
    """
    if initialization != "on-demand":
        return PREPARED_SECONDS
    return max(0.0, INIT_SECONDS - INIT_RESERVE_SECONDS - _process_age())


def _process_age() -> float:
    """Return this process's age in seconds, from field 22 of proc_pid_stat(5)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
