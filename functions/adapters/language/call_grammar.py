"""Grammars of replies that may call functions, in llguidance's language.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Mapping
from typing import Any

from functions.core.language.ports import Calls

# Chat templates write JSON with these separators, so models have learnt calls with them.
SEPARATORS = {"item_separator": ", ", "key_separator": ": "}
TEXT = "/(?s:.*)/"


def write_grammar(
    calls: Calls, schema: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> str:
    """Write the grammar of a text with calls of functions.

    With a schema, the reply is JSON that it allows, or calls; without one, a reply that begins as
    the JSON of a call is one, too, as some models leave the markers out. `options` are llguidance's
    for JSON schemas.
    """
    if calls.demanded:
        start = ["start: call"]
    elif schema is None:
        start = _text_or_calls(calls)
    else:
        marked = "marked+" if calls.several else "marked"
        start = [f"start: reply | {marked}", f"reply: {_json(schema, options)}"]
    end = _string(f"\n{calls.end}")
    rules = ["%llguidance {}", *start, f"marked: {_string(calls.begin)} after"]
    rules.append(f'after: "\\n" call {end}')
    rules.append(f"call: {_either('call', calls)}")
    for at, (name, parameters) in enumerate(calls.functions):
        head = f'{{"name": {_string(name)}, "arguments": '
        rules.append(f'call_{at}: {_string(head)} arguments_{at} "}}"')
        rules.append(f"arguments_{at}: {_json(parameters, {**options, **SEPARATORS})}")
    return "\n".join(rules)


def _text_or_calls(calls: Calls) -> list[str]:
    """Return rules of a text with calls, or a bare call."""
    names = "|".join(name for name, _ in calls.functions)
    rules = [
        f"start: bare | FIRST | first after{' (later after)* TEXT' if calls.several else ''}",
        f"TEXT: {TEXT}",
        rf'FIRST: {TEXT} & ~/\s*\{{"name": ?"({names})"(?s:.*)/',
        f"first[lazy]: FIRST {_string(calls.begin)}",
        f"later[lazy]: TEXT {_string(calls.begin)}",
        f"bare: {_either('bare', calls)}",
    ]
    for at, (name, _) in enumerate(calls.functions):
        head = rf'/\s*\{{"name": ?"{name}", ?"(arguments|parameters)": ?/'
        rules.append(f'bare_{at}: {head} arguments_{at} "}}"')
    return rules


def _either(rule: str, calls: Calls) -> str:
    return " | ".join(f"{rule}_{at}" for at in range(len(calls.functions)))


def _json(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
