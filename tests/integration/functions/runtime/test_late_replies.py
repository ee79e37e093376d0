"""Answers before the end: a handler that does not come back is answered for."""

import json
import signal
import time

import pytest

from tests.runtime_api import MAYFLY, Ended, Event, FakeRuntimeApi, play

MODULE = "tests.integration.functions.runtime.handlers"
LIMIT_S = 4.0


def limited(*script: Event, handler: str = "limited") -> tuple[FakeRuntimeApi, Ended]:
    return play(MAYFLY, f"{MODULE}.{handler}", script)


def sleeping(sleep_s: float | None) -> bytes:
    return json.dumps({"sleep_s": sleep_s}).encode()


def test_a_stuck_handler_is_answered_for_and_its_process_ends() -> None:
    began = time.time()
    api, ended = limited(Event(sleeping(None), remaining_s=LIMIT_S), Event(sleeping(0)))

    [post] = api.posts
    assert (post.path[-18:], post.json) == ("request-1/response", {"late": "request-1"})
    assert post.headers["content-type"] == "application/json"
    assert post.arrived_at - began > LIMIT_S / 2  # it had most of its time
    assert (ended.status, api.asked) == (1, 1)
    [line] = map(json.loads, ended.lines)
    assert (line["message"], line["request_id"]) == ("late reply", "request-1")


def test_a_late_reply_arrives_before_lambdas_own_limit() -> None:
    event = Event(sleeping(None), remaining_s=LIMIT_S)
    began = time.time()
    api, _ = limited(event)

    assert api.posts[0].arrived_at < began + LIMIT_S + 1  # the process started within a second


@pytest.mark.parametrize(
    ("handler", "error"), [("broken", "LookupError: no late reply"), ("leaving", "SystemExit: 3")]
)
def test_a_failing_late_reply_is_logged_and_the_process_ends(handler: str, error: str) -> None:
    api, ended = limited(Event(sleeping(None), remaining_s=1), Event(), handler=handler)

    assert (api.posts, ended.status) == ([], 1)
    assert ended.lines[0] == f"[ERROR] {error}"
    assert "nor its late reply" in json.loads(ended.lines[-1])["reason"]


def test_last_work_follows_the_late_reply() -> None:
    api, ended = limited(Event(sleeping(None), remaining_s=LIMIT_S), handler="recording")

    assert [post.json for post in api.posts] == [{"late": "request-1"}]
    assert (ended.lines[-1], ended.status) == ("last work", 1)


@pytest.mark.parametrize(
    ("kind", "line", "status"),
    [("fail", "[ERROR] LookupError: no last work", 1), ("stick", "last work", -signal.SIGALRM)],
)
def test_last_work_that_fails_or_sticks_ends_with_the_process(
    kind: str, line: str, status: int
) -> None:
    event = Event(sleeping(None), remaining_s=LIMIT_S)
    api, ended = play(MAYFLY, f"{MODULE}.recording", [event], LAST_WORK=kind)

    assert [post.json for post in api.posts] == [{"late": "request-1"}]
    assert line in ended.lines
    assert (ended.status, api.asked) == (status, 1)


def test_a_handler_in_time_is_answered_once() -> None:
    api, ended = limited(*[Event(sleeping(0))] * 300)

    assert [post.body for post in api.posts] == [sleeping(0)] * 300
    assert ended.status is None


@pytest.mark.parametrize("margin_s", [-0.002, 0.0, 0.002])
def test_a_handler_at_its_limit_is_answered_once(margin_s: float) -> None:
    remaining_s = 0.5
    event = Event(sleeping(0.9 * remaining_s + margin_s), remaining_s=remaining_s)
    api, _ = limited(*[event] * 5)

    paths = [post.path for post in api.posts]
    assert paths
    assert len(paths) == len(set(paths))


def test_a_handler_that_returns_during_its_late_reply_is_not_answered() -> None:
    api, ended = limited(Event(remaining_s=1), handler="returning")

    assert [post.json for post in api.posts] == ["late"]
    assert ended.status == 1


def test_without_a_late_reply_a_slow_handler_answers_itself() -> None:
    api, ended = play(MAYFLY, f"{MODULE}.slow", [Event(b"1", remaining_s=0.2)])

    assert (api.posts[0].json, ended.status) == ("slow", None)
