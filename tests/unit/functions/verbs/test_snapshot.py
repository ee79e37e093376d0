"""SnapStart hooks before a snapshot and after a restore."""

import random
import sys
from pathlib import Path

import pytest
import snapshot_restore_py

from functions.core.access.grants import Scope
from functions.infer import snapshot
from tests.data_plane import DataPlane


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], list[object]]:
    """Return the lists in which the runtime keeps registered hooks."""
    before: list[object] = []
    after: list[object] = []
    monkeypatch.setattr(snapshot_restore_py, "_before_snapshot_registry", before)
    monkeypatch.setattr(snapshot_restore_py, "_after_restore_registry", after)
    return before, after


def test_a_restore_clears_caches_and_reseeds_random(
    tmp_path: Path, hooks: tuple[list[object], list[object]]
) -> None:
    plane = DataPlane(tmp_path)
    plane.register("m")
    closed: list[int] = []
    assert snapshot.register_hooks(
        [lambda: closed.append(1), lambda: closed.append(2)],
        [plane.resolver.invalidate, plane.gate.invalidate],
    )
    plane.resolver.resolve("m", "latest")
    key = plane.create_key(Scope.INFER)
    plane.gate.verify(key)

    for function, args, kwargs in snapshot_restore_py.get_before_snapshot():
        function(*args, **kwargs)
    assert closed == [1, 2]
    state = random.getstate()
    plane.register("m")
    assert plane.resolver.resolve("m", "latest").version.number == 1
    for function, args, kwargs in snapshot_restore_py.get_after_restore():
        function(*args, **kwargs)

    assert plane.resolver.resolve("m", "latest").version.number == 2
    reads = plane.table.reads
    plane.gate.verify(key)
    assert plane.table.reads == reads + 1
    assert random.getstate() != state


def test_hooks_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)

    assert not snapshot.register_hooks([], [])
