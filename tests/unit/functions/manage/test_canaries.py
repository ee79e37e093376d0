"""Routes of canaries over a control plane in memory."""

from typing import Any

import pytest

from functions.core.canary.canaries import canary_of
from functions.core.canary.judge import Arm
from functions.core.canary.verdict import judge
from functions.core.usage.histogram import bucket_of
from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply

CANARY = "/api/v1/models/m/aliases/prod/canary"
START = {"version": 2, "steps": [5, 50], "bake_seconds": 60, "min_samples": 100}


class Plane(ControlPlane):
    """Control plane with versions 1 and 2 of model m; prod points at 1."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(2):
            self.register("m")
        self.key = self.create("read", "deploy")["key"]

    def send(self, method: str, path: str = "", body: Any = b"") -> Reply:
        return self.client.send(method, CANARY + path, body, headers={"x-api-key": self.key})

    def judge(self) -> None:
        """Act on the verdict, as the state machine has it done."""
        alias = self.registry.alias("m", "prod")
        assert alias
        canary = canary_of(alias)
        assert canary
        self.canaries.apply("m", "prod", canary, judge(canary, *self.arms, self._now()))


@pytest.fixture
def plane() -> Plane:
    return Plane()


def test_a_canary_starts_and_shows_its_settings(plane: Plane) -> None:
    reply = plane.send("POST", body=START)

    assert reply.status == 201
    shown = reply.json
    assert (shown["state"], shown["version"], shown["stable_version"]) == ("running", 2, 1)
    assert (shown["step"], shown["steps"], shown["step_seconds_left"]) == (1, [5, 50], 60)
    assert shown["verdict"] == (
        "no difference found after 0 of about 100 requests in step 1 of 2 (5 %)"
    )
    assert shown["settings"]["latency_factor"] == 1.5
    assert list(plane.launches) == [shown["id"]]
    assert plane.send("GET").json == shown


def test_a_running_canary_shows_both_versions_with_bounds(plane: Plane) -> None:
    plane.send("POST", body=START)
    plane.arms = Arm(950, 10, {bucket_of(9_000): 950}), Arm(50, 1, {bucket_of(9_500): 50})
    shown = plane.send("GET").json

    assert shown["stable"]["requests"] == 950
    candidate = shown["candidate"]
    assert (candidate["version"], candidate["errors"]) == (2, 1)
    rate, p95 = candidate["error_rate"], candidate["p95_ms"]
    assert rate["low"] < rate["value"] == 0.02 < rate["high"]
    assert p95["low"] <= p95["value"] <= p95["high"]


def test_a_rollback_shows_the_reason_and_the_numbers(plane: Plane) -> None:
    plane.send("POST", body=START)
    plane.arms = Arm(950, 0), Arm(50, 20)
    plane.judge()
    shown = plane.send("GET").json

    assert (shown["state"], shown["stable_version"]) == ("rolled_back", 1)
    assert shown["verdict"].startswith("20 of 50 requests failed (40 %)")
    assert shown["numbers"]["candidate_errors"] == 20
    assert shown["ended_at"]


@pytest.mark.parametrize(
    ("method", "path", "state", "version"),
    [("DELETE", "", "stopped", 1), ("POST", "/promote", "promoted", 2)],
)
def test_a_person_ends_a_canary(
    plane: Plane, method: str, path: str, state: str, version: int
) -> None:
    plane.send("POST", body=START)
    shown = plane.send(method, path).json

    assert (shown["state"], shown["stable_version"]) == (state, version)
    assert shown["verdict"].endswith("by hand in step 1 of 2")
    assert error(plane.send(method, path))[:2] == (409, "STATE_CONFLICT")


@pytest.mark.parametrize(("version", "state"), [(1, "stopped"), (2, "promoted")])
def test_a_move_of_the_alias_ends_the_canary(plane: Plane, version: int, state: str) -> None:
    plane.send("POST", body=START)
    plane.client.send(
        "PUT",
        CANARY.removesuffix("/canary"),
        {"version": version},
        headers={"x-api-key": plane.key},
    )
    shown = plane.send("GET").json

    assert shown["state"] == state
    assert shown["verdict"].startswith("ended by move_alias of key:")


def test_another_revision_is_a_conflict_with_the_current_one(plane: Plane) -> None:
    reply = plane.send("POST", body={**START, "expected_revision": 7})

    assert error(reply)[:2] == (409, "STATE_CONFLICT")
    assert reply.json["revision"] == 1
    assert plane.launches == {}


def test_an_alias_without_a_canary_has_none_to_show(plane: Plane) -> None:
    assert error(plane.send("GET"))[:2] == (404, "CANARY_NOT_FOUND")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 0}, "version"),
        ({"version": None}, "version"),
        ({"steps": []}, "steps"),
        ({"steps": [50, 10]}, "steps: each has to be larger than the one before"),
        ({"steps": [100]}, "steps"),
        ({"steps": ["x"]}, "steps[0]"),
        ({"bake_seconds": -1}, "bake_seconds"),
        ({"min_samples": 1e9}, "min_samples"),
        ({"latency_factor": 1}, "latency_factor"),
        ({"max_disagreement": 0.1}, "shadow_percent"),
        ({"max_age_seconds": 100}, "max_age_seconds"),
        ({"sticky": "key"}, "sticky"),
        ({"strategy": "blue"}, "strategy"),
    ],
)
def test_a_wrong_field_is_named(plane: Plane, change: dict[str, Any], text: str) -> None:
    reply = plane.send("POST", body={**START, **change})

    assert error(reply)[:2] == (400, "INVALID_REQUEST")
    assert text in reply.json["error"]
    assert plane.launches == {}
