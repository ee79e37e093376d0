"""Rules of aliases and archiving, on a table in memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from functions.core.errors import InvalidRequest, ModelNotFound, NotServable, StateConflict
from functions.core.registry.table import Item, Put
from functions.core.registry.version import Reason, State
from tests.fakes import MemoryTable
from tests.unit.functions.registry.versions import (
    make_registry,
    make_releases,
    ready,
    rejected,
    source,
)


class World:
    """Model m: versions 1 and 2 READY, 3 REJECTED, 4 PENDING; prod → 1, latest → 2."""

    def __init__(self) -> None:
        self.table = MemoryTable()
        self.registry = make_registry(self.table)
        self.releases = make_releases(self.table)
        for key, end in (("a", ready), ("b", ready), ("c", rejected)):
            self.registry.finish(end(self.registry.claim("m", source(key))))
        self.registry.claim("m", source("d"))


@pytest.fixture
def world() -> World:
    return World()


def test_an_alias_moves_and_keeps_its_previous_version(world: World) -> None:
    moved = world.releases.move_alias("m", "prod", 2, actor="ann")

    assert (moved.version, moved.previous, moved.revision) == (2, 1, 2)
    assert world.registry.alias("m", "prod") == moved
    last = world.registry.audit("m")[-1]
    assert (last["action"], last["actor"], last["version"]) == ("move_alias", "ann", 2)
    assert (last["before"], last["after"]) == ({"aliases": {"prod": 1}}, {"aliases": {"prod": 2}})


def test_a_new_alias_begins_at_revision_one(world: World) -> None:
    assert world.releases.move_alias("m", "canary", 2, actor="ann", expected=0).revision == 1


def test_a_move_to_the_same_version_changes_nothing(world: World) -> None:
    before = world.registry.audit("m")

    assert world.releases.move_alias("m", "prod", 1, actor="ann", expected=99).revision == 1
    assert world.registry.audit("m") == before


def test_a_move_from_an_outdated_revision_is_refused(world: World) -> None:
    world.releases.move_alias("m", "prod", 2, actor="ann", expected=1)

    with pytest.raises(
        StateConflict, match="alias canary of 'm' is at revision 0, not 1: look again"
    ):
        world.releases.move_alias("m", "canary", 2, actor="bob", expected=1)


@pytest.mark.parametrize(
    ("alias", "number", "error", "text"),
    [
        ("latest", 1, InvalidRequest, "latest is the READY version uploaded last, by itself"),
        ("7", 1, InvalidRequest, "'7' is no alias"),
        ("Prod\n", 1, InvalidRequest, "is no alias"),
        ("prod", 9, ModelNotFound, "'m' version 9 is not found"),
        (
            "prod",
            3,
            StateConflict,
            "version 3 of 'm' is REJECTED, not READY: the file is no ONNX model",
        ),
        ("prod", 4, StateConflict, "version 4 of 'm' is PENDING"),
    ],
)
def test_moves_that_are_refused_change_nothing(
    world: World, alias: str, number: int, error: type[Exception], text: str
) -> None:
    before = world.registry.audit("m"), world.registry.aliases("m")

    with pytest.raises(error, match=text):
        world.releases.move_alias("m", alias, number, actor="ann")

    assert (world.registry.audit("m"), world.registry.aliases("m")) == before


def test_a_second_rollback_undoes_the_first(world: World) -> None:
    world.releases.move_alias("m", "prod", 2, actor="ann")

    assert world.releases.rollback("m", "prod", actor="ann").version == 1
    assert world.releases.rollback("m", "prod", actor="ann").version == 2
    assert [record["action"] for record in world.registry.audit("m")[-2:]] == ["rollback"] * 2


def test_a_rollback_needs_a_previous_version_that_is_ready(world: World) -> None:
    with pytest.raises(StateConflict, match="only ever pointed at version 1"):
        world.releases.rollback("m", "prod", actor="ann")
    with pytest.raises(ModelNotFound):
        world.releases.rollback("m", "nowhere", actor="ann")
    world.releases.move_alias("m", "prod", 2, actor="ann")
    world.releases.archive("m", 1, actor="ann")

    with pytest.raises(StateConflict, match="version 1 of 'm' is ARCHIVED"):
        world.releases.rollback("m", "prod", actor="ann")


def test_ready_and_rejected_versions_are_archived_once(world: World) -> None:
    world.releases.move_alias("m", "prod", 2, actor="ann")

    for number in (1, 3, 1):
        assert world.releases.archive("m", number, actor="ann").state is State.ARCHIVED

    assert [record["action"] for record in world.registry.audit("m")[-3:]] == [
        "move_alias",
        "archive",
        "archive",
    ]
    reason = Reason("NOT_ONNX", "the file is no ONNX model")
    assert world.registry.version("m", 3).reason == reason  # kept after archiving
    with pytest.raises(NotServable, match="version 1 of 'm' is ARCHIVED"):
        world.registry.resolve("m", 1)
    late_event = world.registry.claim("m", source("a"))
    assert late_event.state is State.ARCHIVED


def test_versions_with_an_alias_or_pending_are_not_archived(world: World) -> None:
    world.releases.move_alias("m", "canary", 1, actor="ann")

    with pytest.raises(StateConflict, match="has the aliases canary, prod: move them first"):
        world.releases.archive("m", 1, actor="ann")
    with pytest.raises(StateConflict, match="version 4 of 'm' is PENDING"):
        world.releases.archive("m", 4, actor="ann")
    with pytest.raises(ModelNotFound):
        world.releases.archive("m", 9, actor="ann")


class InterruptedTable(MemoryTable):
    """Table that calls `rival` once, before the read or write number `at` from now on."""

    def __init__(self) -> None:
        super().__init__()
        self.rival: Callable[[], object] | None = None
        self.at = 0

    def _tick(self) -> None:
        self.at -= 1
        if self.at == 0 and self.rival:
            rival, self.rival = self.rival, None
            rival()

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        self._tick()
        return super().get(keys)

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        self._tick()
        return super().query(pk, prefix)

    def transact(self, puts: Sequence[Put]) -> None:
        self._tick()
        super().transact(puts)


@pytest.mark.parametrize("call", range(1, 6))
@pytest.mark.parametrize("first", ["move", "archive"])
def test_an_alias_never_ends_on_a_version_archived_meanwhile(first: str, call: int) -> None:
    table = InterruptedTable()
    registry, releases = make_registry(table), make_releases(table)
    for key in "ab":
        registry.finish(ready(registry.claim("m", source(key))))
    releases.move_alias("m", "prod", 2, actor="ann")
    actions: dict[str, Callable[[], object]] = {
        "move": lambda: releases.move_alias("m", "prod", 1, actor="ann"),
        "archive": lambda: releases.archive("m", 1, actor="bob"),
    }
    second = actions["archive" if first == "move" else "move"]
    done = []

    def attempt(action: Callable[[], object]) -> None:
        with contextlib.suppress(StateConflict):
            done.append(action())

    table.rival, table.at = lambda: attempt(second), call
    attempt(actions[first])

    assert len(done) == 1 or table.rival is not None  # one of them was refused
    assert registry.version("m", registry.aliases("m")["prod"]).state is State.READY
    assert len(registry.audit("m")) == table.items["MODEL#m", "META"]["revision"]


def test_a_damaged_version_is_served_and_gets_no_alias(world: World) -> None:
    world.registry.mark_damaged("m", 2, "model.onnx is missing in storage", actor="reconcile")
    world.registry.mark_damaged("m", 2, "model.onnx is missing in storage", actor="reconcile")

    assert world.registry.resolve("m", 2).version.damaged == "model.onnx is missing in storage"
    with pytest.raises(StateConflict, match="version 2 of 'm' is damaged: model.onnx is missing"):
        world.releases.move_alias("m", "prod", 2, actor="ann")

    world.registry.mark_damaged("m", 2, None, actor="reconcile")
    assert world.releases.move_alias("m", "prod", 2, actor="ann").version == 2
    assert [record["action"] for record in world.registry.audit("m")[-3:]] == [
        "damaged",
        "mended",
        "move_alias",
    ]
