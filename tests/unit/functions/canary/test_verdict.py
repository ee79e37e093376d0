"""Verdicts on canaries: wait, step, promote, roll back."""

from dataclasses import replace

import pytest

from functions.core.canary.judge import Arm
from functions.core.canary.verdict import Action, judge
from functions.core.traffic.canary import AGE_MAX_S, Canary, Settings

START, MINUTE_5, MINUTE_10 = (f"2026-11-30T10:{minute:02}:00.000Z" for minute in (0, 5, 10))
SECOND_30 = "2026-11-30T10:00:30.000Z"
DAY_8 = "2026-12-08T10:00:00.000Z"
SETTINGS = Settings(steps=(10, 50), bake_seconds=600, min_samples=100)
ENOUGH = Arm(1000, 10), Arm(120, 1)
FEW = Arm(1000, 10), Arm(20, 0)


def canary(step: int = 0, stepped_at: str = START) -> Canary:
    return Canary("c-1", 8, SETTINGS, "key:a", START, stepped_at, step)


def test_a_step_ends_with_bake_time_and_samples() -> None:
    verdicts = [
        judge(canary(), *FEW, MINUTE_10),
        judge(canary(), *ENOUGH, MINUTE_5),
        judge(canary(), *ENOUGH, MINUTE_10),
    ]

    assert [verdict.action for verdict in verdicts] == [Action.WAIT, Action.WAIT, Action.STEP]
    assert verdicts[0].text == (
        "no difference found after 20 of about 100 requests in step 1 of 2 (10 %)"
    )
    assert verdicts[2].text == "no difference found after 120 requests in step 1 of 2 (10 %)"


def test_the_last_step_ends_in_promotion() -> None:
    last = canary(step=1, stepped_at=START)

    assert judge(last, Arm(100, 1), Arm(100, 1), MINUTE_10).action is Action.PROMOTE
    assert judge(last, Arm(99, 1), Arm(100, 1), MINUTE_10).action is Action.WAIT


def test_harm_is_acted_upon_before_bake_time_and_samples() -> None:
    verdict = judge(canary(), Arm(200, 0), Arm(20, 9), START)

    assert verdict.action is Action.ROLL_BACK
    assert verdict.numbers["test"] == "errors"
    assert verdict.numbers["candidate_errors"] == 9


def test_lost_requests_hold_a_canary_until_the_late_ones_are_counted() -> None:
    arms = Arm(1000, drawn=1000), Arm(100, drawn=20)
    first = judge(canary(), *arms, MINUTE_5)
    assert (first.action, first.lost_since) == (Action.WAIT, MINUTE_5)
    assert first.text.startswith("held: requests of the candidate are lost")

    end = judge(canary(), *arms, MINUTE_10, first.lost_since)
    assert end.action is Action.ROLL_BACK
    assert end.numbers["test"] == "lost"
    assert end.numbers["candidate_drawn"] == 20


def test_a_loss_has_to_be_seen_for_a_minute_and_after_the_bake_time() -> None:
    arms = Arm(1000, drawn=1000), Arm(100, drawn=20)
    quick = replace(canary(), settings=replace(SETTINGS, bake_seconds=30))

    held = [
        judge(quick, *arms, SECOND_30, START),
        judge(canary(), *arms, MINUTE_5, START),
        judge(canary(), *arms, MINUTE_10),
    ]
    assert [verdict.action for verdict in held] == [Action.WAIT] * 3
    assert [verdict.lost_since for verdict in held] == [START, START, MINUTE_10]
    assert judge(quick, *arms, MINUTE_5, START).action is Action.ROLL_BACK


def test_one_look_without_a_loss_ends_the_hold() -> None:
    late = judge(canary(), Arm(1000, drawn=1000), Arm(120, drawn=100), MINUTE_5, START)

    assert (late.action, late.lost_since) == (Action.WAIT, "")


def test_a_candidate_without_counted_requests_is_rolled_back() -> None:
    verdict = judge(canary(step=1), Arm(900, drawn=900), Arm(), MINUTE_10, MINUTE_5)

    assert (verdict.action, verdict.numbers["test"]) == (Action.ROLL_BACK, "lost")


def test_at_its_maximum_age_a_canary_without_enough_requests_is_rolled_back() -> None:
    verdict = judge(canary(), *FEW, DAY_8)

    assert verdict.action is Action.ROLL_BACK
    assert verdict.text == (
        "too few requests in 7 days: "
        "no difference found after 20 of about 100 requests in step 1 of 2 (10 %)"
    )


def test_enough_requests_at_the_maximum_age_still_count() -> None:
    assert judge(canary(step=1), *ENOUGH, DAY_8).action is Action.PROMOTE


def test_a_canary_survives_its_record() -> None:
    assert Canary.from_record(canary(step=1).to_record()) == canary(step=1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(steps=()), "steps: send 1 to 20"),
        (Settings(steps=(100,)), "steps: send 1 to 20 percentages from 1 to 99"),
        (Settings(steps=(50, 10)), "steps: each has to be larger"),
        (Settings(min_samples=0), "min_samples: 0 is not between 1 and"),
        (Settings(bake_seconds=0), "bake_seconds: 0 is not between"),
        (Settings(latency_factor=1.0), "latency_factor: 1.0 is not between"),
        (Settings(latency_factor=float("nan")), "latency_factor: nan is not between"),
        (Settings(max_age_seconds=1200), "max_age_seconds: 2 steps of bake_seconds"),
        (Settings(max_disagreement=0.1), "shadow_percent: max_disagreement"),
        (Settings(shadow_percent=5, max_disagreement=2), "max_disagreement: 2 is not between"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Settings, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        settings.check()


def test_looks_are_frequent_at_first() -> None:
    assert [Settings(bake_seconds=s).look_seconds() for s in (1, 300, 6000)] == [1, 30, 60]


@pytest.mark.parametrize("bake_seconds", [1, 600, 86_400])
def test_an_execution_has_fewer_events_than_step_functions_keeps(bake_seconds: int) -> None:
    settings = Settings(bake_seconds=bake_seconds, max_age_seconds=AGE_MAX_S).check()
    looks, age_s = 0, 0
    while age_s < AGE_MAX_S:
        looks, age_s = looks + 1, age_s + settings.look_seconds(age_s)

    assert 9 * looks < 25_000
