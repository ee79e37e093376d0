"""Verdict on a canary: wait, step, promote or roll back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from functions.core.canary.judge import Arm, Limits, find_harm, find_loss
from functions.core.traffic.canary import Canary, seconds_between

LOSS_S = 60  # s after which every request is counted that was not lost


class Action(StrEnum):
    """Change of a canary, as its audit record names it."""

    WAIT = "wait"
    STEP = "step_canary"
    PROMOTE = "promote_canary"
    ROLL_BACK = "roll_back_canary"
    STOP = "stop_canary"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Action with its reason, in words and numbers.

    `lost_since` is the first of the looks that have all seen lost requests, "" without any now.
    """

    action: Action
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    lost_since: str = ""


def judge(canary: Canary, stable: Arm, candidate: Arm, now: str, lost_since: str = "") -> Verdict:
    """Judge a canary by the counters of its present step.

    Harm is acted upon at once, also before the smallest number of requests. Lost requests hold a
    canary, since some may only be late, e.g. where new environments load the candidate; they end it
    after the bake time, once all looks of LOSS_S have seen them. `lost_since` is the last
    verdict's. A canary without enough requests is rolled back at its maximum age: nothing is
    promoted unseen.
    """
    settings, numbers = canary.settings, counts(stable, candidate)
    limits = Limits(settings.latency_factor, settings.error_margin, settings.max_disagreement)
    weight, steps = canary.percent / 100, len(settings.steps)
    harm = find_harm(stable, candidate, weight=weight, steps=steps, limits=limits)
    loss = find_loss(stable, candidate, weight=weight, steps=steps, limits=limits)
    lost_since = (lost_since or now) if loss else ""
    if harm is None and loss is not None and not _is_counted(canary, lost_since, now):
        return Verdict(Action.WAIT, f"held: {loss.text}", numbers, lost_since)
    if (harm := harm or loss) is not None:
        return Verdict(Action.ROLL_BACK, harm.text, {**numbers, "test": harm.test, **harm.numbers})
    text = f"no difference found after {_progress(canary, stable, candidate)}"
    if samples(stable, candidate) >= settings.min_samples and _is_baked(canary, now):
        action = Action.PROMOTE if canary.is_last_step else Action.STEP
        return Verdict(action, text, numbers)
    if canary.age_s(now) >= settings.max_age_seconds:
        days = settings.max_age_seconds / 86_400
        return Verdict(Action.ROLL_BACK, f"too few requests in {days:.3g} days: {text}", numbers)
    return Verdict(Action.WAIT, text, numbers)


def samples(stable: Arm, candidate: Arm) -> int:
    """Return the number of requests that each of two versions has had."""
    return min(stable.requests, candidate.requests)


def counts(stable: Arm, candidate: Arm) -> dict[str, int]:
    """Return the counters that a verdict rests on, for the audit record."""
    numbers = {
        "stable_requests": stable.requests,
        "stable_errors": stable.errors,
        "candidate_requests": candidate.requests,
        "candidate_errors": candidate.errors,
    }
    if candidate.compared:
        numbers |= {"compared": candidate.compared, "disagreed": candidate.disagreed}
    return numbers


def _is_baked(canary: Canary, now: str) -> bool:
    return canary.baked_s(now) >= canary.settings.bake_seconds


def _is_counted(canary: Canary, lost_since: str, now: str) -> bool:
    """Return True once requests that were only late would be counted."""
    return _is_baked(canary, now) and seconds_between(lost_since, now) >= LOSS_S


def _progress(canary: Canary, stable: Arm, candidate: Arm) -> str:
    """Return e.g. "120 of about 500 requests in step 1 of 2"."""
    settings = canary.settings
    count, goal = samples(stable, candidate), settings.min_samples
    requests = f"{count:,} of about {goal:,}" if count < goal else f"{count:,}"
    step = f"step {canary.step + 1} of {len(settings.steps)} ({canary.percent} %)"
    return f"{requests} requests in {step}"
