"""One JSON line a request, which for an inference is its metric record too (CloudWatch embedded metric format).

A line holds what we know and nothing that a caller wrote: no payload, no path, no name of a model that does not exist.
Of requests that went well only a share may be logged: docs/decisions/0014-one-line-a-request.md.
"""

import json
from typing import Any

import orjson

from functions.core.serving.service import Call

NAMESPACE = "Mayfly"
BY_NUMBER = "-"  # the alias of a request that named none; no alias can be called that
UNITS = {
    "Requests": "Count",
    "Errors": "Count",
    "Latency": "Milliseconds",
    "ModelLoadMs": "Milliseconds",
}
BUG_FRAMES = 12
NOT_OFFERED = 501  # the caller asked for a part of the protocol that is not there: no error of ours


def request_line(
    call: Call,
    *,
    action: str,
    request_id: str,
    status: int,
    code: str | None,
    latency_ns: int,
    cold: bool,
    bytes_in: int,
    bytes_out: int,
    sample_rate: float = 1.0,
) -> str:
    """What happened to one request. `Errors` are ours (5xx); a refused request is none.

    `sample_rate` is the share of such requests that are logged: the line counts for those that are not.
    """
    latency_ms = latency_ns // 1000 / 1000
    line: dict[str, Any] = {
        "level": "ERROR" if status >= 500 and status != NOT_OFFERED else "INFO",
        "message": "request",
        "request_id": request_id,
        "action": action,
        "status": status,
        "latency_ms": latency_ms,
        "cold": cold,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
    }
    if code is not None:
        line["code"] = code
    if call.resolved is not None:
        line["model"] = call.resolved.version.model
        line["version"] = call.resolved.version.number
        line["alias"] = call.resolved.alias
    if call.stages_ns:
        line["stages_ms"] = {stage: ns / 1e6 for stage, ns in call.stages_ns.items()}
    if sample_rate != 1:
        line["sample_rate"] = sample_rate
    if action == "infer":
        line |= _metrics(call, status, latency_ms, sample_rate)
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # a lone surrogate in the request id
        return orjson.dumps(line | {"request_id": ascii(request_id)}).decode()


def bug_line(error: BaseException, request_id: str) -> str:
    """A bug: its type and where it happened. Not its message, which may hold values of the request."""
    import traceback  # with what reads source files: for a bug alone

    frames = traceback.extract_tb(error.__traceback__)[-BUG_FRAMES:]
    line = {
        "level": "ERROR",
        "message": "bug",
        "request_id": request_id,
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "traceback": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    return json.dumps(line, separators=(",", ":"))


def _directive(known: bool, loaded: bool) -> orjson.Fragment:
    """What CloudWatch is to make of a line: of a model that exists or not, and was loaded for it or not."""
    dimensions = [[], ["Model", "Alias"]] if known else [[]]
    metrics = [
        {"Name": name, "Unit": unit}
        for name, unit in UNITS.items()
        if loaded or name != "ModelLoadMs"
    ]
    directive = {"Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics}
    return orjson.Fragment(orjson.dumps([directive]))


_DIRECTIVES = {
    (known, loaded): _directive(known, loaded)
    for known in (False, True)
    for loaded in (False, True)
}


def _metrics(call: Call, status: int, latency_ms: float, sample_rate: float) -> dict[str, Any]:
    """The metrics by model and alias, where the model exists, and in total."""
    resolved, loaded = call.resolved, call.loaded and "load" in call.stages_ns
    values: dict[str, Any] = {
        "Requests": 1 if sample_rate == 1 else 1 / sample_rate,
        "Errors": int(status >= 500),
        "Latency": latency_ms,
        "_aws": {
            "Timestamp": call.began_ms,
            "CloudWatchMetrics": _DIRECTIVES[resolved is not None, loaded],
        },
    }
    if loaded:
        values["ModelLoadMs"] = call.stages_ns["load"] / 1e6
    if resolved is not None:
        values["Model"] = resolved.version.model
        values["Alias"] = resolved.alias or BY_NUMBER
    return values
