"""Chat templates rendered in a process of their own.

A template comes with an upload and is not trusted. The limits of `ChatTemplate` do not stop every
hostile one: sixty lists, each of which holds the one before twice, are 2^60 elements to write, and
an object that contains itself crashes the process that writes it. So a child process renders, with
limits on memory and time, and is replaced when it fails
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

    It may be used by one thread at a time. The child process starts with the first request, and
    again after a failure. It does not start in `__init__`: the kernel ends a child when the thread
    that started it ends, and the thread that loads a model ends at once.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._template = {"directory": "/", "source": source, "tokens": dict(tokens)}
        self._child: Child | None = None
        self._end: Callable[[], object] = _nothing

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return the prompt for a chat, as `ChatTemplate.render` does.

        It waits up to RENDER_S for the child process.

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
