"""Proof of an uploaded chat template by fixed conversations."""

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from functions.adapters.language.template import ChatTemplate
from functions.core.errors import InvalidModel, InvalidRequest

USER = {"role": "user", "content": "What is the capital of France?"}
REPLY = {"role": "assistant", "content": "Paris."}
MARK = "zebra crossing 42"
PROOF_S = 5.0  # processor time of all renderings together; real templates take 0.01 s
TURNS = 500  # turns of the longest conversation
# A template must render the first of these; it may refuse others, for example a system message.
CHATS: tuple[Sequence[Mapping[str, Any]], ...] = (
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, REPLY, {"role": "user", "content": MARK}],
    [*(turn for _ in range(TURNS) for turn in (USER, REPLY)), USER],
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def prove(template: ChatTemplate) -> str:
    """Render fixed conversations; return the prompt of the shortest.

    Raises:
        InvalidModel: `TEMPLATE_FAILED`, it refuses a user's message or leaves it out;
            `TEMPLATE_LIMIT`, it takes too long or writes too much.
    """
    # A list that holds itself twice, 60 times over, is written without fuel: the process ends.
    signal.setitimer(signal.ITIMER_PROF, PROOF_S)
    try:
        prompts = [_render(template, chat, needed=not place) for place, chat in enumerate(CHATS)]
        _render(template, [USER], [TOOL])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    first, third = prompts[0] or "", prompts[2]
    if USER["content"] not in first or (third is not None and MARK not in third):
        raise InvalidModel(
            "the chat template leaves out the user's message", code="TEMPLATE_FAILED"
        )
    return first


def _render(
    template: ChatTemplate,
    chat: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    needed: bool = False,
) -> str | None:
    """Return a prompt; None if the template may and does refuse."""
    try:
        return template.render(chat, tools)
    except InvalidRequest as error:
        if error.instance_code == "TEMPLATE_LIMIT" or needed:
            code = error.instance_code
            code = code if code.startswith("TEMPLATE") else "TEMPLATE_FAILED"
            raise InvalidModel(str(error), code=code) from None
        return None
