"""Handlers that the tests of the runtime client run under it and under awslambdaric."""

import logging
import os
import signal
import sys
from decimal import Decimal
from typing import Any

LARGE_BYTES = 6_000_000


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


def log(event: Any, context: Any) -> None:
    print("printed", event)
    print("to stderr", file=sys.stderr)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("some.module"), name)("%s: %s", name, event)
    context.log("by the context\n")
    os.write(1, b"by the descriptor\n")


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
    }[event]


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
