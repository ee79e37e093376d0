"""Bandwidth of main memory, as one thread reads it."""

import ctypes
import mmap
import time

MB = 1024 * 1024
SIZE = 256 * MB  # more than a processor's caches


class Bandwidth:
    """Reader of two equal blocks of memory, which the C library compares."""

    def __init__(self) -> None:
        self._blocks = [mmap.mmap(-1, SIZE // 2) for _ in range(2)]
        for block in self._blocks:
            block.write(b"\1" * len(block))
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    def bytes_per_cpu_second(self) -> float:
        """Return the bytes that are read in a second of CPU time."""
        views = [ctypes.c_char.from_buffer(block) for block in self._blocks]
        started = time.process_time()
        if self._compare(*map(ctypes.addressof, views), SIZE // 2):
            raise RuntimeError("the blocks differ")
        return SIZE / (time.process_time() - started)
