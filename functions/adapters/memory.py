"""What of a function's memory the handler process and its models may take."""

import ctypes
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from functions.adapters.lambda_size import MB

STACK_KB = 512  # of a native thread, as on macOS; each session has as many threads as the function has CPUs, less one
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LOADING_KB, RUNNING_MB = 64, 32  # from which size an allocation gets pages of its own
_libc: Any = ctypes.CDLL(None)


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
