"""Lambda SnapStart hooks: reset connections, cached aliases and the random seed."""

import gc
import random
from collections.abc import Callable, Iterable

from functions.core.registry.resolver import Resolver


def register_hooks(resolver: Resolver, close: Iterable[Callable[[], object]]) -> bool:
    """Register functions that run before Lambda's snapshot and after each restore.

    Before: call every function of `close`, which close connections. After: forget the cached
    aliases and reseed `random`. Cached models stay, because they are identified by their content.
    Returns False in a runtime without such hooks.
    """
    try:
        from snapshot_restore_py import register_after_restore, register_before_snapshot
    except ImportError:
        return False
    close_all = tuple(close)

    def before_snapshot() -> None:
        for close_connections in close_all:
            close_connections()
        gc.collect()

    def after_restore() -> None:
        random.seed()
        resolver.invalidate()

    register_before_snapshot(before_snapshot)
    register_after_restore(after_restore)
    return True
