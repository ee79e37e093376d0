"""Lambda SnapStart: what may not live on in an environment that is restored from a snapshot, perhaps days later."""

import gc
import random
from collections.abc import Callable, Iterable

from functions.core.registry.resolver import Resolver


def prepare(resolver: Resolver, close: Iterable[Callable[[], object]]) -> bool:
    """Have `close` called before the snapshot, and names forgotten and random numbers drawn anew after each restore.

    Returns whether this runtime has such hooks. Models stay: they are kept by their content.
    """
    try:
        from snapshot_restore_py import register_after_restore, register_before_snapshot
    except ImportError:
        return False
    connections = tuple(close)

    def before() -> None:
        for one in connections:
            one()
        gc.collect()

    def after() -> None:
        random.seed()
        resolver.forget()

    register_before_snapshot(before)
    register_after_restore(after)
    return True
