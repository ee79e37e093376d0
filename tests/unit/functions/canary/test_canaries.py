"""Canaries of aliases in a registry in memory, and the judge's looks at them."""

import io
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aws_lambda_powertools.logging import Logger

from functions.core.canary.canaries import Canaries, canary_of
from functions.core.canary.judge import Arm
from functions.core.canary.verdict import Action, Verdict
from functions.core.catalog.decisions import Decisions
from functions.core.errors import InvalidRequest, ModelNotFound, StateConflict, Unavailable
from functions.core.registry.version import Alias
from functions.core.traffic.canary import Canary, Settings
from functions.core.traffic.traffic import Traffic, Weight, split
from functions.judge.handler import JudgeHandler
from tests.data_plane import Context
from tests.fakes import MemoryTable
from tests.unit.functions.registry.versions import (
    make_registry,
    make_releases,
    ready,
    rejected,
    source,
)

SETTINGS = Settings(steps=(10, 50), bake_seconds=60, min_samples=100, max_age_seconds=3600)
EQUAL = Arm(2000, 2), Arm(200, 0)
ERRING = Arm(2000, 2), Arm(200, 60)


@dataclass
class World:
    """Model m: versions 1 and 2 READY, 3 REJECTED; prod points at 1. Time stands still."""

    table: MemoryTable = field(default_factory=MemoryTable)
    minutes: int = 0
    arms: tuple[Arm, Arm] = EQUAL
    launches: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry, self.releases = make_registry(self.table), make_releases(self.table)
        for key, end in (("a", ready), ("b", ready), ("c", rejected)):
            self.registry.finish(end(self.registry.claim("m", source(key))))
        self.canaries = Canaries(self.releases, self.now)
        logger = Logger(service=f"judge-{uuid.uuid4()}", stream=io.StringIO())
        self.judge = JudgeHandler(self.canaries, self._read_arms, self.now, logger)

    def now(self) -> str:
        return f"2026-11-30T10:{self.minutes:02}:00.000Z"

    def _read_arms(self, _model: str, split_id: str, *_: int) -> tuple[Arm, Arm]:
        self.splits.append(split_id)
        return self.arms

    def start(self, version: int = 2, settings: Settings = SETTINGS, **options: Any) -> Alias:
        launch: Callable[[str, Mapping[str, Any]], None] = self.launches.__setitem__
        return self.canaries.start("m", "prod", version, settings, launch, actor="ann", **options)

    @property
    def alias(self) -> Alias:
        alias = self.registry.alias("m", "prod")
        assert alias
        return alias

    @property
    def canary(self) -> Canary | None:
        return canary_of(self.alias)

    @property
    def last_audit(self) -> dict[str, Any]:
        return dict(self.registry.audit("m")[-1])

    def look(self, launched: Mapping[str, Any] | None = None) -> dict[str, Any]:
        event = launched or next(iter(self.launches.values()))
        return self.judge(json.loads(json.dumps(event)), Context())


@pytest.fixture
def world() -> World:
    return World()


def test_a_canary_to_an_equal_version_is_promoted_in_steps(world: World) -> None:
    world.start()
    shares = []
    for world.minutes in (0, 1, 2):
        assert world.alias.traffic
        shares.append(world.alias.traffic.candidates)
        last = world.look()

    assert shares == [{2: 1000}, {2: 1000}, {2: 5000}]
    assert (world.alias.version, world.alias.previous, world.alias.traffic) == (2, 1, None)
    assert not last["continues"]
    assert [record["action"] for record in world.registry.audit("m")][-3:] == [
        "start_canary",
        "step_canary",
        "promote_canary",
    ]
    assert world.last_audit["actor"] == "judge"
    assert world.last_audit["after"]["reason"] == (
        "no difference found after 200 requests in step 2 of 2 (50 %)"
    )


def test_a_canary_to_a_worse_version_is_rolled_back_in_one_write(world: World) -> None:
    world.start()
    revision = world.alias.revision
    world.arms = ERRING

    assert not world.look()["continues"]
    assert (world.alias.version, world.alias.traffic) == (1, None)
    assert world.alias.revision == revision + 1
    audit = world.last_audit
    assert (audit["action"], audit["actor"]) == ("roll_back_canary", "judge")
    assert audit["after"]["reason"].startswith("60 of 200 requests failed (30 %)")
    assert audit["after"]["numbers"]["candidate_errors"] == 60


def test_every_step_is_counted_under_an_id_of_its_own(world: World) -> None:
    world.start()
    for world.minutes in (1, 2):
        world.look()

    assert len(set(world.splits)) == 2


def test_the_execution_is_launched_with_the_first_wait(world: World) -> None:
    world.start()

    canary = world.canary
    assert canary
    assert world.launches == {
        canary.id: {
            "model": "m",
            "alias": "prod",
            "canary": canary.id,
            "launched_at": "2026-11-30T10:00:00.000Z",
            "wait_seconds": 6,
        }
    }


def test_without_a_state_machine_no_canary_starts(world: World) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("the state machine does not answer")

    with pytest.raises(Unavailable):
        world.canaries.start("m", "prod", 2, SETTINGS, refuse, actor="ann")
    assert world.canary is None


def test_repeated_and_late_looks_change_nothing(world: World) -> None:
    world.start()
    canary = world.canary
    assert canary
    world.minutes = 1
    world.look()
    stepped = world.alias

    assert not world.canaries.apply("m", "prod", canary, Verdict(Action.STEP, "again"))
    assert not world.canaries.apply("m", "prod", canary, Verdict(Action.ROLL_BACK, "late"))
    assert world.alias == stepped
    world.canaries.stop("m", "prod", actor="ann")
    stopped = world.alias
    world.minutes = 5
    world.arms = ERRING
    assert not world.look()["continues"]
    assert world.alias == stopped


@pytest.mark.parametrize("decision", ["move", "rollback", "traffic", "stop", "promote"])
def test_a_persons_decision_ends_the_canary(world: World, decision: str) -> None:
    world.start()
    decisions: dict[str, Callable[[], Alias]] = {
        "move": lambda: world.releases.move_alias("m", "prod", 2, actor="ann"),
        "rollback": lambda: world.releases.rollback("m", "prod", actor="ann"),
        "traffic": lambda: world.releases.set_traffic("m", "prod", None, actor="ann"),
        "stop": lambda: world.canaries.stop("m", "prod", actor="ann"),
        "promote": lambda: world.canaries.promote("m", "prod", actor="ann"),
    }
    decisions[decision]()
    decided = world.alias

    world.minutes = 2
    assert world.look()["continues"] is False
    assert (world.alias, world.canary) == (decided, None)
    assert decided.version == (2 if decision in ("move", "promote") else 1)


@pytest.mark.parametrize(
    "traffic",
    [split(1, 2, 20), split(1, 2, 0), split(1, 2, 10, shadow=Weight(2, 500))],
    ids=["weights", "nothing", "shadow"],
)
def test_other_traffic_is_refused_while_a_canary_runs(world: World, traffic: Traffic) -> None:
    started = world.start()

    with pytest.raises(StateConflict, match=r"has the canary canary-\w+ of version 2: stop or"):
        world.releases.set_traffic("m", "prod", traffic, actor="ann")
    assert world.alias == started


def test_an_execution_that_is_ahead_of_its_canary_waits(world: World) -> None:
    early = {
        "model": "m",
        "alias": "prod",
        "canary": "canary-x",
        "launched_at": world.now(),
        "wait_seconds": 6,
    }

    assert world.look(early)["continues"]
    world.minutes = 2
    assert not world.look(early)["continues"]


def test_a_look_that_loses_a_race_looks_again(world: World) -> None:
    world.start()
    world.minutes = 1
    world.canaries.apply = lambda *_: False  # type: ignore[method-assign]

    assert world.look()["continues"]


def test_a_candidate_that_is_damaged_meanwhile_is_rolled_back(world: World) -> None:
    world.start()
    world.registry.mark_damaged("m", 2, "blob is missing", actor="reconcile")
    world.minutes = 1

    world.look()
    assert world.alias.traffic is None
    assert not world.look()["continues"]
    assert "is damaged: blob is missing" in world.last_audit["after"]["reason"]


def test_the_canary_of_a_model_that_is_archived_meanwhile_is_rolled_back(world: World) -> None:
    world.start()
    Decisions(world.table, world.now).archive_model("m", actor="ann")
    world.minutes = 1

    world.look()
    assert (world.alias.version, world.alias.traffic) == (1, None)
    assert "model 'm' is archived: restore it first" in world.last_audit["after"]["reason"]


def test_the_next_look_knows_since_when_requests_are_lost(world: World) -> None:
    world.start()
    world.arms = Arm(1000, drawn=1000), Arm(100, drawn=20)
    world.minutes = 1
    first = world.look()
    world.minutes = 2

    second = world.look(first)
    assert (first["continues"], first["lost_since"]) == (True, "2026-11-30T10:01:00.000Z")
    assert not second["continues"]
    assert second["verdict"].startswith("requests of the candidate are lost")


def test_looks_become_rarer(world: World) -> None:
    world.start(settings=Settings(bake_seconds=60, min_samples=1000, max_age_seconds=7200))
    waits = []
    for world.minutes in (0, 59):
        waits.append(world.look()["wait_seconds"])

    assert waits == [6, 17]


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        (lambda w: w.start(1), StateConflict, "points at version 1 already"),
        (lambda w: w.start(3), StateConflict, "version 3 of 'm' is REJECTED"),
        (lambda w: w.start(9), ModelNotFound, "version 9 is not found"),
        (lambda w: w.start(2, expected=7), StateConflict, "is at revision 1, not 7"),
        (lambda w: w.start(2, Settings(steps=(0,))), InvalidRequest, "steps"),
        (lambda w: (w.start(), w.start()), StateConflict, "has a canary: end it first"),
        (
            lambda w: (w.releases.set_traffic("m", "prod", split(1, 2, 5), actor="a"), w.start()),
            StateConflict,
            "has a traffic split: end it first",
        ),
        (lambda w: w.canaries.stop("m", "prod", actor="a"), StateConflict, "has no canary"),
        (lambda w: w.canaries.promote("m", "beta", actor="a"), ModelNotFound, "'beta'"),
    ],
)
def test_canaries_that_cannot_be_are_refused(
    world: World, start: Callable[[World], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        start(world)
