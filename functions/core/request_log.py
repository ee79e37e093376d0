"""One JSON line a request, which for an inference is its metric record too (CloudWatch embedded metric format).

A line holds what we know and nothing that a caller wrote: no payload, no path, no name of a model that does not exist.
"""

import json
import traceback
from typing import Any

from functions.core.inference import Call

NAMESPACE = "Mayfly"
BY_NUMBER = "-"  # the alias of a request that named none; no alias can be called that
UNITS = {"Requests": "Count", "Errors": "Count", "Latency": "Milliseconds", "ModelLoadMs": "Milliseconds"}
BUG_FRAMES = 12
NOT_OFFERED = 501  # the caller asked for a part of the protocol that is not there: no error of ours


def request_line(
    call: Call, *, action: str, request_id: str, status: int, code: str | None, latency_ms: float, **more: Any
) -> str:
    """What happened to one request. `Errors` are ours (5xx); a refused request is none."""
    line: dict[str, Any] = {
        "level": "ERROR" if status >= 500 and status != NOT_OFFERED else "INFO",
        "message": "request",
        "request_id": request_id,
        "action": action,
        "status": status,
        "latency_ms": round(latency_ms, 3),
        **more,
    }
    if code is not None:
        line["code"] = code
    if call.resolved is not None:
        line["model"] = call.resolved.version.model
        line["version"] = call.resolved.version.number
        line["alias"] = call.resolved.alias
    if call.stages_ns:
        line["stages_ms"] = {stage: ns / 1e6 for stage, ns in call.stages_ns.items()}
    if action == "infer":
        line |= _metrics(call, status, line["latency_ms"])
    return json.dumps(line, separators=(",", ":"))


def bug_line(error: BaseException, request_id: str) -> str:
    """A bug: its type and where it happened. Not its message, which may hold values of the request."""
    frames = traceback.extract_tb(error.__traceback__)[-BUG_FRAMES:]
    line = {
        "level": "ERROR",
        "message": "bug",
        "request_id": request_id,
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "traceback": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    return json.dumps(line, separators=(",", ":"))


def _metrics(call: Call, status: int, latency_ms: float) -> dict[str, Any]:
    """The metrics by model and alias, where the model exists, and in total."""
    values: dict[str, Any] = {"Requests": 1, "Errors": int(status >= 500), "Latency": latency_ms}
    if call.loaded and "load" in call.stages_ns:
        values["ModelLoadMs"] = call.stages_ns["load"] / 1e6
    dimensions: list[list[str]] = [[]]
    if call.resolved is not None:
        dimensions.append(["Model", "Alias"])
        values |= {"Model": call.resolved.version.model, "Alias": call.resolved.alias or BY_NUMBER}
    metrics = [{"Name": name, "Unit": unit} for name, unit in UNITS.items() if name in values]
    directive = {"Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics}
    return values | {"_aws": {"Timestamp": call.began_ms, "CloudWatchMetrics": [directive]}}
