"""Release policies: which new version gets the requests of prod."""

from typing import Any

import pytest

from functions.core.errors import InvalidRequest
from functions.core.traffic.canary import Settings
from functions.core.traffic.policy import canary_settings, rule

IF_BETTER = {"kind": "if_better"}
F1 = {"metric": "f1", "higher_is_better": True}


def card(value: object, metric: str = "accuracy", higher: bool = True) -> dict[str, Any]:
    primary = {"metric": metric, "higher_is_better": higher}
    return {"metrics": {metric: value}, "evaluation": {"primary": primary}}


def both(accuracy: float, f1: float) -> dict[str, Any]:
    """Return the card of a model whose primary metric is its accuracy."""
    primary = card(accuracy)
    return {**primary, "metrics": {**primary["metrics"], "f1": f1}}


@pytest.mark.parametrize(
    ("policy", "new", "old", "releases", "reason"),
    [
        ({}, card(0.9), card(0.1), False, "policy manual"),
        ({"kind": "always"}, {}, {}, True, "policy always"),
        (IF_BETTER, card(0.91), card(0.9), True, "accuracy 0.91 beside 0.9, a gain of 0.01"),
        (IF_BETTER, card(0.9), card(0.9), False, "a gain of 0; more than 0 is needed"),
        (IF_BETTER, card(0.8), card(0.9), False, "a gain of -0.1; more than 0 is needed"),
        (IF_BETTER, card(1.0, "rmse", False), card(1.5, "rmse", False), True, "a gain of 0.5"),
        ({**IF_BETTER, "min_gain": 0.02}, card(0.91), card(0.9), False, "more than 0.02"),
        ({**IF_BETTER, "metric": "f1"}, card(0.9), card(0.8), False, "'f1' is not the manifest's"),
        ({**IF_BETTER, **F1}, both(0.9, 2), both(0.9, 1), True, "f1 2 beside 1, a gain of 1"),
        ({**IF_BETTER, **F1}, both(0.9, 1), both(0.1, 2), False, "a gain of -1"),
        ({**IF_BETTER, **F1, "higher_is_better": False}, both(0, 1), both(0, 2), True, "gain of 1"),
        ({**IF_BETTER, **F1}, card(0.9), both(0.9, 1), False, "the new version has no metric 'f1'"),
        (IF_BETTER, {}, card(0.9), False, "names no primary metric"),
        (IF_BETTER, card(0.9), {}, False, "the version at prod has no metric 'accuracy'"),
        (IF_BETTER, card("good"), card(0.9), False, "the new version has no metric"),
        (IF_BETTER, card(float("nan")), card(0.9), False, "the new version has no metric"),
        (IF_BETTER, card(True), card(0.9), False, "the new version has no metric"),
    ],
)
def test_a_policy_releases_with_a_reason(
    policy: dict[str, Any], new: dict[str, Any], old: dict[str, Any], releases: bool, reason: str
) -> None:
    ruling = rule(policy, new, old)

    assert ruling.releases is releases
    assert reason in ruling.reason


def test_a_policys_canary_has_defaults_for_what_it_leaves_out() -> None:
    assert canary_settings({"kind": "always"}) is None
    assert canary_settings({"canary": {}}) == Settings()
    settings = canary_settings({"canary": {"steps": [5, 20], "bake_seconds": None}})
    assert settings == Settings(steps=(5, 20))
    with pytest.raises(InvalidRequest, match="min_samples"):
        canary_settings({"canary": {"min_samples": 0}})
