"""Replies of /v1/chat/completions: documents, events, and what clients trip over."""

from typing import Any

import pytest

from functions.core.errors import ExecutionFailed
from functions.core.language.spec import Kind, LanguageSpec
from tests.unit.functions.openai.plane import DECODER, LanguagePlane


def deltas(events: list[Any], choice: int = 0) -> list[Any]:
    """Return the deltas of a choice."""
    entries = [entry for event in events if event != "[DONE]" for entry in event["choices"]]
    return [entry["delta"] for entry in entries if entry["index"] == choice]


def test_a_whole_reply_has_all_of_openais_fields(plane: LanguagePlane) -> None:
    reply = plane.chat()
    document = reply.json

    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    digest = plane.registry.resolve("tiny", 1).version.digest
    assert {**document, "created": 0} == {
        "id": "chatcmpl-the-request",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny:1",
        "system_fingerprint": f"fp_{digest[:12]}",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 12,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    }
    assert plane.model.prompts == ["user: Hi\nassistant: "]


def test_a_stream_has_the_role_first_the_reason_last_then_done(plane: LanguagePlane) -> None:
    reply = plane.chat(stream=True)
    *events, done = reply.events

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert done == "[DONE]"
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert deltas(events)[0] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(delta.get("content", "") for delta in deltas(events)) == "Hello, world"
    assert deltas(events)[-1] == {}
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert all("usage" not in event for event in events)


def test_the_usage_of_a_stream_counts_each_prompt_once(plane: LanguagePlane) -> None:
    plane.chat()
    plane.model.cached = 7
    *events, last, done = plane.chat(
        n=2, stream=True, stream_options={"include_usage": True}
    ).events

    assert done == "[DONE]"
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 44
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 7


def test_the_length_ends_a_reply(plane: LanguagePlane) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = plane.chat(**{name: 5}).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


def test_several_replies_are_numbered_and_have_seeds_of_their_own(plane: LanguagePlane) -> None:
    document = plane.chat(n=3, seed=5, max_tokens=2).json
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]
    assert document["usage"]["completion_tokens"] == 6
    assert document["usage"]["prompt_tokens"] == 20
    assert [options.seed for options in plane.model.options] == [5, 6, 7]

    events = plane.chat(n=2, stream=True).events
    assert all("".join(d.get("content", "") for d in deltas(events, at)) for at in (0, 1))
    assert deltas(events, 1)[0]["role"] == "assistant"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_lie_beside_the_message(plane: LanguagePlane, stream: bool) -> None:
    reply = plane.chat(logprobs=True, top_logprobs=2, max_tokens=1, stream=stream)
    choice = reply.events[1]["choices"][0] if stream else reply.json["choices"][0]

    assert choice["logprobs"] == {
        "content": [
            {
                "token": "H",
                "logprob": -0.5,
                "bytes": [72],
                "top_logprobs": [
                    {"token": "H", "logprob": -0.5, "bytes": [72]},
                    {"token": "I", "logprob": -1.5, "bytes": [73]},
                ],
            }
        ],
        "refusal": None,
    }


def test_logprobs_need_no_top_logprobs(plane: LanguagePlane) -> None:
    content = plane.chat(logprobs=True, max_tokens=2).json["choices"][0]["logprobs"]["content"]

    assert [entry["top_logprobs"] for entry in content] == [[], []]


def test_unknown_fields_are_ignored(plane: LanguagePlane) -> None:
    extra = {"metadata": {}, "user": "u", "service_tier": "auto", "future_field": [1]}

    assert plane.chat(**extra, parallel_tool_calls=True, store=False).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {}}, "audio"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_known_fields_that_are_not_supported_are_refused(
    plane: LanguagePlane, fields: Any, param: str
) -> None:
    reply = plane.chat(**fields)

    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, "unsupported_parameter")
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": True}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "x" * 10_000}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"258": 1}}, "logit_bias.258"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"0000000000999999": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "é"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": 0}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": {"a": 1}}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(
    plane: LanguagePlane, fields: Any, param: str
) -> None:
    reply = plane.chat(**fields)

    assert (reply.status, reply.error["param"]) == (400, param)
    assert reply.error["message"].startswith(f"{param}: ")


def test_null_stands_for_a_missing_field(plane: LanguagePlane) -> None:
    names = ("temperature", "stop", "seed", "max_tokens", "logit_bias", "tools", "response_format")

    assert plane.chat(**dict.fromkeys(names), n=None, stream=None).status == 200


def test_parameters_reach_the_model(plane: LanguagePlane) -> None:
    plane.chat(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        seed=-3,
        stop="x",
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100},
        ignore_eos=True,
        max_tokens=4,
    )
    [options] = plane.model.options

    assert options.logit_bias == {5: -100.0}
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0, 0.5, 0, 0.1)
    assert (options.seed, options.stop, options.max_tokens, options.ignore_eos) == (
        -3,
        ("x",),
        4,
        True,
    )
    assert (options.presence_penalty, options.frequency_penalty) == (1, -1)


def test_the_models_defaults_apply_unless_the_request_has_a_value(plane: LanguagePlane) -> None:
    defaults = {"temperature": 0.3, "top_p": 0.9, "top_k": 40}
    spec = LanguageSpec(Kind.DECODER, 258, 200, chat=True, defaults=defaults)
    plane.add("tiny", spec)
    plane.chat(model="tiny:2")
    plane.chat(model="tiny:2", temperature=1, top_k=2)

    first, second = plane.model.options
    assert (first.temperature, first.top_p, first.top_k) == (0.3, 0.9, 40)
    assert (second.temperature, second.top_p, second.top_k) == (1.0, 0.9, 2)


def test_a_long_prompt_is_refused_with_both_numbers(plane: LanguagePlane) -> None:
    reply = plane.chat("x" * 300)
    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == ("context_length_exceeded", "messages")
    assert "200 tokens" in reply.error["message"]
    assert "318 tokens" in reply.error["message"]

    reply = plane.chat("Hi", max_tokens=181)
    assert reply.error["code"] == "context_length_exceeded"
    assert "20 in the prompt and 181 for the reply" in reply.error["message"]


def test_a_reply_may_fill_the_context(plane: LanguagePlane) -> None:
    plane.chat()
    plane.chat(max_tokens=180)

    assert [options.max_tokens for options in plane.model.options] == [180, 180]


def test_without_a_number_a_reply_is_as_long_as_is_usual(plane: LanguagePlane) -> None:
    plane.add("long", LanguageSpec(Kind.DECODER, 258, 100_000, chat=True))
    plane.chat(model="long")
    plane.chat(model="long", max_tokens=50_000)

    assert [options.max_tokens for options in plane.model.options] == [2048, 50_000]


def test_texts_of_a_message_are_joined_and_developers_are_the_system(plane: LanguagePlane) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "c"}]
    plane.chat(messages=messages)

    assert plane.model.prompts == ["system: ab\nuser: c\nassistant: "]


def test_json_replies_follow_the_schema(plane: LanguagePlane) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    text = plane.chat(response_format=form).json["choices"][0]["message"]["content"]

    assert "".join(text.split()) == '{"a":1}'
    text = plane.chat(response_format={"type": "json_object"}).json["choices"][0]["message"]
    assert text["content"].startswith("{")
    assert plane.chat(response_format={"type": "text"}).json["choices"][0]["message"][
        "content"
    ] == ("Hello, world")


def test_a_schema_that_cannot_be_followed_names_its_field(plane: LanguagePlane) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    reply = plane.chat(response_format=form, stream=True)

    assert (reply.status, reply.error["param"]) == (400, "response_format")


def test_an_error_before_the_first_token_has_a_status(plane: LanguagePlane) -> None:
    plane.model.failure = ExecutionFailed("the model fails")
    reply = plane.chat(stream=True)

    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert reply.error["code"] == "execution_failed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token_is_an_error(plane: LanguagePlane, stream: bool) -> None:
    plane.model.late_after = 0
    reply = plane.chat(stream=stream)

    assert (reply.status, reply.error["code"]) == (504, "timed_out")


def test_a_deadline_after_the_first_token_ends_by_length(plane: LanguagePlane) -> None:
    plane.model.late_after = 2
    reply = plane.chat()
    choice = reply.json["choices"][0]

    assert (reply.status, choice["finish_reason"]) == (200, "length")
    assert choice["message"]["content"] == "He"


def test_an_error_in_a_stream_is_its_last_event(plane: LanguagePlane) -> None:
    plane.model.failure, plane.model.fails_after = ExecutionFailed("the model fails"), 3
    reply = plane.chat(stream=True)

    assert reply.status == 200
    assert reply.events[-1]["error"]["message"] == "the model fails"
    assert "".join(d.get("content", "") for d in deltas(reply.events[:-1])) == "Hel"
    assert "[DONE]" not in reply.events
    assert plane.lines[-1]["code"] == "EXECUTION_FAILED"


def test_models_without_a_template_take_no_chats(plane: LanguagePlane) -> None:
    plane.add("plain", LanguageSpec(Kind.DECODER, 258, 200))
    reply = plane.chat(model="plain")

    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "/v1/completions" in reply.error["message"]
    assert DECODER.chat
