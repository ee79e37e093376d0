"""Log of a function: standard output, or framed messages on Lambda's descriptor.

A frame keeps the lines of a stack trace together: type, length (4 bytes each), microseconds since
the epoch (8 bytes), text; big-endian, as in awslambdaric.
"""

import os
import sys
import time
from collections.abc import MutableMapping
from typing import Protocol

from functions.runtime.errors import FunctionError

DESCRIPTOR = "_LAMBDA_TELEMETRY_LOG_FD"
FRAME_TEXT, FRAME_TEXT_ERROR = 0xA55A0003, 0xA55A0017
NO_BREAK_SPACE = "\u00a0"  # CloudWatch would strip spaces at the start of a line


class Log(Protocol):
    """Destination of log lines."""

    def write(self, text: str) -> None:
        """Write a text, with its line ends."""
        ...

    def error(self, lines: list[str]) -> None:
        """Write the lines of one error."""
        ...


class StandardLog:
    """Log on standard output; the lines of an error are one record."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)

    def error(self, lines: list[str]) -> None:
        self.write("\r".join(lines) + "\n")


class FramedLog:
    """Log in frames, on a descriptor that Lambda has opened."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        self._frame(text, FRAME_TEXT)

    def error(self, lines: list[str]) -> None:
        self._frame("\n".join(lines), FRAME_TEXT_ERROR)

    def _frame(self, text: str, kind: int) -> None:
        message = text.encode("utf-8", "replace")
        head = kind.to_bytes(4, "big") + len(message).to_bytes(4, "big")
        frame = head + (time.time_ns() // 1000).to_bytes(8, "big") + message
        while frame:
            frame = frame[os.write(self._descriptor, frame) :]


def open_log(environ: MutableMapping[str, str]) -> Log:
    """Return the log; child processes do not inherit the descriptor's variable."""
    descriptor = environ.pop(DESCRIPTOR, None)
    return StandardLog() if descriptor is None else FramedLog(int(descriptor))


def log_error(log: Log, error: FunctionError) -> None:
    """Write an error as Lambda does: [ERROR], type, message and stack trace."""
    head = f"[ERROR] {error.type}"
    lines = [f"{head}: {error.message}" if error.message else head]
    lines.append("Traceback (most recent call last):")
    for entry in error.trace:
        lines += [_indented(line) for line in entry.splitlines()]
    log.error(lines)


def record(level: str, message: str, request_id: str, reason: str) -> str:
    """Return a log line as the functions write theirs: one JSON object."""
    import json  # not at the top: few environments write any

    line = {"level": level, "message": message, "request_id": request_id, "reason": reason}
    return json.dumps(line, separators=(",", ":")) + "\n"


def _indented(line: str) -> str:
    text = line.lstrip(" ")
    return NO_BREAK_SPACE * (len(line) - len(text)) + text
