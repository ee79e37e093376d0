"""Messages and tools of a chat request, in a template's form."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from functions.core.errors import shown
from functions.core.openai.errors import InvalidParameter, unsupported
from functions.core.openai.fields import Fields, load_json

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGES_MAX = 4096
TOOLS_MAX = 128
TOOL_NAME = "^[A-Za-z0-9_-]{1,64}$"

Message = Mapping[str, Any]


def parse_messages(fields: Fields) -> list[Message]:
    """Return a chat's messages as templates expect them.

    A content of several texts is joined. `developer` is the role `system`, and arguments of tool
    calls are objects instead of JSON.

    Raises:
        InvalidParameter: a message is malformed, or has more than text.
    """
    messages = [_message(message) for message in fields.objects("messages")]
    if not 1 <= len(messages) <= MESSAGES_MAX:
        raise InvalidParameter(
            "messages", f"{len(messages)} messages; send between 1 and {MESSAGES_MAX}"
        )
    return messages


def parse_tools(fields: Fields) -> list[Mapping[str, Any]]:
    """Return the tools of a request, in OpenAI's form.

    Raises:
        InvalidParameter: a tool is no function, or its parameters are no JSON schema.
    """
    if fields.get("tools") is None:
        return []
    tools = [_tool(tool) for tool in fields.objects("tools")]
    if len(tools) > TOOLS_MAX:
        raise InvalidParameter("tools", f"{len(tools)} tools; send at most {TOOLS_MAX}")
    return tools


def strict_tools(fields: Fields) -> frozenset[str]:
    """Return the names of tools with `strict`.

    Raises:
        InvalidParameter: `strict` is no boolean.
    """
    if fields.get("tools") is None:
        return frozenset()
    functions = [tool.object("function") for tool in fields.objects("tools")]
    strict = [each for each in functions if each is not None and each.flag("strict")]
    return frozenset(each.text("name") or "" for each in strict)


def _message(fields: Fields) -> Message:
    role = fields.required("role")
    if role not in ROLES:
        raise fields.wrong("role", f"one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = _calls(fields) if role == "assistant" else []
    if calls:
        message["tool_calls"] = calls
    elif fields.get("content") is None:
        raise InvalidParameter(
            fields.param("content"), "missing; send a text", code="MISSING_REQUIRED_PARAMETER"
        )
    message["content"] = _content(fields)
    for name in ("name", "tool_call_id"):
        if (text := fields.text(name)) is not None:
            message[name] = text
    return message


def _content(fields: Fields) -> str:
    content = fields.get("content")
    if content is None or type(content) is str:
        return content or ""
    if type(content) is not list:
        raise fields.wrong("content", "a string or an array of text parts")
    parts = []
    for part in fields.objects("content"):
        kind = part.required("type")
        if kind != "text":
            raise unsupported(part.param("type"), f"{shown(kind)} is not supported; send text")
        part.required("text")
        parts.append(part.text("text") or "")
    return "".join(parts)


def _calls(fields: Fields) -> list[Mapping[str, Any]]:
    if fields.get("tool_calls") is None:
        return []
    return [_call(call) for call in fields.objects("tool_calls")]


def _call(fields: Fields) -> Mapping[str, Any]:
    function = fields.object("function")
    if function is None:
        raise InvalidParameter(fields.param("function"), "missing; send name and arguments")
    arguments: Any = function.text("arguments") or "{}"
    with suppress(orjson.JSONDecodeError):  # a broken call stays text
        arguments = load_json(arguments.encode())
    function.required("name")
    named = {"name": function.text("name"), "arguments": arguments}
    call = {"type": "function", "function": named}
    identity = fields.text("id")
    return {**call, "id": identity} if identity else call


def _tool(fields: Fields) -> Mapping[str, Any]:
    if fields.get("type") not in (None, "function"):
        raise unsupported(fields.param("type"), "only functions are supported")
    function = fields.object("function")
    if function is None:
        raise InvalidParameter(fields.param("function"), "missing; send name and parameters")
    function.required("name")
    name = function.text("name") or ""
    if not re.fullmatch(TOOL_NAME, name):
        raise function.wrong("name", "1 to 64 letters, digits, _ and -")
    function.text("description")
    parameters = function.object("parameters")
    if parameters is not None and parameters.get("type") not in (None, "object"):
        raise parameters.wrong("type", "object")
    tool = {"name": name, "parameters": function.get("parameters") or {"type": "object"}}
    if description := function.get("description"):
        tool["description"] = description
    return {"type": "function", "function": tool}
