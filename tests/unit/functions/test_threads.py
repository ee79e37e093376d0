"""Threads with other stacks: one at a time changes the process's size."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from functions.core.threads import start_thread

MB = 1024 * 1024


@pytest.fixture
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
def test_threads_that_start_at_once_have_their_own_sizes() -> None:
    default = threading.stack_size()
    seen: list[tuple[int, int]] = []

    class Started(threading.Thread):
        def __init__(self, wanted: int) -> None:
            super().__init__()
            self.wanted = wanted

        def start(self) -> None:
            time.sleep(0)  # lets the others run, as a start does
            seen.append((self.wanted, threading.stack_size()))

    def start_many(stack_bytes: int) -> None:
        for _ in range(300):
            start_thread(Started(stack_bytes), stack_bytes)

    starters = [threading.Thread(target=start_many, args=(size * MB,)) for size in (1, 8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()

    assert len(seen) == 600
    assert all(wanted == size for wanted, size in seen)
    assert threading.stack_size() == default


def test_a_thread_that_cannot_start_leaves_the_size() -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    default = threading.stack_size()
    with pytest.raises(RuntimeError, match="can't start"):
        start_thread(Refused(), 8 * MB)
    assert threading.stack_size() == default
