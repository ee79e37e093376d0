"""Events that memory cannot hold: they are answered, and the next ones are served."""

import json

from tests.runtime_api import MAYFLY, Event, play

MODULE = "tests.integration.functions.runtime.handlers"
LARGE = json.dumps("x" * 6_000_000).encode()


def test_a_handler_refuses_a_large_event_in_its_own_words() -> None:
    script = [Event(b"1"), Event(LARGE), Event(b"2"), Event(LARGE, pieces=3)]

    api, ended = play(MAYFLY, f"{MODULE}.refusing", script)

    second, fourth = (["request-2", len(LARGE)], ["request-4", len(LARGE)])
    assert [post.json for post in api.posts] == [1, {"refused": second}, 2, {"refused": fourth}]
    assert (api.connections, ended.status) == (1, None)


def test_without_such_a_reply_it_is_an_error_of_the_invocation() -> None:
    api, ended = play(MAYFLY, f"{MODULE}.starving_echo", [Event(b"1"), Event(LARGE), Event(b"2")])

    assert [post.kind for post in api.posts] == ["response", "error", "response"]
    error = json.loads(api.posts[1].body)
    assert error["errorType"] == "Runtime.OutOfMemory"
    assert f"an event of {len(LARGE)} bytes" in error["errorMessage"]
    assert ended.status is None


def test_a_large_event_arrives_whole() -> None:
    api, _ = play(MAYFLY, f"{MODULE}.echo", [Event(LARGE), Event(LARGE, chunk_bytes=70_001)])

    assert [post.body for post in api.posts] == [LARGE, LARGE]
