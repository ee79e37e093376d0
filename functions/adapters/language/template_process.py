"""Chat templates rendered in a process of their own.

Fuel does not bound all that a template can do: a list that holds itself twice, sixty times over, is
written for ever, and an object that holds itself ends the process
(docs/decisions/0052-language-packages.md).
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from functions.adapters.child_process import Child, ChildEnded, Limits
from functions.core.errors import InvalidModel, InvalidRequest

LIMITS = Limits(memory_mb=256, cpu_s=24 * 3600, file_mb=0)  # cpu_s: of all requests together
RENDER_S = 10.0  # wall-clock time for a request, also on a busy machine; real templates take 1 ms
_TOO_MUCH = (
    "messages: the model's chat template takes too much time or memory on them: send fewer, or "
    "ask for a corrected model"
)


class TemplateProcess:
    """Chat template of a model; implements `core.language.ports.Template`.

    One thread uses it at a time. The process starts with the first request, and again after a
    failure: it ends with the thread that started it, and that which loads a model ends at once.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._template = {"directory": "/", "source": source, "tokens": dict(tokens)}
        self._child: Child | None = None
        self._end: Callable[[], object] = _nothing

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return the prompt for a chat, as `ChatTemplate.render` does.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, or exceeds a limit.
            Unavailable: the process could not be started.
        """
        child = self._child
        if child is None or child.has_ended():  # the kernel, e.g., ended it between requests
            child = self._restart()
        task = {**self._template, "messages": list(messages), "tools": list(tools)}
        try:
            answer = child.ask(task, time.monotonic() + RENDER_S)
        except (ChildEnded, InvalidModel) as error:
            self._restart()
            raise InvalidRequest(_TOO_MUCH, code="TEMPLATE_LIMIT") from error
        match answer:
            case {"prompt": str(prompt)}:
                return prompt
            case {"refused": {"code": str(code), "message": str(message)}}:
                raise InvalidRequest(message, code=code)
        self._restart()
        raise InvalidRequest(_TOO_MUCH, code="TEMPLATE_LIMIT")

    def close(self) -> None:
        """End the process."""
        self._end()

    def _restart(self) -> Child:
        self._end()
        child = self._child = Child("template", LIMITS, {})
        self._end = weakref.finalize(self, child.kill)
        return child


def _nothing() -> None:
    """End no process: none was started."""
