"""Request in progress, with data for its reply and log line."""

from collections.abc import Mapping
from typing import Any

from functions.core.serving.service import NO_HEADERS, Call


class Exchange(Call):
    """Call in progress, with data for reply headers and log."""

    __slots__ = (
        "accept_encoding",
        "action",
        "began_ns",
        "bytes_in",
        "code",
        "cors_headers",
        "method",
    )

    def __init__(self, context: Any, began_ns: int | None) -> None:
        super().__init__()
        self.began_ns = self.lap_began_ns if began_ns is None else began_ns
        if began_ns is not None:
            self.lap_began_ns = began_ns
            self.lap("start")
        self.action = "unknown"
        self.method = ""
        self.accept_encoding: str | None = None
        self.cors_headers: Mapping[str, str] = NO_HEADERS
        self.bytes_in = 0
        self.code: str | None = None
        self.request_id = str(getattr(context, "aws_request_id", "") or "")
