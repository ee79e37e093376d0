"""Rendering of a chat template, in a process of its own."""

from collections.abc import Mapping
from typing import Any

from functions.adapters.language.template import ChatTemplate
from functions.core.errors import InvalidModel, InvalidRequest


class Renderer:
    """Step of the sandbox process that renders one template again and again."""

    def __init__(self) -> None:
        self._template: ChatTemplate | None = None

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return {"prompt": …}, or {"refused": {"code", "message"}}."""
        try:
            if self._template is None:
                self._template = ChatTemplate(task["source"], task["tokens"])
            return {"prompt": self._template.render(task["messages"], task["tools"])}
        except (InvalidRequest, InvalidModel) as error:
            return {"refused": {"code": error.instance_code, "message": str(error)}}
