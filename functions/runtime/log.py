"""Log of a function: standard output, or framed messages on Lambda's descriptor.

A frame keeps the lines of a stack trace together: type, length (4 bytes each), microseconds since
the epoch (8 bytes), text; big-endian, as in awslambdaric. Under `LogFormat: JSON` errors and log
records are JSON, too, and their frame's type has their level.
"""

import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Protocol

from functions.runtime.errors import FunctionError

DESCRIPTOR = "_LAMBDA_TELEMETRY_LOG_FD"
FORMAT = "AWS_LAMBDA_LOG_FORMAT"  # Lambda's variable
FRAME_TEXT, FRAME_TEXT_ERROR = 0xA55A0003, 0xA55A0017
FRAMES_JSON = {0: 0xA55A0002} | {10 * at: 0xA55A0006 + 4 * at for at in range(1, 6)}  # by level
LEVELS = {"WARNING": 30, "ERROR": 40}
TIMESTAMP = "%Y-%m-%dT%H:%M:%SZ"
NO_BREAK_SPACE = "\u00a0"  # CloudWatch would strip spaces at the start of a line


class Log(Protocol):
    """Destination of log lines.

    `is_json` is True under `LogFormat: JSON`.
    """

    is_json: bool

    def write(self, text: str, frame: int = FRAME_TEXT) -> None:
        """Write a text, with its line ends."""
        ...

    def error(self, lines: list[str]) -> None:
        """Write the lines of one error."""
        ...


class StandardLog:
    """Log on standard output; the lines of an error are one record."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json

    def write(self, text: str, frame: int = FRAME_TEXT) -> None:
        del frame
        sys.stdout.write(text)

    def error(self, lines: list[str]) -> None:
        self.write("\r".join(lines) + "\n")


class FramedLog:
    """Log in frames, on a descriptor that Lambda has opened."""

    def __init__(self, descriptor: int, is_json: bool = False) -> None:
        self._descriptor = descriptor
        self.is_json = is_json

    def error(self, lines: list[str]) -> None:
        self.write("\n".join(lines), FRAMES_JSON[40] if self.is_json else FRAME_TEXT_ERROR)

    def write(self, text: str, frame: int = FRAME_TEXT) -> None:
        message = text.encode("utf-8", "replace")
        head = frame.to_bytes(4, "big") + len(message).to_bytes(4, "big")
        framed = head + (time.time_ns() // 1000).to_bytes(8, "big") + message
        while framed:
            framed = framed[os.write(self._descriptor, framed) :]


def open_log(environ: MutableMapping[str, str]) -> Log:
    """Return the log; child processes do not inherit the descriptor's variable."""
    descriptor = environ.pop(DESCRIPTOR, None)
    is_json = environ.get(FORMAT, "").upper() == "JSON"
    return StandardLog(is_json) if descriptor is None else FramedLog(int(descriptor), is_json)


def log_error(log: Log, error: FunctionError) -> None:
    """Write an error as Lambda does: [ERROR], type, message and stack trace.

    Under `LogFormat: JSON` it is the object that the Runtime API gets, with time and level.
    """
    if log.is_json:
        log.error([_dumps({"timestamp": _now(), "level": "ERROR", **error.to_record()})])
        return
    head = f"[ERROR] {error.type}"
    lines = [f"{head}: {error.message}" if error.message else head]
    lines.append("Traceback (most recent call last):")
    for entry in error.trace:
        lines += [_indented(line) for line in entry.splitlines()]
    log.error(lines)


def log_record(log: Log, level: str, message: str, request_id: str, reason: str) -> None:
    """Write a log line as the functions write theirs: one JSON object."""
    line = {"level": level, "message": message, "request_id": request_id, "reason": reason}
    if log.is_json:
        log.write(_dumps({"timestamp": _now(), **line}) + "\n", FRAMES_JSON[LEVELS[level]])
    else:
        log.write(_dumps(line) + "\n")


def json_frame(level: int) -> int:
    """Return the frame type of a JSON record by its logging level."""
    return FRAMES_JSON[min(50, max(0, level)) // 10 * 10]


def _now() -> str:
    return time.strftime(TIMESTAMP, time.gmtime())


def _dumps(value: Mapping[str, object]) -> str:
    import json  # not at the top: few environments write any

    return json.dumps(value, ensure_ascii=False)


def _indented(line: str) -> str:
    text = line.lstrip(" ")
    return NO_BREAK_SPACE * (len(line) - len(text)) + text
