"""SnapStart: what happens around a snapshot, and that nothing happens where there is none."""

import random
import sys
from pathlib import Path

import pytest
import snapshot_restore_py

from functions.infer import snapshot
from tests.data_plane import DataPlane


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], list[object]]:
    """What was registered, in the runtime's own registry."""
    before: list[object] = []
    after: list[object] = []
    monkeypatch.setattr(snapshot_restore_py, "_before_snapshot_registry", before)
    monkeypatch.setattr(snapshot_restore_py, "_after_restore_registry", after)
    return before, after


def test_a_restored_environment_asks_for_its_aliases_again_and_draws_its_own_numbers(
    tmp_path: Path, hooks: tuple[list[object], list[object]]
) -> None:
    plane = DataPlane(tmp_path)
    plane.register("m")
    closed: list[int] = []
    assert snapshot.register_hooks(
        plane.resolver, [lambda: closed.append(1), lambda: closed.append(2)]
    )
    plane.resolver.resolve("m", "latest")

    for function, args, kwargs in snapshot_restore_py.get_before_snapshot():
        function(*args, **kwargs)
    assert closed == [1, 2]
    state = random.getstate()
    plane.register("m")
    assert plane.resolver.resolve("m", "latest").version.number == 1
    for function, args, kwargs in snapshot_restore_py.get_after_restore():
        function(*args, **kwargs)

    assert plane.resolver.resolve("m", "latest").version.number == 2
    assert random.getstate() != state


def test_a_runtime_without_hooks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)

    assert not snapshot.register_hooks(DataPlane(tmp_path).resolver, [])
