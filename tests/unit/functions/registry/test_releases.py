"""Rules of aliases, traffic and archiving, on a table in memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from functions.core.errors import InvalidRequest, ModelNotFound, NotServable, StateConflict
from functions.core.registry.table import Item, Put
from functions.core.registry.version import Reason, State
from functions.core.traffic.traffic import Traffic, Weight, split
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


# --- traffic


def test_a_split_has_an_id_and_keeps_the_version_of_the_alias(world: World) -> None:
    alias = world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="ann", expected=1)

    assert (alias.version, alias.previous, alias.revision) == (1, None, 2)
    assert alias.traffic is not None
    assert len(alias.traffic.id) == 16
    assert world.registry.alias("m", "prod") == alias
    document = alias.traffic.to_document()
    last = world.registry.audit("m")[-1]
    assert (last["action"], last["actor"], last["version"]) == ("set_traffic", "ann", 1)
    assert last["before"] == {"aliases": {"prod": 1}, "traffic": {"prod": None}}
    assert last["after"] == {"aliases": {"prod": 1}, "traffic": {"prod": document}}


def test_a_new_split_replaces_the_whole_object_under_a_new_id(world: World) -> None:
    shadowed = split(1, 2, 10, shadow=Weight(2, 500), sticky="request")
    first = world.releases.set_traffic("m", "prod", shadowed, actor="ann")
    second = world.releases.set_traffic("m", "prod", split(1, 2, 20), actor="ann")

    assert first.traffic is not None
    assert second.traffic is not None
    assert second.traffic.id != first.traffic.id
    assert second.traffic == split(1, 2, 20, id=second.traffic.id)


def test_the_same_split_again_changes_nothing(world: World) -> None:
    before = world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="ann")

    assert world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="bob") == before


@pytest.mark.parametrize("traffic", [None, Traffic((Weight(1, 10_000),))], ids=["none", "plain"])
def test_all_traffic_to_the_own_version_is_no_object(world: World, traffic: Traffic | None) -> None:
    world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="ann")

    ended = world.releases.set_traffic("m", "prod", traffic, actor="ann")

    assert (ended.version, ended.traffic, ended.revision) == (1, None, 3)
    assert world.registry.audit("m")[-1]["after"]["traffic"] == {"prod": None}


@pytest.mark.parametrize(
    ("alias", "traffic", "error", "text"),
    [
        ("latest", split(2, 1, 10), InvalidRequest, "latest is the READY version uploaded last"),
        ("Prod", split(1, 2, 10), InvalidRequest, "'Prod' is no alias"),
        ("beta", split(1, 2, 10), ModelNotFound, "alias 'beta' is not found"),
        ("prod", split(1, 9, 10), ModelNotFound, "'m' version 9 is not found"),
        ("prod", split(1, 3, 0), StateConflict, "version 3 of 'm' is REJECTED, not READY: the"),
        ("prod", split(1, 2, 10, shadow=Weight(4, 1)), StateConflict, "version 4 .* is PENDING"),
        ("prod", split(2, 1, 10, shadow=Weight(1, 1)), InvalidRequest, "shadow.version: 1 is"),
        ("prod", Traffic((Weight(2, 10_000),)), InvalidRequest, "weights: version 1, which the"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_split_that_is_refused_changes_nothing(
    world: World, alias: str, traffic: Traffic, error: type[Exception], text: str
) -> None:
    before = world.table.items.copy()

    with pytest.raises(error, match=text):
        world.releases.set_traffic("m", alias, traffic, actor="ann")

    assert world.table.items == before


def test_a_lost_race_names_the_current_revision(world: World) -> None:
    world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="ann", expected=1)

    for change in (
        lambda: world.releases.set_traffic("m", "prod", None, actor="bob", expected=1),
        lambda: world.releases.move_alias("m", "prod", 2, actor="bob", expected=1),
        lambda: world.releases.rollback("m", "prod", actor="bob", expected=1),
    ):
        with pytest.raises(StateConflict, match="at revision 2, not 1: look again") as refused:
            change()
        assert refused.value.revision == 2


def test_a_damaged_version_gets_no_traffic(world: World) -> None:
    world.registry.mark_damaged("m", 2, "model.onnx is missing in storage", actor="reconcile")

    with pytest.raises(StateConflict, match="version 2 of 'm' is damaged: model.onnx is missing"):
        world.releases.set_traffic("m", "prod", split(1, 2, 0), actor="ann")


@pytest.mark.parametrize("target", [1, 2])
def test_a_move_ends_a_split(world: World, target: int) -> None:
    world.releases.set_traffic("m", "prod", split(1, 2, 10), actor="ann")

    moved = world.releases.move_alias("m", "prod", target, actor="ann")

    assert (moved.version, moved.traffic, moved.revision) == (target, None, 3)
    assert moved.previous == (1 if target == 2 else None)
    last = world.registry.audit("m")[-1]
    assert last["before"]["traffic"]["prod"]["weights"][1] == {"version": 2, "weight": 10}
    assert last["after"]["traffic"] == {"prod": None}


def test_a_rollback_ends_a_split_before_it_goes_back(world: World) -> None:
    world.releases.move_alias("m", "prod", 2, actor="ann")
    world.releases.set_traffic("m", "prod", split(2, 1, 50), actor="ann")
    world.registry.mark_damaged("m", 2, "model.onnx is missing in storage", actor="reconcile")

    ended = world.releases.rollback("m", "prod", actor="ann")
    assert (ended.version, ended.previous, ended.traffic) == (2, 1, None)
    assert world.releases.rollback("m", "prod", actor="ann").version == 1


def test_versions_that_get_traffic_are_not_archived(world: World) -> None:
    world.registry.finish(ready(world.registry.claim("m", source("e"))))
    shadowed = Traffic((Weight(1, 10_000),), shadow=Weight(2, 500))
    for traffic in (split(1, 2, 0), shadowed):
        world.releases.set_traffic("m", "prod", traffic, actor="ann")
        with pytest.raises(StateConflict, match="version 2 of 'm' is in the traffic of prod: "):
            world.releases.archive("m", 2, actor="ann")

    world.releases.rollback("m", "prod", actor="ann")
    assert world.releases.archive("m", 2, actor="ann").state is State.ARCHIVED


def test_a_split_resolves_to_the_side_of_the_caller(world: World) -> None:
    alias = world.releases.set_traffic(
        "m", "prod", split(1, 2, 50, shadow=Weight(2, 500)), actor="ann"
    )
    reads = world.table.reads
    resolved = world.registry.resolve("m", None)
    assert world.table.reads == reads + 2  # as many as without traffic

    sides = [resolved.side_of(f"user-{n}", "key", "request") for n in range(100)]

    assert resolved.traffic == alias.traffic
    assert {(side.version.number, side.variant) for side in sides} == {
        (1, "stable"),
        (2, "candidate"),
    }
    shadows = {(side.variant, side.shadow and side.shadow.number) for side in sides}
    assert shadows == {("stable", 2), ("candidate", None)}
    assert resolved.side_of("ann", "a", "b") == resolved.side_of("ann", "c", "d")
    assert resolved.side_of(None, "ann", "a") == resolved.side_of("ann", "c", "d")
    assert resolved.side_of(None, "", "ann") == resolved.side_of("ann", "c", "d")


def test_by_request_neither_user_nor_key_decides(world: World) -> None:
    world.releases.set_traffic("m", "prod", split(1, 2, 50, sticky="request"), actor="ann")
    resolved = world.registry.resolve("m", "prod")

    sides = [resolved.side_of("ann", "key", f"request-{n}").variant for n in range(100)]

    assert {"stable", "candidate"} == {*sides}


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
