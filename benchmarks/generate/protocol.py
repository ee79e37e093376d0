"""Requests to a measured process and its answers, as JSON lines.

The standard library alone: contenders run in environments of their own.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Commands = Mapping[str, Callable[..., Any]]


def serve(commands: Commands) -> None:
    """Answer requests {"command", ...arguments} until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("command")](**request)
        print("ANSWER " + json.dumps(answer), flush=True)


def timed(tokens: Iterable[int]) -> dict[str, Any]:
    """Read a reply's tokens; return them, and wall and CPU milliseconds.

    `first` is the time to the first token, `rest` of all others.
    """
    started = time.perf_counter(), time.process_time()
    first = started
    reply = []
    for token in tokens:
        reply.append(token)
        if len(reply) == 1:
            first = time.perf_counter(), time.process_time()
    ended = time.perf_counter(), time.process_time()
    return {
        "tokens": reply,
        "first_ms": (first[0] - started[0]) * 1000,
        "first_cpu_ms": (first[1] - started[1]) * 1000,
        "rest_ms": (ended[0] - first[0]) * 1000,
        "rest_cpu_ms": (ended[1] - first[1]) * 1000,
    }


def peak_mb() -> float:
    """Return this process's peak of resident memory (VmHWM), mapped files included."""
    with open("/proc/self/status") as status:  # noqa: PTH123 (a cold start is measured)
        [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
