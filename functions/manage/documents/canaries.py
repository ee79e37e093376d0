"""JSON documents about canaries."""

from dataclasses import asdict
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from functions.core.canary.judge import Arm, quantile_bounds, share_bounds
from functions.core.canary.verdict import Action, Verdict
from functions.core.registry.table import Item
from functions.core.registry.version import Alias
from functions.core.traffic.canary import RANGES, STEPS_MAX, Canary, Settings
from functions.core.usage.histogram import quantile_us
from functions.manage.documents.base import ReplyDocument, RequestDocument
from functions.manage.documents.fields import ExpectedRevision, Number

DEFAULTS = Settings()


def _setting(name: str, description: str, kind: type[int | float] = int) -> Any:
    low, high = RANGES[name]
    return Field(
        default=getattr(DEFAULTS, name),
        ge=low,
        le=high,
        description=description,
        allow_inf_nan=None if kind is int else False,
    )


class CanarySettings(RequestDocument):
    """Steps and limits of a canary; a missing field has its default."""

    steps: list[int] = Field(
        default=list(DEFAULTS.steps),
        min_length=1,
        max_length=STEPS_MAX,
        description="Percentages of the requests, ascending, from 1 to 99.",
    )
    bake_seconds: int = _setting("bake_seconds", "Shortest time of each step.")
    min_samples: int = _setting("min_samples", "Requests that each version has in a step.")
    max_age_seconds: int = _setting("max_age_seconds", "Age at which it is rolled back.")
    latency_factor: float = _setting(
        "latency_factor", "A candidate up to this many times as slow is accepted.", float
    )
    error_margin: float = _setting(
        "error_margin", "Share of all requests that may fail more.", float
    )
    shadow_percent: int = _setting("shadow_percent", "Requests that both versions answer.")
    max_disagreement: float | None = _setting(
        "max_disagreement", "Share of these answers that may differ; null for any.", float
    )
    sticky: Literal["auto", "user", "request"] = Field(
        default="user",
        description="user: a user (x-mayfly-user) stays on one side, other requests are split "
        "one by one. auto: a user, else a key. request: nobody stays.",
    )

    @field_validator("latency_factor", "error_margin", "max_disagreement")
    @classmethod
    def round_share(cls, value: float | None) -> float | None:
        """Round a number to what the registry's table can store."""
        return value if value is None else round(value, 9)

    @property
    def settings(self) -> Settings:
        """Settings of the canary, not yet checked."""
        fields = {name: getattr(self, name) for name in CanarySettings.model_fields}
        return Settings(**{**fields, "steps": tuple(self.steps)})


class StartCanary(CanarySettings):
    """Request to start a canary; a missing field has its default."""

    version: Number
    expected_revision: ExpectedRevision = None


class Share(ReplyDocument):
    """Share of requests with always-valid 95 % bounds."""

    value: float | None
    low: float
    high: float


class Duration(ReplyDocument):
    """Latency in milliseconds with always-valid 95 % bounds."""

    value: float
    low: float
    high: float


class ArmDocument(ReplyDocument):
    """Counters of one of a canary's versions in the present step."""

    version: int
    requests: int
    errors: int
    error_rate: Share
    p95_ms: Duration | None


class CanaryState(StrEnum):
    """States of an alias's latest canary."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"


class CanaryDocument(ReplyDocument):
    """Canary of an alias: the one that runs, or the latest one."""

    model: str
    alias: str
    id: str
    state: CanaryState
    version: int = Field(description="Candidate.")
    stable_version: int = Field(description="Version that the alias points at.")
    revision: int = Field(description="Number of changes of the alias.")
    verdict: str = Field(description="The judgement in words; of an ended canary, the reason.")
    started_by: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    step: int | None = Field(default=None, description="Present step, from 1.")
    steps: list[int] | None = Field(default=None, description="Percentage in each step.")
    step_seconds_left: int | None = Field(default=None, description="Rest of the bake time.")
    seconds_left: int | None = Field(default=None, description="Time until the maximum age.")
    settings: dict[str, Any] | None = None
    stable: ArmDocument | None = None
    candidate: ArmDocument | None = None
    compared: int | None = Field(default=None, description="Requests that both versions answered.")
    disagreement: Share | None = None
    numbers: dict[str, Any] | None = Field(default=None, description="Of an ended canary's reason.")


ENDS: dict[str, CanaryState] = {
    Action.PROMOTE: CanaryState.PROMOTED,
    Action.ROLL_BACK: CanaryState.ROLLED_BACK,
    Action.STOP: CanaryState.STOPPED,
}


def describe_canary(
    model: str, alias: Alias, canary: Canary, arms: tuple[Arm, Arm], verdict: Verdict, now: str
) -> dict[str, Any]:
    """Return the fields of the `CanaryDocument` of a canary that runs."""
    stable, candidate = arms
    settings = canary.settings
    return {
        "model": model,
        "alias": alias.name,
        "id": canary.id,
        "state": CanaryState.RUNNING,
        "version": canary.version,
        "stable_version": alias.version,
        "revision": alias.revision,
        "verdict": verdict.text,
        "started_by": canary.actor,
        "started_at": canary.started_at,
        "step": canary.step + 1,
        "steps": list(settings.steps),
        "step_seconds_left": _left(settings.bake_seconds, canary.baked_s(now)),
        "seconds_left": _left(settings.max_age_seconds, canary.age_s(now)),
        "settings": {name: v for name, v in asdict(settings).items() if name != "steps"},
        "stable": _describe_arm(alias.version, stable),
        "candidate": _describe_arm(canary.version, candidate),
        "compared": candidate.compared,
        "disagreement": _share(candidate.disagreed, candidate.compared),
    }


def ended_canary(record: Item, alias: str) -> Canary | None:
    """Return the canary that an audit record of an alias ended."""
    before, after = (_canary_in(record[side], alias) for side in ("before", "after"))
    return before if before and (after is None or after.id != before.id) else None


def describe_end(model: str, alias: Alias, record: Item) -> dict[str, Any]:
    """Return the `CanaryDocument` fields of a canary that has ended."""
    canary, after = ended_canary(record, alias.name), record["after"]
    if canary is None:
        raise LookupError("this audit record ended no canary")
    is_released = after["aliases"].get(alias.name) == canary.version
    otherwise = CanaryState.PROMOTED if is_released else CanaryState.STOPPED
    return {
        "model": model,
        "alias": alias.name,
        "id": canary.id,
        "state": ENDS.get(record["action"], otherwise),
        "version": canary.version,
        "stable_version": alias.version,
        "revision": alias.revision,
        "verdict": after.get("reason") or f"ended by {record['action']} of {record['actor']}",
        "started_by": canary.actor,
        "started_at": canary.started_at,
        "ended_at": record["at"],
        "step": canary.step + 1,
        "steps": list(canary.settings.steps),
        "numbers": after.get("numbers"),
    }


def _canary_in(values: Item, alias: str) -> Canary | None:
    """Return the canary in one side of an audit record."""
    traffic = (values.get("traffic") or {}).get(alias) or {}
    return Canary.from_record(traffic["canary"]) if traffic.get("canary") else None


def _describe_arm(version: int, arm: Arm) -> dict[str, Any]:
    bounds, p95_us = quantile_bounds(arm.latency, 0.95), quantile_us(arm.latency, 0.95)
    p95_ms = None
    if bounds is not None and p95_us is not None:
        p95_ms = {"value": p95_us / 1000, "low": bounds[0] / 1000, "high": bounds[1] / 1000}
    return {
        "version": version,
        "requests": arm.requests,
        "errors": arm.errors,
        "error_rate": _share(arm.errors, arm.requests),
        "p95_ms": p95_ms,
    }


def _share(count: int, total: int) -> dict[str, float | None]:
    low, high = share_bounds(count, total)
    return {"value": count / total if total else None, "low": low, "high": high}


def _left(limit_s: float, seconds: float) -> int:
    return max(0, round(limit_s - seconds))
