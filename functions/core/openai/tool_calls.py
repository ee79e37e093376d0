"""Calls of tools: prompt, callable functions, reader of replies.

The form is that of Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeGuard

import orjson

from functions.core.language.ports import Calls
from functions.core.records import replace

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
_STRING_OR_END = re.compile(rf'"(?:[^"\\]+|\\.?)*"?|{END}', re.DOTALL)  # a string may be open
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

Tool = Mapping[str, Any]
Call = tuple[str, str]  # name, arguments as JSON


def callable_functions(
    tools: Sequence[Tool], strict: Container[str], *, demanded: bool, several: bool
) -> tuple[Calls, ...]:
    """Return what a reply may call, then with looser schemas.

    The second is for schemas that are not supported: arguments of functions that are neither
    demanded nor `strict` may be any object.
    """
    functions = [(tool["function"]["name"], tool["function"]["parameters"]) for tool in tools]
    exact = tuple((name, {**ANY_OBJECT, **parameters}) for name, parameters in functions)
    calls = Calls(exact, BEGIN, END, demanded, several)
    if demanded:
        return (calls,)
    loose = tuple((name, schema if name in strict else ANY_OBJECT) for name, schema in exact)
    return (calls, replace(calls, functions=loose))


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

    Some models write arguments as OpenAI's API has them, as a string of JSON.

    >>> parse_call('{"name": "f", "arguments": "{}"}')
    ('f', '{}')
    """
    try:
        call = orjson.loads(text)
    except orjson.JSONDecodeError:
        cut = _CUT.match(text)
        return (cut["name"], cut["arguments"]) if cut else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    try:
        written = arguments if _is_json(arguments) else orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        return None
    return call["name"], written


def _is_json(value: Any) -> TypeGuard[str]:
    """Tell if a value is a string of JSON."""
    if not isinstance(value, str):
        return False
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


class ReplyReader:
    """Splits a reply into text and calls of tools, as it arrives.

    With `forced`, the reply is one call. Otherwise calls stand between BEGIN and END, or the reply
    is the JSON of a call of one of `names`. END within a string of a call's JSON belongs to it.
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
            at = _call_end(self._held) if self._in_call else self._held.find(BEGIN)
            if at < 0:
                break
            passed += self._close(at) if self._in_call else self._open(at)
        if not self._in_call:
            passed += self._release()
        self._begun = self._begun or bool(passed.strip())
        return passed

    def end(self) -> str:
        """Return the remaining text, at the end of the reply."""
        passed = ""
        while self._in_call and not self._forced and END in self._held:  # a string without an end
            passed += self._close(self._held.find(END)) + self.feed("")
        held, self._held = self._held, ""
        is_call = self._in_call or any(held.lstrip().startswith(head) for head in self._heads)
        marker = BEGIN if self._in_call and not self._forced else ""
        return passed + (self._read(held, marker) if is_call else held)

    def _open(self, at: int) -> str:
        """Begin a call; return the text before it."""
        before, self._held = self._held[:at], self._held[at + len(BEGIN) :]
        self._in_call = True
        return before

    def _close(self, at: int) -> str:
        """End and read a call; return its text if it is none."""
        before, self._held = self._held[:at], self._held[at + len(END) :]
        self._in_call = False
        return self._read(before, BEGIN, END)

    def _read(self, text: str, begin: str = "", end: str = "") -> str:
        """Read a call; return text that is none, with its markers."""
        call = parse_call(text.strip())
        if call is None or call[0] not in self._names:
            return begin + text + end
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


def _call_end(text: str) -> int:
    """Return where END stands outside of JSON strings, -1 if nowhere.

    >>> _call_end('{"a": "</tool_call>"}</tool_call>')
    21
    """
    if END not in text:
        return -1
    matches = _STRING_OR_END.finditer(text)
    return next((match.start() for match in matches if match[0] == END), -1)
