"""Request in progress, with data for its reply and log line."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from functions.core.serving.service import Call


class Exchange:
    """Request in progress, with data for reply headers and the log."""

    action = "unknown"
    code: str | None = None
    bytes_in = 0
    cors_headers: Mapping[str, str] = MappingProxyType({})
    method = ""
    accept_encoding: str | None = None

    def __init__(self, context: Any, began_ns: int | None) -> None:
        self.call = call = Call()
        self.began_ns = call.lap_began_ns if began_ns is None else began_ns
        if began_ns is not None:
            call.lap_began_ns = began_ns
            call.lap("start")
        self.request_id = str(getattr(context, "aws_request_id", "") or "")
