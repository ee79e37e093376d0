"""Streamed replies of our runtime client, as they reach the Runtime API."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from functions.core.watchdog import Watchdog
from functions.runtime.api import Invocation, RuntimeApi
from functions.runtime.context import Environment, LambdaContext
from functions.runtime.late_reply import Ending
from functions.runtime.log import StandardLog
from functions.runtime.replies import StreamedReply
from functions.runtime.streaming import StreamSender
from tests.integration.functions.runtime.handlers import FLOATS, LARGE_BYTES, PRELUDE
from tests.runtime_api import MAYFLY, Ended, Event, FakeRuntimeApi, Post, play, started

MODULE = "tests.integration.functions.runtime.handlers"
HEAD_CHUNKS = 1  # the prelude


def event(chunks: str, **more: Any) -> bytes:
    return json.dumps({"chunks": chunks, **more}).encode()


def streamed(*script: Event, handler: str = "stream") -> tuple[list[Post], Ended]:
    api, ended = play(MAYFLY, f"{MODULE}.{handler}", script)
    return api.posts, ended


def error_of(post: Post) -> dict[str, Any]:
    """Return the error in a streamed reply's trailers, after checking its type."""
    text = post.trailers["lambda-runtime-function-error-body"]
    error: dict[str, Any] = json.loads(base64.b64decode(text))
    assert error["errorType"] == post.trailers["lambda-runtime-function-error-type"]
    return error


def test_chunks_follow_a_prelude() -> None:
    [post, second], ended = streamed(*[Event(event("counted", count=200))] * 2)

    prelude, _, body = post.body.partition(bytes(8))
    assert json.loads(prelude) == {"statusCode": 200, "headers": PRELUDE}
    assert body == second.body.partition(bytes(8))[2] == b"".join(b"%d," % n for n in range(200))
    assert len(post.chunks) == HEAD_CHUNKS + 200
    assert post.trailers == {}
    assert post.path == "/2018-06-01/runtime/invocation/request-1/response"
    wanted = {
        "lambda-runtime-function-response-mode": "streaming",
        "transfer-encoding": "chunked",
        "content-type": "application/vnd.awslambda.http-integration-response",
        "trailer": "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
    }
    assert {name: post.headers.get(name) for name in wanted} == wanted
    assert (ended.status, ended.output) == (None, "")


def test_the_prelude_has_cookies_and_headers_of_several_values() -> None:
    [post], _ = streamed(Event(), handler="stream_with_cookies")

    prelude, _, body = post.body.partition(bytes(8))
    assert json.loads(prelude) == {
        "statusCode": 302,
        "headers": {"location": "/"},
        "multiValueHeaders": {"x-many": ["a", "b"]},
        "cookies": ["c=1", "d=2"],
    }
    assert body == b"moved"


def test_a_chunk_arrives_before_the_next_is_made(tmp_path: Path) -> None:
    count = 5
    script = [Event(event("waiting", count=count, folder=str(tmp_path)))]
    api = FakeRuntimeApi(script)
    with started(MAYFLY, api, f"{MODULE}.stream"):
        for number in range(count):
            api.wait_until(lambda n=number: bool(api.posts) and len(api.posts[0].chunks) >= n + 2)
            (tmp_path / str(number)).touch()
        api.wait_until(lambda: api.posts[0].complete)

    assert api.posts[0].chunks[HEAD_CHUNKS:] == [b"0,", b"1,", b"2,", b"3,", b"4,"]


def test_chunks_are_any_bytes_and_empty_ones_are_left_out() -> None:
    [post], _ = streamed(Event(event("mixed")))

    assert post.chunks[HEAD_CHUNKS:] == [b"array,", b"view,", b"x" * LARGE_BYTES]


def test_a_stream_may_be_empty() -> None:
    [post], _ = streamed(Event(event("counted", count=0)))

    assert post.complete
    assert post.body.endswith(bytes(8))


def test_an_error_after_the_start_is_in_the_trailers_and_the_log() -> None:
    [post, second], ended = streamed(
        Event(event("failing", count=3)), Event(event("counted", count=1))
    )

    assert post.chunks[HEAD_CHUNKS:] == [b"0,", b"1,", b"2,"]
    error = error_of(post)
    assert (error["errorType"], error["errorMessage"]) == ("LookupError", "no more ä")
    assert "in _failing" in error["stackTrace"][-1]
    assert ended.lines[0] == "[ERROR] LookupError: no more ä"
    assert second.trailers == {}


def test_an_error_before_the_first_chunk_is_an_ordinary_one() -> None:
    [post, _], ended = streamed(Event(event("failing", count=0)), Event(event("counted", count=1)))

    assert post.path.endswith("/error")
    assert json.loads(post.body)["errorType"] == "LookupError"
    assert ended.lines[0] == "[ERROR] LookupError: no more ä"


def test_a_view_of_any_items_is_sent_as_its_bytes() -> None:
    [post], _ = streamed(Event(event("views")))

    assert post.complete
    assert post.chunks[HEAD_CHUNKS:] == [FLOATS.tobytes(), bytes(6), b"abc"]


@pytest.mark.parametrize(
    "malformed",
    [
        event("none"),
        event("only text"),
        event("counted", count=1, **{"malformed headers": True}),
    ],
)
def test_a_stream_that_cannot_begin_is_an_ordinary_error(malformed: bytes) -> None:
    [post, second], ended = streamed(Event(malformed), Event(event("counted", count=1)))

    assert post.path.endswith("/error")
    assert json.loads(post.body)["errorType"] == "TypeError"
    assert (second.complete, second.connection) == (True, 1)
    assert ended.lines[0].startswith("[ERROR] TypeError")


def test_a_stream_that_cannot_begin_leaves_no_time_limit() -> None:
    watchdog = Watchdog()
    api, log = RuntimeApi("127.0.0.1:1"), StandardLog()
    sender = StreamSender(api, log, watchdog, Ending(log, None), late=None)
    invocation = Invocation({"lambda-runtime-aws-request-id": "1"}, b"")
    deadline_ms = int(time.time() * 1000) + 60_000
    context = LambdaContext(Environment({}, log), "1", deadline_ms, None)
    nothing: Any = None

    with pytest.raises(TypeError):
        sender.send(invocation, context, StreamedReply(200, {}, nothing))

    assert not watchdog.unwatch(sender)


def test_a_chunk_of_text_is_an_error() -> None:
    [post], _ = streamed(Event(event("of text")))

    assert "is bytes, not str" in error_of(post)["errorMessage"]


def test_an_endless_stream_is_ended_at_the_deadline() -> None:
    [post, second], ended = streamed(
        Event(event("endless"), remaining_s=2), Event(event("counted", count=1))
    )

    assert error_of(post)["errorType"] == "Runtime.StreamTimedOut"
    assert post.complete
    assert second.complete  # the process serves on
    assert "the generator was closed" in ended.lines
    assert any(line.startswith("[ERROR] Runtime.StreamTimedOut") for line in ended.lines)


def test_a_stuck_stream_is_ended_with_its_process() -> None:
    [post], ended = streamed(Event(event("stuck", count=2), remaining_s=2), Event())

    assert post.chunks[HEAD_CHUNKS:] == [b"0,", b"1,"]
    assert error_of(post)["errorType"] == "Runtime.StreamTimedOut"
    assert (post.complete, ended.status) == (True, 1)
    assert ended.lines[0].startswith("[ERROR] Runtime.StreamTimedOut")


def test_last_work_follows_a_stuck_stream() -> None:
    script = Event(event("stuck", count=1), remaining_s=2), Event()

    [post], ended = streamed(*script, handler="recording")

    assert error_of(post)["errorType"] == "Runtime.StreamTimedOut"
    assert (ended.lines[-1], ended.status) == ("last work", 1)


def test_a_stream_stuck_before_its_first_chunk_is_an_error() -> None:
    [post], ended = streamed(Event(event("stuck", count=0), remaining_s=2), Event())

    assert post.path.endswith("/error")
    assert json.loads(post.body)["errorType"] == "Runtime.StreamTimedOut"
    assert ended.status == 1


def test_a_stream_stuck_before_its_first_chunk_gets_the_late_reply() -> None:
    script = Event(event("stuck", count=0), remaining_s=2), Event()

    [post], ended = streamed(*script, handler="limited")

    assert (post.path[-9:], post.json) == ("/response", {"late": "request-1"})
    assert ended.status == 1


def test_a_caller_that_reads_nothing_slows_the_iterator_down() -> None:
    [post], ended = streamed(Event(event("heavy"), remaining_s=3, stop_reading_after=3), Event())

    made = [line for line in ended.lines if line.startswith("made")]
    assert 2 < len(made) < 100  # MB in the buffers of both sockets
    assert not post.complete
    assert ended.status == 1
    assert any(line.startswith("[ERROR] Runtime.StreamTimedOut") for line in ended.lines)


@pytest.mark.parametrize(
    "end",
    [{"hang_up_after": 3}, {"reset_after": 3}, {"answer_after": 3, "reply_status": 413}],
    ids=["closed", "reset", "answered"],
)
def test_a_caller_that_goes_away_closes_the_generator(end: dict[str, int]) -> None:
    [post, second], ended = streamed(
        Event(event("endless"), **end), Event(event("counted", count=1))
    )

    assert not post.complete
    assert second.complete
    assert "the generator was closed" in ended.lines
    [line] = [json.loads(line) for line in ended.lines if line.startswith("{")]
    assert (line["message"], line["request_id"]) == ("caller gone", "request-1")
    assert "[ERROR]" not in ended.output


def test_an_iterator_is_closed_at_its_end() -> None:
    [post, second], ended = streamed(*[Event(event("closing", count=2))] * 2)

    assert post.body.endswith(b"1,0,")
    assert second.complete
    assert ended.lines[:2] == ["the iterator was closed", "[ERROR] LookupError: it does not close"]


def test_a_refused_stream_ends_the_process() -> None:
    [_], ended = streamed(Event(event("counted", count=1), reply_status=413), Event())

    assert ended.status == 1
    assert "Http response code: 413" in ended.output


def test_work_after_a_stream_follows_its_end() -> None:
    [post], ended = streamed(Event(), handler="stream_then_work")

    assert post.complete
    assert ended.lines == ["work"]


@pytest.mark.parametrize("count", [1, 1000])
def test_a_connection_serves_many_streams(count: int) -> None:
    posts, _ = streamed(*[Event(event("counted", count=count))] * 20)

    assert {post.connection for post in posts} == {1}
    assert len({post.body for post in posts}) == 1


@pytest.mark.parametrize("form", ["object", "bytes"])
def test_a_plain_reply_of_a_streaming_handler_is_one_chunk(form: str) -> None:
    reply = {"statusCode": 404, "headers": {"x-a": "b"}, "cookies": ["c=1"], "body": "n\u00e4h"}
    plain: dict[str, Any] = reply if form == "object" else {"bytes": json.dumps(reply)}

    [post, second], _ = streamed(
        Event(json.dumps(plain).encode()), Event(b'{"statusCode": 204}'), handler="streaming"
    )

    assert post.headers["lambda-runtime-function-response-mode"] == "streaming"
    prelude, _, body = post.body.partition(bytes(8))
    assert json.loads(prelude) == {
        "statusCode": 404, "headers": {"x-a": "b"}, "cookies": ["c=1"]
    }  # fmt: skip
    assert (body.decode(), post.trailers) == ("n\u00e4h", {})
    assert second.body == b'{"statusCode":204,"headers":{}}' + bytes(8)


def test_the_late_reply_of_a_streaming_handler_is_one_chunk() -> None:
    [post], ended = streamed(Event(b"null", remaining_s=1), Event(), handler="streaming")

    prelude, _, body = post.body.partition(bytes(8))
    assert (json.loads(prelude)["statusCode"], body, post.trailers) == (504, b"late", {})
    assert (post.complete, ended.status) == (True, 1)


def test_a_reply_that_is_none_of_http_is_an_error_of_a_streaming_handler() -> None:
    [post], _ = streamed(Event(b'{"no": "status"}'), handler="streaming")

    assert (post.kind, post.json["errorType"]) == ("error", "KeyError")  # type: ignore[index]
