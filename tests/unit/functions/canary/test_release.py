"""Policies at the end of a registration: prod moves, gets a canary, or stays with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from functions.core.canary.canaries import canary_of
from functions.core.canary.release import PolicyRelease
from functions.core.catalog.decisions import Decisions
from functions.core.errors import Unavailable
from functions.core.records import replace
from functions.core.registry.version import Alias, State, Version
from functions.core.traffic.traffic import split
from tests.fakes import MemoryTable
from tests.unit.functions.registry.versions import make_registry, make_releases, ready, source

NOW = "2026-11-30T10:00:00.000Z"
PRIMARY = {"primary": {"metric": "accuracy", "higher_is_better": True}}


@dataclass
class World:
    """Model m with a policy; version 1 has accuracy 0.9 and is at prod."""

    table: MemoryTable = field(default_factory=MemoryTable)
    launches: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry, self.releases = make_registry(self.table), make_releases(self.table)
        self.release = PolicyRelease(self.launches.__setitem__, lambda: NOW)
        self.register(1, 0.9)

    def set_policy(self, **policy: Any) -> None:
        decisions = Decisions(self.table, lambda: NOW)
        decisions.describe("m", {"policy": policy}, actor="ann")

    def register(self, hour: int, accuracy: float) -> Version:
        claimed = ready(self.registry.claim("m", source(f"u{hour}")))
        card = {"metrics": {"accuracy": accuracy}, "evaluation": PRIMARY}
        written_at = f"2026-11-30T{hour:02}:00:00Z"
        version = replace(claimed, card=card, written_at=written_at)
        return self.registry.finish(version, release=self.release)

    @property
    def prod(self) -> Alias:
        alias = self.registry.alias("m", "prod")
        assert alias
        return alias

    @property
    def last_change(self) -> dict[str, Any]:
        return dict(self.registry.audit("m")[-1]["after"])


@pytest.fixture
def world() -> World:
    return World()


def test_without_a_policy_prod_stays(world: World) -> None:
    world.register(2, 0.99)

    assert world.prod.version == 1
    assert "policy" not in world.last_change


def test_always_moves_prod_in_the_transaction_that_ends_the_registration(world: World) -> None:
    world.set_policy(kind="always")
    changes = len(world.registry.audit("m"))
    world.register(2, 0.1)

    assert (world.prod.version, world.prod.previous, world.prod.revision) == (2, 1, 2)
    assert world.last_change["aliases"] == {"latest": 2, "prod": 2}
    assert world.last_change["policy"] == "policy always"
    assert len(world.registry.audit("m")) == changes + 2  # claimed, finished


def test_if_better_moves_prod_to_a_better_version_only(world: World) -> None:
    world.set_policy(kind="if_better", min_gain=0.01)
    world.register(2, 0.905)

    assert world.prod.version == 1
    assert world.last_change["policy"] == (
        "policy if_better: accuracy 0.905 beside 0.9, a gain of 0.005; more than 0.01 is needed"
    )
    world.register(3, 0.95)
    assert world.prod.version == 3


def test_a_policy_starts_a_canary_in_the_same_transaction(world: World) -> None:
    world.set_policy(kind="always", canary={"steps": [5], "min_samples": 50})
    world.register(2, 0.9)

    canary = canary_of(world.prod)
    assert canary
    assert (canary.version, canary.percent, canary.actor) == (2, 5, "policy")
    assert (world.prod.version, world.prod.revision) == (1, 2)
    assert world.prod.traffic
    assert world.prod.traffic.id
    assert world.launches[canary.id]["canary"] == canary.id
    assert world.last_change["traffic"]["prod"]["canary"]["id"] == canary.id


def test_a_split_that_runs_is_left_alone(world: World) -> None:
    world.register(2, 0.9)
    world.releases.set_traffic("m", "prod", split(1, 2, 20), actor="ann")
    world.set_policy(kind="always")
    standing = world.prod
    world.register(3, 0.9)

    assert world.prod == standing
    assert world.last_change["policy"] == "policy always; but prod has a traffic split already"


def test_an_older_upload_that_is_ready_later_is_not_released(world: World) -> None:
    world.set_policy(kind="always")
    world.register(0, 0.99)

    assert world.prod.version == 1


def test_without_a_state_machine_the_registration_is_tried_again(world: World) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("the state machine does not answer")

    world.set_policy(kind="always", canary={})
    world.release = PolicyRelease(refuse, lambda: NOW)

    with pytest.raises(Unavailable):
        world.register(2, 0.9)
    pending = world.registry.version("m", 2)
    assert pending
    assert pending.state is State.PENDING
    assert world.prod.traffic is None
