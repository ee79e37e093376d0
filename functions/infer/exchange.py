"""Request in progress, with data for its reply and log line."""

from typing import Any

from functions.core.serving.service import Call


class Exchange(Call):
    """Call in progress, with data for reply headers and log."""

    __slots__ = ("accept_encoding",)

    def __init__(self, context: Any, began_ns: int | None) -> None:
        super().__init__()
        if began_ns is not None:
            self.began_ns = self.lap_began_ns = began_ns
            self.lap("start")
        self.accept_encoding: str | None = None
        self.request_id = str(getattr(context, "aws_request_id", "") or "")
