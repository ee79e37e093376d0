"""Replies of /v1/completions and of Triton's generate."""

from typing import Any

import pytest

from functions.core.errors import ExecutionFailed
from tests.unit.functions.openai.plane import LanguagePlane, Reply

GENERATE = "/v2/models/tiny/generate"


def test_a_whole_reply_has_all_of_openais_fields(plane: LanguagePlane) -> None:
    document = plane.complete(max_tokens=5).json
    usage = document.pop("usage")
    digest = plane.registry.resolve("tiny", 1).version.digest

    assert {**document, "created": 0} == {
        "id": "cmpl-the-request",
        "object": "text_completion",
        "created": 0,
        "model": "tiny:1",
        "system_fingerprint": f"fp_{digest[:12]}",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}],
    }
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 5)


def test_sixteen_tokens_are_the_default(plane: LanguagePlane) -> None:
    plane.complete()
    send(plane, GENERATE)

    assert [options.max_tokens for options in plane.model.options] == [16, 16]


def test_the_default_yields_to_the_context(plane: LanguagePlane) -> None:
    assert plane.complete("x" * 195).status == 200
    assert send(plane, GENERATE, text_input="x" * 195).status == 200

    assert [options.max_tokens for options in plane.model.options] == [5, 5]
    assert plane.complete("x" * 195, max_tokens=16).status == 400


def test_a_stream_has_text_in_every_event_then_usage_and_done(plane: LanguagePlane) -> None:
    *events, usage, done = plane.complete(
        stream=True, stream_options={"include_usage": True}
    ).events

    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 12)
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello, world"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97], [98]], ["a", "b"]),
    ],
)
def test_prompts_are_texts_or_tokens(plane: LanguagePlane, prompt: Any, seen: list[str]) -> None:
    document = plane.complete(prompt, n=2).json

    assert plane.model.prompts == [each for each in seen for _ in range(2)]
    assert [choice["index"] for choice in document["choices"]] == [*range(2 * len(seen))]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        ({}, "prompt"),
        ([258], "prompt"),
        ([-1], "prompt"),
        ([[97], "a", [1.5]], "prompt[2]"),
        ([[97], []], "prompt[1]"),
        (["a"] * 65, "prompt"),
        ("x" * 1_000_000, "prompt"),
    ],
)
def test_wrong_prompts_are_refused(plane: LanguagePlane, prompt: Any, param: str) -> None:
    reply = plane.complete(prompt)

    assert (reply.status, reply.error["param"]) == (400, param)


def test_prompts_times_replies_are_limited(plane: LanguagePlane) -> None:
    reply = plane.complete(["a"] * 9, n=8)

    assert (reply.status, reply.error["param"]) == (400, "n")
    assert "72 replies" in reply.error["message"]
    assert "at most 64" in reply.error["message"]
    assert plane.complete(["a"] * 8, n=8, max_tokens=1).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"echo": 0}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_fields_that_are_not_supported_are_refused(
    plane: LanguagePlane, fields: Any, param: str
) -> None:
    reply = plane.complete(**fields)

    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_lists_with_offsets(plane: LanguagePlane, stream: bool) -> None:
    reply = plane.complete(logprobs=1, max_tokens=2, stream=stream)
    if stream:
        found = [event["choices"][0]["logprobs"] for event in reply.events[:2]]
        logprobs = {name: found[0][name] + found[1][name] for name in found[0]}
    else:
        logprobs = reply.json["choices"][0]["logprobs"]

    assert logprobs == {
        "tokens": ["H", "e"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"H": -0.5}, {"e": -0.5}],
        "text_offset": [0, 1],
    }


# --- Triton


def send(plane: LanguagePlane, path: str, **fields: Any) -> Reply:
    return plane.send("POST", path, {"text_input": "Hi", **fields})


def test_generate_answers_with_one_document(plane: LanguagePlane) -> None:
    reply = send(plane, GENERATE, id="x", parameters={"max_tokens": 5, "temperature": 0})

    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "x",
        "text_output": "Hello",
    }


@pytest.mark.parametrize("parameters", [{}, {"parameters": {}}, {"parameters": {"seed": 2}}])
def test_parameters_of_generate_may_lie_beside_the_text(
    plane: LanguagePlane, parameters: Any
) -> None:
    send(plane, "/v2/models/tiny/versions/prod/generate", max_tokens=3, seed=2, **parameters)
    [options] = plane.model.options

    assert (options.max_tokens, options.seed) == (3, 2)


def test_the_last_event_of_generate_stream_is_done(plane: LanguagePlane) -> None:
    events = send(plane, f"{GENERATE}_stream", parameters={"stream": True}).events

    assert "".join(event["text_output"] for event in events) == "Hello, world"
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert {(event["model_name"], event["model_version"]) for event in events} == {("tiny", "1")}


@pytest.mark.parametrize(
    ("path", "fields", "status", "text"),
    [
        (GENERATE, {"text_input": None}, 400, "text_input: missing"),
        (GENERATE, {"parameters": {"top_p": 2}}, 400, "top_p: must be"),
        (GENERATE, {"parameters": [1]}, 400, "parameters: must be an object"),
        (GENERATE, {"parameters": {"stream": True}}, 400, "stream: this path sends one reply"),
        (GENERATE, {"parameters": {"stop_words": ["a"]}}, 400, "stop_words: not supported"),
        (GENERATE, {"exclude_input_in_output": False}, 400, "exclude_input_in_output: not"),
        (GENERATE, {"top_p": 2, "parameters": {"top_p": None}}, 400, "top_p: must be"),
        (GENERATE, {"id": 5}, 400, "id: must be a string"),
        (GENERATE, {"id": {"a": []}}, 400, "id: must be a string"),
        (GENERATE, {"id": "x" * 129}, 400, "id: must have at most 128 characters"),
        (f"{GENERATE}_stream", {"id": ["x"]}, 400, "id: must be a string"),
        ("/v2/models/none/generate", {}, 404, "unknown model: 'none'"),
        ("/v2/models/tiny/versions/9/generate", {}, 404, "version"),
        ("/v2/models/tiny/versions/A/generate", {}, 400, "version 'A'"),
    ],
)
def test_errors_of_generate_are_the_protocols(
    plane: LanguagePlane, path: str, fields: Any, status: int, text: str
) -> None:
    reply = send(plane, path, **fields)

    assert reply.status == status
    assert text in reply.json["error"]
    assert set(reply.json) == {"error", "code", "request_id"}


def test_an_error_in_a_stream_of_generate_is_its_last_event(plane: LanguagePlane) -> None:
    plane.model.failure, plane.model.fails_after = ExecutionFailed("it fails"), 2

    assert send(plane, f"{GENERATE}_stream").events[-1]["error"] == "it fails"
