"""Calls of tools: demanded and chosen ones, whole and in streams."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from functions.core.openai.tool_calls import ReplyReader, callable_functions
from functions.core.records import replace
from tests.unit.functions.openai.plane import DECODER, EOS, LanguagePlane, allowed_tokens

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
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
OTHER = '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
DEEP = '{"name": "weather", "arguments": ' + "[" * 300 + "]" * 300 + "}"


@pytest.fixture
def plane(tmp_path: Path) -> LanguagePlane:
    plane = LanguagePlane(tmp_path)
    plane.add("tiny", replace(DECODER, context=2000))
    return plane


def follows(
    plane: LanguagePlane,
    tools: list[Any],
    reply: str,
    *,
    demanded: bool = False,
    several: bool = True,
    schema: Any = None,
) -> str:
    """Return "complete", "open", "may end", or the text after which a reply is not allowed."""
    calls = callable_functions(tools, (), demanded=demanded, several=several)[0]
    grammar = plane.model.call_grammar(calls, schema)
    for at, byte in enumerate(reply.encode()):
        if byte not in allowed_tokens(grammar):
            return reply.encode()[:at].decode()
        grammar.accept(byte)
    if grammar.complete:
        return "complete"
    return "may end" if EOS in allowed_tokens(grammar) else "open"


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


class Address(BaseModel):
    city: Literal["Rome"]
    model_config = {"extra": "forbid"}


class Letter(BaseModel):
    to: Address
    default: Address | None = None  # named as a keyword of JSON Schema
    model_config = {"extra": "forbid"}


@pytest.mark.parametrize("others", [[], [WEATHER]])
@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_nested_models_may_be_demanded(
    plane: LanguagePlane, others: list[Any], keyword: str
) -> None:
    schema = json.dumps(Letter.model_json_schema()).replace("$defs", keyword)
    letter = {"name": "letter", "parameters": json.loads(schema)}
    tools = [*others, {"type": "function", "function": letter}]
    reply = '{"name": "letter", "arguments": {"to": {"city": "Rome"}, "default": null}}'

    assert follows(plane, tools, reply, demanded=True) == "complete"
    assert plane.chat(tools=tools, tool_choice="required").status == 200


def test_parameters_may_refer_to_themselves_and_have_an_id(plane: LanguagePlane) -> None:
    schema = Letter.model_json_schema()
    node = {"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    for parameters, text in (
        ({"$id": "https://a.example/letter", **schema}, '{"to": {"city": "Rome"}}'),
        (node, '{"next": {"next": {}}}'),
    ):
        tool = {"function": {"name": "f", "parameters": parameters}}
        reply = f'{{"name": "f", "arguments": {text}}}'
        assert follows(plane, [tool], reply, demanded=True) == "complete"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('"{\\"city\\": \\"Rome\\"}"', '{"city": "Rome"}'),
        ('"Rome"', '"Rome"'),
        ('{"city": "a</tool_call>\\"b<tool_call>"}', '{"city":"a</tool_call>\\"b<tool_call>"}'),
    ],
)
def test_arguments_stay_as_they_were_written(arguments: str, read: str) -> None:
    reply = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>{CALL}'
    for size in (1, 3, len(reply)):
        reader = ReplyReader(["weather"])
        parts = [reader.feed(reply[at : at + size]) for at in range(0, len(reply), size)]

        assert "".join(parts) + reader.end() == ""
        assert [call[1] for call in reader.calls] == [read, '{"city":"Rome"}']


def test_a_string_that_never_ends_hides_no_call() -> None:
    broken = '<tool_call>{"name": "weather}</tool_call>'
    reader = ReplyReader(["weather"])

    assert reader.feed(f"a{broken}b{CALL}c") + reader.end() == f"a{broken}bc"
    assert len(reader.calls) == 1


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


BARE = '{"name": "weather", "arguments": {"city": "Rome"}}'


@pytest.mark.parametrize(
    ("reply", "end"),
    [
        ("Hello <b> <tool_", "may end"),
        ("{}", "may end"),
        ('{"name": "x"}', "may end"),
        ('I have {"name": "weather"}.', "may end"),
        ("é\n🙂", "may end"),
        (CALL, "may end"),
        (f"I look.\n{CALL}\nand{CALL} done", "may end"),
        ("<tool_call>", "open"),
        (BARE, "complete"),
        (f" \n{BARE}", "complete"),
        (BARE.replace(" ", "").replace('"Rome', ' "Rome'), "complete"),
        (BARE.replace("arguments", "parameters"), "complete"),
        (f"{BARE}x", BARE),
        ("<tool_call>nonsense", "<tool_call>"),
        (CALL.replace("weather", "other"), '<tool_call>\n{"name": "'),
        (CALL.replace("Rome", "Paris"), CALL.partition("Rome")[0]),
        (CALL.replace('"}}', '"}'), CALL.partition("}}")[0] + "}"),
        (f"{CALL}<tool_call>[", f"{CALL}<tool_call>"),
        (BARE.replace("Rome", "Paris"), BARE.partition("Rome")[0]),
    ],
)
def test_a_chosen_call_follows_its_schema(plane: LanguagePlane, reply: str, end: str) -> None:
    assert follows(plane, [WEATHER, TIME], reply) == end


def test_a_single_call_ends_the_reply(plane: LanguagePlane) -> None:
    assert follows(plane, [WEATHER], f"I look.\n{CALL}", several=False) == "complete"
    plane.model.script = CALL + CALL
    for parallel, count in ((True, 2), (False, 1)):
        reply = plane.chat(tools=[WEATHER], parallel_tool_calls=parallel).json
        assert len(reply["choices"][0]["message"]["tool_calls"]) == count


@pytest.mark.parametrize(
    ("reply", "end"),
    [
        ('{"yes":true}', "complete"),
        (CALL, "may end"),
        (CALL + CALL, "may end"),
        ("Hello", ""),
        (CALL + "x", CALL),
    ],
)
def test_json_or_calls_may_be_asked_for_together(
    plane: LanguagePlane, reply: str, end: str
) -> None:
    schema = {"properties": {"yes": {"const": True}}, "required": ["yes"]}
    schema |= {"type": "object", "additionalProperties": False}

    assert follows(plane, [WEATHER], reply, schema=schema) == end


def test_broken_calls_of_a_model_become_valid_ones(plane: LanguagePlane) -> None:
    for broken in ('<tool_call>{"name": weather', CALL[:-30], CALL.replace("Rome", "London")):
        plane.model.script = broken
        document = plane.chat(tools=[WEATHER, TIME]).json["choices"][0]
        [call] = document["message"]["tool_calls"]
        assert document["finish_reason"] == "tool_calls"
        if call["function"]["name"] == "weather":
            assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


UNIQUE = {"type": "array", "uniqueItems": True}
ODD = {"name": "odd", "parameters": {"type": "object", "properties": {"a": UNIQUE}}}


def test_a_schema_that_is_not_supported_allows_any_object(plane: LanguagePlane) -> None:
    plane.model.script = '<tool_call>\n{"name": "odd", "arguments": {"a": [1, 1]}}\n</tool_call>'
    tools = [WEATHER, {"type": "function", "function": ODD}]
    message = plane.chat(tools=tools).json["choices"][0]["message"]

    assert message["tool_calls"][0]["function"]["arguments"] == '{"a":[1,1]}'


@pytest.mark.parametrize(
    ("strict", "choice"), [(True, "auto"), (True, "required"), (False, "required")]
)
def test_a_schema_that_has_to_be_followed_must_be_supported(
    plane: LanguagePlane, strict: bool, choice: str
) -> None:
    tools = [WEATHER, {"type": "function", "function": {**ODD, "strict": strict}}]
    reply = plane.chat(tools=tools, tool_choice=choice)

    assert (reply.status, reply.error["param"]) == (400, "tools")
    assert reply.error["message"].startswith("tools: odd: the JSON schema is invalid or unsupp")


def test_strict_is_a_boolean(plane: LanguagePlane) -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": "yes"}}

    assert plane.chat(tools=[tool]).error["param"] == "tools[0].function.strict"


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


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"x": value}
    return value


@pytest.mark.parametrize("levels", [101, 300, 990, 5000])
def test_json_that_is_nested_too_deeply_is_refused(plane: LanguagePlane, levels: int) -> None:
    text = "[" * levels + "]" * levels
    function = {"name": "weather", "arguments": text}
    call = {"id": "c1", "type": "function", "function": function}
    for body in (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "@"}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "@"}}},
        {"messages": [{"role": "user", "content": [{"type": "@"}]}]},
        {"unknown": "@"},
    ):
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **body}
        raw = json.dumps(chat).replace('"@"', text).encode()
        reply = plane.send("POST", "/v1/chat/completions", raw)
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    if levels < 1024:  # orjson reads no more: that is a broken call, which stays text
        messages = [{"role": "assistant", "tool_calls": [call]}]
        assert plane.chat(messages=messages).error["code"] == "invalid_json"


def test_a_hundred_levels_are_read(plane: LanguagePlane) -> None:
    assert plane.chat(unknown=nested(99)).status == 200
    assert plane.chat(unknown=nested(100)).status == 400
    parameters = {"type": "object", "description": "d", "$defs": nested(90)}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for choice in ("auto", "required"):
        assert plane.chat(tools=[tool], tool_choice=choice).status == 200


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
        (DEEP, DEEP, 0),
        ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", 0),
        (f"a{OTHER}b{CALL}c", f"a{OTHER}bc", 1),
        (OTHER.removesuffix("</tool_call>"), OTHER.removesuffix("</tool_call>"), 0),
        ('<tool_call>{"name": "weather", "parameters": {"city": 1}}', "", 1),
    ],
)
def test_replies_are_read_the_same_however_they_arrive(reply: str, text: str, calls: int) -> None:
    for size in (1, 3, len(reply)):
        reader = ReplyReader(["weather"])
        parts = [reader.feed(reply[at : at + size]) for at in range(0, len(reply), size)]

        assert "".join(parts) + reader.end() == text
        assert len(reader.calls) == calls
