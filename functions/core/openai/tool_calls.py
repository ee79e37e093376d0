"""Calls of tools: prompt, schema of a call, reader of replies.

The form is that of Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>. A call that
the request demands follows a JSON schema; a call that the model chooses is recognised by its text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

BEGIN, END = "<tool_call>", "</tool_call>"
FORCED = f"{BEGIN}\n"  # the end of a prompt whose reply is a call
INSTRUCTIONS = (
    "You may call functions to answer. Here are their signatures within <tools></tools>:\n"
    "<tools>\n%s\n</tools>\n"
    "To call one, reply with its name and arguments as JSON within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)
_CUT = re.compile(
    r'\s*\{\s*"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)*)"\s*,\s*"arguments"\s*:\s*(?P<arguments>.*)',
    re.DOTALL,
)

Tool = Mapping[str, Any]
Call = tuple[str, str]  # name, arguments as JSON


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the JSON schema of a call of some tool."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": _object(tool["function"]["parameters"]),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _object(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    return parameters if "type" in parameters else {"type": "object", **parameters}


def with_instructions(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[Mapping[str, Any]]:
    """Describe the tools in the system message, for templates that know none."""
    signatures = "\n".join(orjson.dumps(tool).decode() for tool in tools)
    text = INSTRUCTIONS % signatures
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def parse_call(text: str) -> Call | None:
    """Return a call's name and arguments, None for other texts.

    A reply that was cut off has the arguments so far, as OpenAI returns them.

    >>> parse_call('{"name": "f", "arguments": {"x": 1}}')
    ('f', '{"x":1}')
    >>> parse_call('{"name": "f", "arguments": {"x')
    ('f', '{"x')
    """
    try:
        call = orjson.loads(text)
    except orjson.JSONDecodeError:
        cut = _CUT.match(text)
        return (cut["name"], cut["arguments"]) if cut else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    return call["name"], orjson.dumps(arguments).decode()


class ReplyReader:
    """Splits a reply into text and calls of tools, as it arrives.

    With `forced`, the reply is one call. Otherwise calls stand between BEGIN and END, or the reply
    is the JSON of a call of one of `names`.
    """

    def __init__(self, names: Sequence[str], *, forced: bool = False) -> None:
        self._names = names
        self._forced = forced
        self._heads = [f'{{"name":{space}"{name}"' for name in names for space in (" ", "")]
        self._in_call = forced
        self._begun = False  # text was returned
        self._held = ""
        self.calls: list[Call] = []

    def feed(self, text: str) -> str:
        """Return the text that is certainly no call."""
        self._held += text
        passed = ""
        while not self._forced:
            marker = END if self._in_call else BEGIN
            before, found_marker, after = self._held.partition(marker)
            if not found_marker:
                break
            passed += before if not self._in_call else self._read(before)
            self._held, self._in_call = after, not self._in_call
        if not self._in_call:
            passed += self._release()
        self._begun = self._begun or bool(passed.strip())
        return passed

    def end(self) -> str:
        """Return the remaining text, at the end of the reply."""
        held, self._held = self._held, ""
        is_call = self._in_call or any(held.lstrip().startswith(head) for head in self._heads)
        return self._read(held) if is_call else held

    def _read(self, text: str) -> str:
        """Read a call; return its text if it is none."""
        call = parse_call(text.strip())
        if call is None or call[0] not in self._names:
            return text
        self.calls.append(call)
        return ""

    def _release(self) -> str:
        """Return the held text that cannot belong to a call."""
        head = self._held.lstrip()
        if not self._begun and any(
            start.startswith(head) or head.startswith(start) for start in self._heads
        ):
            return ""
        keep = next(
            size for size in range(len(BEGIN) - 1, -1, -1) if self._held.endswith(BEGIN[:size])
        )
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(passed) :]
        return passed
