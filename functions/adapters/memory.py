"""Process memory limit, and malloc and stack settings that save memory."""

import ctypes
import gc
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from functions.adapters.lambda_size import MB

NATIVE_STACK_KB = 512  # stack of a native thread, as on macOS; a model has one per CPU, less 1
PYTHON_STACK_MB = 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
# Size from which malloc maps pages for an allocation, instead of taking it from the heap.
MMAP_WHILE_LOADING_KB, MMAP_WHILE_RUNNING_MB = 64, 32
_libc: Any = ctypes.CDLL(None)


def limit_memory(limit_bytes: int) -> None:
    """Limit this process's memory: larger allocations fail and do not kill it.

    A request that needs too much then fails alone, and the environment goes on.

    RLIMIT_DATA counts what RLIMIT_AS does except code, read-only maps and reserved addresses, which
    cost nothing.
    """
    keep_one_heap()
    keep_stacks_small()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def keep_one_heap() -> None:
    """Make all threads allocate from one malloc heap, to save memory.

    Models are loaded in threads, and glibc keeps freed memory in the heap of each. 48 loads of
    16 MB models with room for two kept 212-276 MB; with one heap 48-134 MB, as fast.
    """
    _mallopt(M_ARENA_MAX, 1)


def keep_stacks_small() -> None:
    """Set thread stacks to 0.5 MB (native) and 2 MB (Python).

    The default of 8 MB counts towards RLIMIT_DATA: 341 sessions of two threads filled 2.8 GB. The
    sandbox has the same stacks, so a model that overflows them is rejected at registration.
    """
    threading.stack_size(PYTHON_STACK_MB * MB)
    if hasattr(_libc, "pthread_setattr_default_np"):  # only in glibc
        attributes = ctypes.create_string_buffer(256)  # a pthread_attr_t has 56 or 64 bytes
        _libc.pthread_attr_init(attributes)
        _libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(NATIVE_STACK_KB * 1024))
        _libc.pthread_setattr_default_np(attributes)
        _libc.pthread_attr_destroy(attributes)


def data_bytes() -> int:
    """Return this process's private writable memory in bytes, as RLIMIT_DATA counts it."""
    pages = Path("/proc/self/statm").read_bytes().split()[5]  # proc_pid_statm(5): data + stack
    return int(pages) * resource.getpagesize()


def is_restored(level_bytes: int) -> bool:
    """Trim the heap; return True if memory use is at most `level_bytes`.

    Memory that stays is in use or fragmented: free pieces between small objects, too small to load
    a model into.
    """
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
    return data_bytes() <= level_bytes


@contextmanager
def mmap_large_allocations() -> Iterator[None]:
    """Make malloc use mmap above 64 KB while a model is loaded.

    Mapped pages return to the system as soon as they are freed; a heap keeps them. Without this,
    600 loads of random sizes into 100 MB held 212 MB. Requests, before and after, allocate from
    the heap, which is faster (a tenth for ResNet-50). One thread at a time.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)  # return memory that requests and evicted models have freed
    _mallopt(M_MMAP_THRESHOLD, MMAP_WHILE_LOADING_KB * 1024)
    try:
        yield
    finally:
        _mallopt(M_MMAP_THRESHOLD, MMAP_WHILE_RUNNING_MB * MB)
        _mallopt(M_TRIM_THRESHOLD, 2 * MMAP_WHILE_RUNNING_MB * MB)


def _mallopt(parameter: int, value: int) -> None:
    if hasattr(_libc, "mallopt"):  # only in glibc
        _libc.mallopt(parameter, value)
