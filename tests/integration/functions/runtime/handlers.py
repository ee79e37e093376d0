"""Handlers that the tests of the runtime client run under it and under awslambdaric."""

import ctypes
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from functions.runtime.context import EndEnvironment
from functions.runtime.replies import StreamedReply

LARGE_BYTES = 6_000_000
STARVED_BYTES = 3_000_000


def echo(event: Any, context: Any) -> Any:
    return event


def describe(event: Any, context: Any) -> dict[str, Any]:
    names = (
        "aws_request_id",
        "function_name",
        "function_version",
        "invoked_function_arn",
        "log_group_name",
        "log_stream_name",
        "memory_limit_in_mb",
        "tenant_id",
    )
    remaining_ms = context.get_remaining_time_in_millis()
    return {name: getattr(context, name) for name in names} | {
        "remaining is an integer": type(remaining_ms) is int,
        "remaining is below the limit": 0 < remaining_ms <= event["limit_ms"],
        "trace_id": os.environ.get("_X_AMZN_TRACE_ID"),
        "w3c": context.w3c(),
        "identity": [
            context.identity.cognito_identity_id,
            context.identity.cognito_identity_pool_id,
        ],
        "client_context": repr(context.client_context),
        "has_client": bool(context.client_context and context.client_context.client),
    }


def represent(event: Any, context: Any) -> str:
    return repr(context)


def start_a_process(event: Any, context: Any) -> int | None:
    process = multiprocessing.get_context(event).Process(target=print, args=("from the child",))
    process.start()
    process.join(60)
    return process.exitcode


def log(event: Any, context: Any) -> None:
    print("printed", event)
    print("to stderr", file=sys.stderr)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("some.module"), name)("%s: %s", name, event)
    context.log("by the context\n")
    os.write(1, b"by the descriptor\n")


def log_failures(event: Any, context: Any) -> None:
    log = logging.getLogger("some.module")
    log.error({"an": "object"}, extra={"more": Decimal(1), "nothing": None})
    log.log(35, "%s percent", 5)
    try:
        fail(event, context)
    except OwnError:
        log.exception("failed")


def fail(event: Any, context: Any) -> None:
    kind = {"ValueError": ValueError, "KeyError": KeyError, "Own": OwnError}[event["type"]]
    raise kind(event["message"])


class OwnError(Exception):
    pass


def fail_deeply(event: Any, context: Any) -> None:
    def inner() -> None:
        raise LookupError("inner\nsecond line")

    try:
        inner()
    except LookupError as error:
        raise RuntimeError("outer") from error


def values(event: Any, context: Any) -> Any:
    circular: list[Any] = []
    circular.append(circular)
    return {
        "null": None,
        "text": 'ä€ \u2028 "quoted"',
        "numbers": [1, -2.5, 1e300, float("nan"), float("inf"), True],
        "decimals": {"price": Decimal("1.10"), "nan": Decimal("NaN")},
        "bytes": {"b": b"bytes", b"key": "value"},
        "keys": {3: "int", None: "none", True: "bool", 2.5: "float"},
        "tuple": (1, ("nested", ())),
        "set": {1},
        "object": object(),
        "circular": circular,
        "no key": {(1, 2): 3},
        "no text": [b"\xff"],
        "named tuple": [Point(1, {"inner": Point(2, b"bytes")})],
        "fields": Fields(),
        "failing type": FailingType(a=1),
    }[event]


class Point(NamedTuple):
    x: Any
    y: Any


class Fields:
    def _asdict(self) -> dict[str, int]:
        return {"field": 1}


class FailingType(dict[str, int]):
    def items(self) -> Any:
        raise KeyError("of the function's own type")


def raw(event: Any, context: Any) -> bytes:
    return b'{"raw": true}'


def large(event: Any, context: Any) -> str:
    return "x" * LARGE_BYTES


def size(event: Any, context: Any) -> int:
    return len(event)


def kind(event: Any, context: Any) -> str:
    return type(event).__name__


def leave(event: Any, context: Any) -> None:
    sys.exit(event)


def interrupt(event: Any, context: Any) -> None:
    raise KeyboardInterrupt


def stop_itself(event: Any, context: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def finish_on_sigterm(event: Any, context: Any) -> str:
    def finish(*_: object) -> None:
        print("finished")
        sys.exit(0)

    signal.signal(signal.SIGTERM, finish)
    return "ready"


class Callable:
    """Handler that is an object."""

    def __call__(self, event: Any, context: Any) -> str:
        return "called"


an_object = Callable()


# --- handlers for our runtime client alone ---

PRELUDE = {"content-type": "text/plain", "x-test": "ä"}
MALFORMED: Any = {"x-test": {1}}
FLOATS = array("f", [1, 2, 3])


def stream(event: Any, context: Any) -> StreamedReply:
    headers = MALFORMED if event.get("malformed headers") else PRELUDE
    return StreamedReply(200, headers, STREAMS[event["chunks"]](event))


def _counted(event: Any) -> Iterator[bytes]:
    for number in range(event["count"]):
        yield b"%d," % number


def _mixed(event: Any) -> Iterator[Any]:
    yield b""
    yield bytearray(b"array,")
    yield b""
    yield memoryview(b"view,")
    yield b"x" * LARGE_BYTES


def _views(event: Any) -> Iterator[memoryview]:
    yield memoryview(FLOATS)
    yield memoryview(bytes(6)).cast("B", (2, 3))
    yield memoryview(b"a-b-c-")[::2]


def _failing(event: Any) -> Iterator[bytes]:
    yield from _counted(event)
    raise LookupError("no more ä")


def _of_text(event: Any) -> Iterator[Any]:
    yield b"bytes"
    yield "text"


def _waiting(event: Any) -> Iterator[bytes]:
    """Yield a chunk once the test has seen the one before, and made its file."""
    for number in range(event["count"]):
        yield b"%d," % number
        wait_for(Path(event["folder"]) / str(number))


def _endless(event: Any) -> Iterator[bytes]:
    try:
        while True:
            yield b"more,"
            time.sleep(0.01)
    finally:
        print("the generator was closed")


class _Closing:
    """Iterator that is no generator and can be closed."""

    def __init__(self, event: Any) -> None:
        self._rest = event["count"]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._rest:
            raise StopIteration
        self._rest -= 1
        return b"%d," % self._rest

    def close(self) -> None:
        print("the iterator was closed")
        raise LookupError("it does not close")


def _stuck(event: Any) -> Iterator[bytes]:
    yield from _counted(event)
    stick()


def _heavy(event: Any) -> Iterator[bytes]:
    for number in range(10_000):
        print("made", number)
        yield bytes(2**20)


STREAMS = {
    "counted": _counted,
    "mixed": _mixed,
    "views": _views,
    "none": lambda _: None,
    "only text": lambda _: ["text"],
    "failing": _failing,
    "of text": _of_text,
    "waiting": _waiting,
    "endless": _endless,
    "closing": _Closing,
    "stuck": _stuck,
    "heavy": _heavy,
}


def stream_with_cookies(event: Any, context: Any) -> StreamedReply:
    return StreamedReply(
        302,
        {"location": "/"},
        [b"moved"],
        multi_value_headers={"x-many": ["a", "b"]},
        cookies=["c=1", "d=2"],
    )


def stream_then_work(event: Any, context: Any) -> StreamedReply:
    context.after(lambda: print("work"))
    return StreamedReply(200, {}, _counted({"count": 3}))


def work(event: Any, context: Any) -> str:
    for name in event["work"]:
        context.after(partial(WORK[name], event, context))
    if event.get("fails"):
        raise LookupError("the handler fails")
    return "reply"


def _nest(event: Any, context: Any) -> None:
    context.after(lambda: print("nested work"))


def _fail_late(event: Any, context: Any) -> None:
    raise ValueError("failed after the reply")


def _end(event: Any, context: Any) -> None:
    raise EndEnvironment("its memory is spent")


WORK: dict[str, Any] = {
    "first": lambda *_: print("first work"),
    "second": lambda *_: print("second work"),
    "nest": _nest,
    "fail": _fail_late,
    "end": _end,
    "stick": lambda *_: stick(),
    "wait": lambda event, _: wait_for(Path(event["file"])),
}


def stick() -> None:
    """Sleep in native code that nothing in Python can interrupt."""
    ctypes.CDLL(None).sleep(600)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} was not made"
        time.sleep(0.002)


class Limited:
    """Handler that takes bytes and has a late reply."""

    takes_bytes = True

    def __call__(self, event: bytes, context: Any) -> Any:
        request = json.loads(event)
        if request.get("chunks"):
            return stream(request, context)
        if request.get("sleep_s") is None:
            stick()
        time.sleep(request["sleep_s"])
        return event

    def late_reply(self, context: Any) -> bytes:
        return json.dumps({"late": context.aws_request_id}).encode()


class Broken(Limited):
    """Handler whose late reply fails."""

    def late_reply(self, context: Any) -> bytes:
        raise LookupError("no late reply")


class Leaving(Limited):
    """Handler whose late reply ends its thread."""

    def late_reply(self, context: Any) -> bytes:
        sys.exit(3)


limited = Limited()
leaving = Leaving()
broken = Broken()


class Recording(Limited):
    """Handler with last work: as the environment variable LAST_WORK names it."""

    def __call__(self, event: bytes, context: Any) -> Any:
        request = json.loads(event)
        return work(request, context) if "work" in request else super().__call__(event, context)

    def last_work(self) -> None:
        print("last work", flush=True)
        match os.environ.get("LAST_WORK"):
            case "stick":
                stick()
            case "fail":
                raise LookupError("no last work")


recording = Recording()


class Returning(Limited):
    """Handler that comes back while its late reply is made."""

    def __init__(self) -> None:
        self._late = threading.Event()

    def __call__(self, event: bytes, context: Any) -> bytes:
        assert self._late.wait(60)
        return b'"in time"'

    def late_reply(self, context: Any) -> bytes:
        self._late.set()
        time.sleep(0.3)  # the handler returns, and must not be answered
        return b'"late"'


returning = Returning()


def starve() -> None:
    """Leave this process little more address space than it uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + STARVED_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def starving_echo(event: Any, context: Any) -> Any:
    starve()
    return event


class Refusing(Limited):
    """Handler with a reply to events that memory cannot hold."""

    def __call__(self, event: bytes, context: Any) -> bytes:
        starve()
        return event

    def refuse_large(self, context: Any, size_bytes: int) -> bytes:
        return json.dumps({"refused": [context.aws_request_id, size_bytes]}).encode()


refusing = Refusing()


class Streaming(Limited):
    """Handler of a route that streams: its plain replies, and late ones, are one chunk."""

    takes_bytes = False
    streams = True

    def __call__(self, event: Any, context: Any) -> Any:
        if event is None:
            stick()
        return event["bytes"].encode() if "bytes" in event else event

    def late_reply(self, context: Any) -> bytes:
        return b'{"statusCode": 504, "body": "bGF0ZQ==", "isBase64Encoded": true}'


streaming = Streaming()


def variables(event: Any, context: Any) -> list[str]:
    return [name for name in os.environ if name.startswith("_LAMBDA")]


def search_path(event: Any, context: Any) -> list[str]:
    return sys.path


def flags(event: Any, context: Any) -> dict[str, Any]:
    return {
        "isolated": sys.flags.isolated,
        "no_site": sys.flags.no_site,
    }


def slow(event: Any, context: Any) -> str:
    time.sleep(event)
    return "slow"
