"""Lambda SnapStart hooks: reset connections, caches of the registry, random seed."""

import gc
import random
from collections.abc import Callable, Iterable


def register_hooks(
    close: Iterable[Callable[[], object]], invalidate: Iterable[Callable[[], object]]
) -> bool:
    """Register functions that run before Lambda's snapshot and after each restore.

    Before: call every function of `close`, which close connections. After: reseed `random` and call
    every function of `invalidate`, which forget cached aliases and keys. Cached models stay,
    because they are identified by their content.
    Returns False in a runtime without such hooks.
    """
    try:
        from snapshot_restore_py import register_after_restore, register_before_snapshot
    except ImportError:
        return False
    close_all, invalidate_all = tuple(close), tuple(invalidate)

    def before_snapshot() -> None:
        for close_connections in close_all:
            close_connections()
        gc.collect()

    def after_restore() -> None:
        random.seed()
        for forget in invalidate_all:
            forget()

    register_before_snapshot(before_snapshot)
    register_after_restore(after_restore)
    return True
