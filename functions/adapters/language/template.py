"""Chat templates of uploaded models: Jinja, rendered by the library `minijinja`.

A template is untrusted. It sees its arguments alone, and its fuel bounds its time and the memory
of the texts that it makes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import minijinja

from functions.core.errors import InvalidModel, InvalidRequest, one_line

SOURCE_CHARACTERS = 256 * 1024  # the longest in use have 20,000
FUEL = 4_000_000  # a unit an instruction and for 16 characters made: 0.1 s, or 64 MB
OUTPUT_CHARACTERS = 8 * 1024 * 1024  # a request's body has at most 6 MB

_PROBLEM = 120  # characters quoted of a message of the library
_FAILS = "messages: the model's chat template fails on them"
_OF_CALLS = (TypeError, ValueError, OverflowError, RecursionError)  # from the functions below

# transformers' own tag, which marks replies for training; here its body is written as it is.
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class ChatTemplate:
    """Chat template with limits; implements `core.language.ports.Template`.

    `tokens` are special tokens by the names that templates use, e.g. {"bos_token": "<s>"}.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        """Compile a template.

        Raises:
            InvalidModel: `TEMPLATE_TOO_LARGE` or `TEMPLATE_INVALID`.
        """
        if len(source) > SOURCE_CHARACTERS:
            raise InvalidModel(
                f"the chat template has {len(source)} characters, and {SOURCE_CHARACTERS} are "
                "allowed",
                code="TEMPLATE_TOO_LARGE",
            )
        self._tokens = dict(tokens or {})
        self._environment = _environment()
        try:
            self._environment.add_template("chat", _GENERATION.sub(_as_block, source))
        except minijinja.TemplateError as error:
            raise InvalidModel(
                f"the chat template is not valid Jinja: {_problem(error)}", code="TEMPLATE_INVALID"
            ) from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return the prompt for a chat, up to where the reply begins.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, or exceeds a limit.
        """
        values: dict[str, Any] = {
            **self._tokens,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            prompt = self._environment.render_template("chat", **values)
        except minijinja.TemplateError as error:
            raise InvalidRequest(_failure(error), code=_code(error)) from None
        except _OF_CALLS as error:
            problem = one_line(str(error), _PROBLEM)
            raise InvalidRequest(f"{_FAILS}: {problem}", code="TEMPLATE_FAILED") from None
        if len(prompt) > OUTPUT_CHARACTERS:
            raise InvalidRequest(
                f"the chat template writes {len(prompt)} characters, and {OUTPUT_CHARACTERS} are "
                "allowed: send shorter messages",
                code="TEMPLATE_LIMIT",
            )
        return prompt


def _environment() -> minijinja.Environment:
    """Return an environment with what transformers gives to chat templates."""
    environment = minijinja.Environment(
        debug=False,
        fuel=FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=_no_escapes,
        globals={"raise_exception": _refuse, "strftime_now": _now},
        filters={"tojson": _to_json},
    )
    environment.remove_global("debug")  # it writes all values and functions
    return environment


def _no_escapes(name: str) -> None:
    """Write texts as they are: a prompt is no HTML."""


def _as_block(tag: re.Match[str]) -> str:
    """Return transformers' tag `generation` as a block that is always written."""
    opened, end, closed = tag.groups()
    return f"{opened}{'endif' if end else 'if true'}{closed}"


def _refuse(message: object = "") -> NoReturn:
    """Refuse the messages, for the template's reason."""
    raise InvalidRequest(f"messages: the model's chat template refuses them: {message}")


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers' filter does, without escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _code(error: minijinja.TemplateError) -> str:
    return "TEMPLATE_LIMIT" if error.kind == "OutOfFuel" else "TEMPLATE_FAILED"


def _failure(error: minijinja.TemplateError) -> str:
    if error.kind == "OutOfFuel":
        return "messages: the model's chat template takes too long on them: send fewer"
    return f"{_FAILS}: {_problem(error)}"


def _problem(error: minijinja.TemplateError) -> str:
    """Return the first line of an error; the rest quotes the template."""
    return one_line(str(error).splitlines()[0].replace(" (in chat:", " (line "), _PROBLEM)
