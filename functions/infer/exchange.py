"""Request in progress, with data for its reply and log line."""

from typing import Any

from functions.core.serving.service import Call


class Exchange:
    """Request in progress, with data for reply headers and the log."""

    __slots__ = (
        "accept_encoding",
        "action",
        "began_ns",
        "bytes_in",
        "call",
        "code",
        "method",
        "request_id",
    )

    def __init__(self, context: Any, began_ns: int | None) -> None:
        self.call = call = Call()
        self.began_ns = call.lap_began_ns if began_ns is None else began_ns
        if began_ns is not None:
            call.lap_began_ns = began_ns
            call.lap("start")
        self.action = "unknown"
        self.code: str | None = None
        self.bytes_in = 0
        self.method = ""
        self.accept_encoding: str | None = None
        self.request_id = str(getattr(context, "aws_request_id", "") or "")
