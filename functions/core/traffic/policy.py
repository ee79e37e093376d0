"""Release policy of a model: which new versions `prod` moves to.

A policy is a plain object: `kind` is manual, always or if_better; if_better compares `metric`, by
default the primary one, and wants more than `min_gain`. Manifests state the direction of the
primary one alone; of another one the policy says whether `higher_is_better`. With `canary`, the
settings of one, the version is released by a canary instead of at once.
"""

import math
from collections.abc import Mapping
from typing import Any

from functions.core.errors import shown
from functions.core.records import record
from functions.core.traffic.canary import Settings

MANUAL, ALWAYS, IF_BETTER = "manual", "always", "if_better"
Card = Mapping[str, Any]


@record
class Ruling:
    """Answer of a policy, with its reason."""

    releases: bool
    reason: str


def rule(policy: Mapping[str, Any], candidate: Card, standing: Card) -> Ruling:
    """Apply a policy to the cards of a new version and `prod`'s.

    >>> rule({"kind": "always"}, {}, {})
    Ruling(releases=True, reason='policy always')
    """
    kind = policy.get("kind", MANUAL)
    if kind == ALWAYS:
        return Ruling(True, "policy always")
    if kind != IF_BETTER:
        return Ruling(False, f"policy {kind}")
    return _compare(policy, candidate, standing)


def canary_settings(policy: Mapping[str, Any]) -> Settings | None:
    """Return a policy's canary settings, None for a release at once."""
    fields = policy.get("canary")
    if fields is None:
        return None
    chosen = {name: value for name, value in fields.items() if value is not None}
    if "steps" in chosen:
        chosen["steps"] = tuple(chosen["steps"])
    return Settings(**chosen).check()


def _compare(policy: Mapping[str, Any], candidate: Card, standing: Card) -> Ruling:
    primary = _primary(candidate)
    name = policy.get("metric") or primary.get("metric")
    if not name:
        return Ruling(False, "policy if_better: the manifest names no primary metric")
    higher = policy.get("higher_is_better")
    if higher is None and name == primary.get("metric"):
        higher = primary.get("higher_is_better", True)
    if higher is None:  # policies of earlier releases
        return Ruling(
            False,
            f"policy if_better: {shown(name)} is not the manifest's primary metric,"
            " so it is not known whether more of it is better",
        )
    new, old = (_number(card, name) for card in (candidate, standing))
    if new is None or old is None:
        title = "the new version" if new is None else "the version at prod"
        return Ruling(False, f"policy if_better: {title} has no metric {shown(name)}")
    gain = new - old if higher else old - new
    least = policy.get("min_gain", 0)
    text = f"policy if_better: {name} {new:.6g} beside {old:.6g}, a gain of {gain:.4g}"
    if gain > least:
        return Ruling(True, text)
    return Ruling(False, f"{text}; more than {least:.4g} is needed")


def _primary(card: Card) -> Mapping[str, Any]:
    evaluation = card.get("evaluation")
    primary = evaluation.get("primary") if isinstance(evaluation, dict) else None
    return primary if isinstance(primary, dict) else {}


def _number(card: Card, name: str) -> float | None:
    metrics = card.get("metrics")
    value: Any = metrics.get(name) if isinstance(metrics, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
