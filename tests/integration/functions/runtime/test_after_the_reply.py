"""Work after the reply, and the end of an environment, in our runtime client."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_api import MAYFLY, Ended, Event, FakeRuntimeApi, play, started

HANDLER = "tests.integration.functions.runtime.handlers.work"


def event(*work: str, **more: Any) -> bytes:
    return json.dumps({"work": work, **more}).encode()


def worked(*script: Event) -> tuple[FakeRuntimeApi, Ended]:
    return play(MAYFLY, HANDLER, script)


def test_work_follows_the_reply_and_precedes_the_next_event(tmp_path: Path) -> None:
    file = tmp_path / "seen"
    api = FakeRuntimeApi([Event(event("wait", file=str(file)))])
    with started(MAYFLY, api, HANDLER):
        api.wait_until(lambda: bool(api.posts) and api.posts[0].complete)
        asked = api.asked
        file.touch()
        assert api.idle.wait(60)

    assert (asked, api.asked) == (1, 2)
    assert api.posts[0].json == "reply"


def test_a_reply_that_was_lost_is_sent_again_after_the_work() -> None:
    api, ended = worked(Event(event("first"), broken_replies=1), Event(event()))

    assert [post.connection for post in api.posts] == [1, 2, 2]
    assert ended.lines == ["first work"]


def test_an_environment_ends_once_its_reply_has_arrived() -> None:
    api, ended = worked(Event(event("end"), broken_replies=1), Event(event()))

    assert [post.connection for post in api.posts] == [1, 2]
    assert (ended.status, api.asked) == (0, 1)


def test_a_reply_that_is_refused_ends_the_process_after_the_work() -> None:
    _, ended = worked(Event(event("first"), reply_status=413), Event(event()))

    assert ended.status == 1
    assert ended.lines[0] == "first work"
    assert "Http response code: 413" in ended.lines[1]


def test_work_is_done_once_and_in_order() -> None:
    api, ended = worked(Event(event("first", "nest", "second")), Event(event()))

    assert ended.lines == ["first work", "second work", "nested work"]
    assert len(api.posts) == 2


def test_failing_work_is_logged_and_harmless() -> None:
    api, ended = worked(Event(event("fail", "second")), Event(event("first")))

    assert ended.lines[0] == "[ERROR] ValueError: failed after the reply"
    assert ended.lines[-2:] == ["second work", "first work"]
    assert [post.path[-9:] for post in api.posts] == ["/response"] * 2


def test_work_follows_an_error_too() -> None:
    api, ended = worked(Event(event("first", fails=True)))

    assert api.posts[0].path.endswith("/error")
    assert ended.lines[-1] == "first work"


def test_work_over_time_ends_the_process() -> None:
    api, ended = worked(Event(event("stick"), remaining_s=1), Event(event()))

    assert [post.json for post in api.posts] == ["reply"]
    assert (ended.status, api.asked) == (1, 1)
    [line] = map(json.loads, ended.lines)
    assert (line["level"], line["request_id"]) == ("ERROR", "request-1")
    assert "did not end in time" in line["reason"]


@pytest.mark.parametrize(("kind", "status"), [("stick", 1), ("end", 0)])
def test_an_environment_that_ends_does_its_last_work(kind: str, status: int) -> None:
    handler = HANDLER.replace(".work", ".recording")
    api, ended = play(MAYFLY, handler, [Event(event(kind), remaining_s=2), Event(event())])

    assert ended.lines.count("last work") == 1
    assert (ended.status, api.asked) == (status, 1)


def test_an_environment_ends_after_its_reply_and_its_work() -> None:
    api, ended = worked(Event(event("end", "second")), Event(event()))

    assert [post.json for post in api.posts] == ["reply"]
    assert (ended.status, api.asked) == (0, 1)
    assert ended.lines[0] == "second work"
    assert json.loads(ended.lines[1]) == {
        "level": "WARNING",
        "message": "environment ends",
        "request_id": "request-1",
        "reason": "its memory is spent",
    }
