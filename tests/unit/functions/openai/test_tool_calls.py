"""Calls of tools: demanded and chosen ones, whole and in streams."""

import json
from pathlib import Path
from typing import Any

import pytest

from functions.core.openai.tool_calls import ReplyReader
from functions.core.records import replace
from tests.unit.functions.openai.plane import DECODER, LanguagePlane

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def plane(tmp_path: Path) -> LanguagePlane:
    plane = LanguagePlane(tmp_path)
    plane.add("tiny", replace(DECODER, context=2000))
    return plane


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_demanded_call_follows_the_tools_schema(plane: LanguagePlane, choice: Any) -> None:
    document = plane.chat(tools=[WEATHER], tool_choice=choice).json
    [call] = document["choices"][0]["message"]["tool_calls"]

    assert document["choices"][0]["finish_reason"] == "tool_calls"
    assert document["choices"][0]["message"]["content"] is None
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert plane.model.prompts[0].endswith("assistant: <tool_call>\n")


def test_a_named_function_must_be_one_of_the_tools(plane: LanguagePlane) -> None:
    choice = {"type": "function", "function": {"name": "other"}}
    reply = plane.chat(tools=[WEATHER], tool_choice=choice)

    assert (reply.status, reply.error["param"]) == (400, "tool_choice")


def test_a_call_that_is_cut_off_ends_by_length(plane: LanguagePlane) -> None:
    choice = plane.chat(tools=[WEATHER], tool_choice="required", max_tokens=40).json["choices"][0]

    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith("{")


def test_a_chosen_call_is_read_from_the_reply(plane: LanguagePlane) -> None:
    plane.model.script = f"I look.\n{CALL}"
    message = plane.chat(tools=[WEATHER, TIME]).json["choices"][0]["message"]

    assert message["content"] == "I look.\n"
    assert message["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Rome"}',
    }


@pytest.mark.parametrize("logprobs", [False, True])
def test_the_event_of_a_call_has_type_id_and_name_once(
    plane: LanguagePlane, logprobs: bool
) -> None:
    plane.model.script = CALL + CALL
    *events, done = plane.chat(tools=[WEATHER], stream=True, logprobs=logprobs).events
    entries = [event["choices"][0] for event in events]
    calls = [call for entry in entries for call in entry["delta"].get("tool_calls", ())]

    assert done == "[DONE]"
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert {call["type"] for call in calls} == {"function"}
    assert {call["function"]["name"] for call in calls} == {"weather"}
    assert entries[-1]["finish_reason"] == "tool_calls"
    assert "".join(entry["delta"].get("content", "") for entry in entries) == ""


def test_without_a_call_the_reply_is_text(plane: LanguagePlane) -> None:
    events = plane.chat(tools=[WEATHER], stream=True).events[:-1]
    texts = [event["choices"][0]["delta"].get("content", "") for event in events]

    assert "".join(texts) == "Hello, world"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_tools_are_described_unless_the_template_does(plane: LanguagePlane) -> None:
    plane.chat(tools=[WEATHER])
    assert plane.model.prompts[0].startswith("system: You may call functions")
    assert '"name":"weather"' in plane.model.prompts[0]
    plane.model.template.knows_tools = True  # type: ignore[union-attr]
    plane.chat(tools=[WEATHER])
    assert plane.model.prompts[1] == "tool weather\nuser: Hi\nassistant: "
    plane.chat(tools=[WEATHER], tool_choice="none")
    assert plane.model.prompts[2] == "user: Hi\nassistant: "


def test_calls_and_results_go_back_to_the_template(plane: LanguagePlane) -> None:
    seen = []
    template = plane.model.template
    render = template.render  # type: ignore[union-attr]
    template.render = lambda messages, tools=(): seen.append(messages) or render(messages)  # type: ignore
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]

    assert plane.chat(messages=messages).status == 200
    assert seen[0][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {}}
    assert seen[0][2] == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}


@pytest.mark.parametrize(
    ("reply", "text", "calls"),
    [
        ("Hello <b>", "Hello <b>", 0),
        ("a <tool_", "a <tool_", 0),
        (CALL, "", 1),
        (f"{CALL}{CALL}", "", 2),
        ('{"name": "weather", "arguments": {}}', "", 1),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', 0),
        ('{"x": 1}', '{"x": 1}', 0),
        ("<tool_call>nonsense</tool_call>", "nonsense", 0),
        ('<tool_call>{"name": "weather", "parameters": {"city": 1}}', "", 1),
    ],
)
def test_replies_are_read_the_same_however_they_arrive(reply: str, text: str, calls: int) -> None:
    for size in (1, 3, len(reply)):
        reader = ReplyReader(["weather"])
        parts = [reader.feed(reply[at : at + size]) for at in range(0, len(reply), size)]

        assert "".join(parts) + reader.end() == text
        assert len(reader.calls) == calls
