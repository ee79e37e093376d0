"""Threads whose stack has another size than the process's default."""

import threading

_size = threading.Lock()  # the size of new threads' stacks is one for the process


def start_thread(thread: threading.Thread, stack_bytes: int) -> None:
    """Start a thread with a stack of `stack_bytes`.

    Raises:
        RuntimeError: there is no memory for its stack.
    """
    with _size:
        before = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
