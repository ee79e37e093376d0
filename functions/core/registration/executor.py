"""Work that goes on beside other work: in threads or, without any, once its result is asked for."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Generic, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """Something that was started. As a context manager: at the end of the block nothing of it runs any more."""

    def __init__(self, work: Callable[[], T], future: "Future[T] | None" = None) -> None:
        self._work = work
        self._future = future

    def result(self) -> T:
        """What came of it, or its exception."""
        return self._future.result() if self._future else self._work()

    def end(self) -> None:
        """Wait until nothing of it runs."""
        if self._future and not self._future.cancel():
            wait([self._future])

    def __enter__(self) -> "Task[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Background:
    """Starts tasks, up to `threads` at a time."""

    def __init__(self, threads: int = 0) -> None:
        self._pool = ThreadPoolExecutor(threads, "background") if threads else None

    def start(self, work: Callable[[], T]) -> Task[T]:
        return Task(work, self._pool.submit(work) if self._pool else None)

    def all(self, works: Iterable[Callable[[], T]]) -> list[T]:
        """The results of all. One that fails keeps those from starting that wait, and no other is left running."""
        with ExitStack() as running:
            tasks = [running.enter_context(self.start(work)) for work in works]
            return [task.result() for task in tasks]
