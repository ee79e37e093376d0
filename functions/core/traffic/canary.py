"""Canary: a new version gets growing shares of an alias's traffic.

The record lies in the alias's traffic object. Each step is a split of the traffic with counters of
its own; `functions/core/canary` judges them.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from functions.core.errors import InvalidRequest, shown
from functions.core.traffic.traffic import BY_USER, PERCENT, STICKY, Traffic, Weight, split

ID_BYTES = 8
STEPS_MAX = 20
DAY_S = 86_400
AGE_MAX_S = 30 * DAY_S
LOOKS = 10  # judgements in each bake time
LOOK_S = 60  # or more often, so that harm is found soon
# Looks become rarer with age, by this part of it: an execution of 30 days has 2,100 looks at most,
# of 9 events each, and Step Functions ends it at 25,000 events.
LOOK_AGES = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """Steps and limits of a canary."""

    steps: tuple[int, ...] = (10, 50)  # percent of the traffic
    bake_seconds: int = 600  # shortest time of a step
    min_samples: int = 500  # requests that each version answers in a step, at least
    max_age_seconds: int = 7 * DAY_S  # then a canary that is not promoted is rolled back
    latency_factor: float = 1.5  # a candidate up to this many times as slow is accepted
    error_margin: float = 0.001  # so much more of all requests may fail
    shadow_percent: int = 0  # share of requests that both versions answer, to compare
    sticky: str = BY_USER  # with `auto`, a service's one key would send all or nothing
    max_disagreement: float | None = None  # share of these answers that may differ; None for any

    def check(self) -> Self:
        """Accept settings that a canary can run with.

        >>> Settings(steps=(10, 5)).check()
        Traceback (most recent call last):
        functions.core.errors.InvalidRequest: steps: each has to be larger than the one before

        Raises:
            InvalidRequest: a setting is outside its range.
        """
        steps = self.steps
        if not 1 <= len(steps) <= STEPS_MAX or not all(1 <= step <= 99 for step in steps):
            raise InvalidRequest(f"steps: send 1 to {STEPS_MAX} percentages from 1 to 99")
        if list(steps) != sorted(set(steps)):
            raise InvalidRequest("steps: each has to be larger than the one before")
        if self.sticky not in STICKY:
            raise InvalidRequest(
                f"sticky: {shown(self.sticky)} is not offered; send auto, user or request"
            )
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidRequest(f"{name}: {shown(value)} is not between {low} and {high}")
        if self.bake_seconds * len(steps) >= self.max_age_seconds:
            raise InvalidRequest(
                f"max_age_seconds: {len(steps)} steps of bake_seconds ({self.bake_seconds}) take"
                " as long; raise it, or lower bake_seconds"
            )
        if self.max_disagreement is not None and not self.shadow_percent:
            raise InvalidRequest("shadow_percent: max_disagreement needs answers to compare")
        return self

    def look_seconds(self, age_s: float = 0) -> int:
        """Return the seconds until a canary of this age is judged again."""
        return max(1, min(self.bake_seconds // LOOKS, LOOK_S), int(age_s / LOOK_AGES))


RANGES = {
    "bake_seconds": (1, 7 * DAY_S),
    "min_samples": (1, 1_000_000),
    "max_age_seconds": (2, AGE_MAX_S),
    "latency_factor": (1.1, 10),
    "error_margin": (0, 1),
    "shadow_percent": (0, 100),
    "max_disagreement": (0, 1),
}


@dataclass(frozen=True, slots=True)
class Canary:
    """Canary that runs: its candidate version, settings and progress.

    Times are UTC in ISO 8601. `id` names the execution of the state machine, too.
    """

    id: str
    version: int
    settings: Settings
    actor: str  # whoever started it
    started_at: str
    stepped_at: str
    step: int = 0  # position in `settings.steps`

    @property
    def percent(self) -> int:
        """Percentage of the traffic that the candidate gets."""
        return self.settings.steps[self.step]

    @property
    def is_last_step(self) -> bool:
        """True if promotion follows."""
        return self.step + 1 == len(self.settings.steps)

    def next_step(self, now: str) -> "Canary":
        """Return the canary in its next step, which begins now."""
        return replace(self, step=self.step + 1, stepped_at=now)

    def age_s(self, now: str) -> float:
        """Return the seconds since the canary was started."""
        return seconds_between(self.started_at, now)

    def baked_s(self, now: str) -> float:
        """Return the seconds since its step began."""
        return seconds_between(self.stepped_at, now)

    def to_record(self) -> dict[str, Any]:
        """Return the canary as plain values."""
        fields = {name: getattr(self, name) for name in RECORDED}
        settings = asdict(self.settings) | {"steps": list(self.settings.steps)}
        return {**fields, "settings": settings}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Canary":
        """Build a canary from its plain values."""
        settings = dict(record["settings"])
        settings["steps"] = tuple(settings["steps"])
        fields = {name: record[name] for name in RECORDED}
        return cls(**fields, settings=Settings(**settings))


RECORDED = ("id", "version", "actor", "started_at", "stepped_at", "step")


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one ISO 8601 time to another.

    >>> seconds_between("2026-11-22T08:15:30.000Z", "2026-11-22T08:16:00.500Z")
    30.5
    """
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def new_canary(version: int, settings: Settings, actor: str, now: str) -> Canary:
    """Return a canary in its first step, with a new id."""
    return Canary(f"canary-{secrets.token_hex(ID_BYTES)}", version, settings, actor, now, now)


def traffic_of(stable: int, canary: Canary) -> Traffic:
    """Return the traffic object of a canary's present step."""
    percent, settings = canary.settings.shadow_percent, canary.settings
    shadow = Weight(canary.version, percent * PERCENT) if percent else None
    return split(
        stable,
        canary.version,
        canary.percent,
        shadow=shadow,
        sticky=settings.sticky,
        canary=canary.to_record(),
    )


def launch_input(model: str, alias: str, canary: Canary) -> dict[str, Any]:
    """Return the input of the state machine's execution for a canary."""
    return {
        "model": model,
        "alias": alias,
        "canary": canary.id,
        "launched_at": canary.started_at,
        "wait_seconds": canary.settings.look_seconds(),
    }
