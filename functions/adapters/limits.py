"""What of a function's memory the handler process and its models may take."""

import ctypes
import math
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MB = 1024 * 1024
OUTSIDE_MB = 128  # resident, but no private writable memory: code of libraries, Lambda's own processes, page tables
PROCESS_MB = 48  # what Python and ONNX Runtime's library take before the first model (measured: 39-42 MB)
MODELS_SHARE = 0.6  # of the rest; requests need memory too
INIT_SECONDS = 10  # what Lambda gives an environment to start, before it starts it once more,
PREPARED_SECONDS = 60  # and what we take where it is started before there is a request: there are 15 minutes
INIT_RESERVE_SECONDS = 2.5  # of the former: what comes before the process and after the preloading
MB_PER_CPU = 1769  # Lambda's share
STACK_KB = 512  # of a native thread, as on macOS; each session has as many threads as the function has CPUs, less one
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LOADING_KB, RUNNING_MB = 64, 32  # from which size an allocation gets pages of its own
_libc: Any = ctypes.CDLL(None)


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


def limit_memory(limit_bytes: int) -> None:
    """Make every allocation of this process beyond `limit_bytes` fail, so that one request cannot end the environment.

    RLIMIT_DATA counts what RLIMIT_AS does except code, read-only maps and reserved addresses, which cost nothing.
    """
    keep_one_heap()
    keep_stacks_small()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def keep_one_heap() -> None:
    """Let all threads allocate from one heap: models are loaded in threads, and glibc keeps what a heap has freed.

    48 loads of 16 MB models with room for two kept 212-276 MB; from one heap 48-134 MB, as fast.
    """
    _mallopt(M_ARENA_MAX, 1)


def keep_stacks_small() -> None:
    """Let native threads reserve 0.5 MB and not 8, which RLIMIT_DATA counts: 341 sessions of two threads filled 2.8 GB.

    Threads of Python get 2 MB, but for those that load models. The sandbox does the same: what overflows there is
    rejected.
    """
    threading.stack_size(2 * MB)
    if hasattr(_libc, "pthread_setattr_default_np"):  # glibc's
        attributes = ctypes.create_string_buffer(256)  # a pthread_attr_t has 56 bytes, or 64
        _libc.pthread_attr_init(attributes)
        _libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(STACK_KB * 1024))
        _libc.pthread_setattr_default_np(attributes)
        _libc.pthread_attr_destroy(attributes)


@contextmanager
def pages_of_their_own() -> Iterator[None]:
    """While in here, give what is allocated pages of its own, which go back to the system as soon as it is freed.

    For the weights of a model. What requests allocate comes from the heap, before and after: that is faster (a tenth
    for ResNet-50), but a heap keeps what is freed. Without this, 600 loads of random sizes into 100 MB held 212 MB.
    One thread at a time.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)  # what requests and evicted models have left
    _mallopt(M_MMAP_THRESHOLD, LOADING_KB * 1024)
    try:
        yield
    finally:
        _mallopt(M_MMAP_THRESHOLD, RUNNING_MB * MB)
        _mallopt(M_TRIM_THRESHOLD, 2 * RUNNING_MB * MB)


def _mallopt(parameter: int, value: int) -> None:
    if hasattr(_libc, "mallopt"):  # glibc's
        _libc.mallopt(parameter, value)
