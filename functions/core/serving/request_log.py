"""Request log: one JSON line for each request, with its metrics.

Only inferences have metrics, in CloudWatch's embedded metric format. A line repeats nothing that a
caller wrote: no payload, no path, no name of a model that does not exist. Successful requests may
be sampled (docs/decisions/0014-one-line-a-request.md).
"""

import json
from typing import Any

import orjson

from functions.core.serving.service import Call

NAMESPACE = "Mayfly"
NO_ALIAS = "-"  # metric dimension of requests by version number; not a valid alias
UNITS = {
    "Requests": "Count",
    "Errors": "Count",
    "Latency": "Milliseconds",
    "ModelLoadMs": "Milliseconds",
}
BUG_FRAMES = 12  # innermost frames of a traceback that are logged
NOT_OFFERED = 501  # status of an unimplemented protocol part: the caller's mistake, so INFO


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
) -> bytes:
    """Return a request's JSON log line, with CloudWatch metrics for inferences.

    The metric `Errors` counts status 5xx. `sample_rate` is the share of such requests that are
    logged; the metric `Requests` is its reciprocal, to count the requests that are not.
    """
    line: dict[str, Any] = {
        "level": "ERROR" if status >= 500 and status != NOT_OFFERED else "INFO",
        "message": "request",
        "request_id": request_id,
        "action": action,
        "status": status,
        "latency_ms": latency_ns // 1000 / 1000,
        "cold": cold,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
    }
    if code is not None:
        line["code"] = code
    if call.grant.key_id:
        line["key"] = call.grant.key_id
    if (resolved := call.resolved) is not None:
        line["model"] = resolved.version.model
        line["version"] = resolved.version.number
        line["alias"] = resolved.alias
    if call.stages_ns:
        line["stages_ms"] = {stage: ns / 1e6 for stage, ns in call.stages_ns.items()}
    if sample_rate != 1:
        line["sample_rate"] = sample_rate
    if action == "infer":
        _add_metrics(line, call, status, sample_rate)
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate in the request id
        line["request_id"] = ascii(request_id)
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def bug_line(error: BaseException, request_id: str) -> str:
    """Return the JSON log line of an unexpected exception: type and traceback.

    The exception's message is left out, because it may hold values of the request.
    """
    import traceback  # not at the top: only needed here, and it imports the reading of source files

    frames = traceback.extract_tb(error.__traceback__)[-BUG_FRAMES:]
    line = {
        "level": "ERROR",
        "message": "bug",
        "request_id": request_id,
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "traceback": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    return json.dumps(line, separators=(",", ":"))


def _directive(model_exists: bool, loaded: bool) -> orjson.Fragment:
    """Return the JSON that declares a log line's metrics to CloudWatch."""
    dimensions = [[], ["Model", "Alias"]] if model_exists else [[]]
    metrics = [
        {"Name": name, "Unit": unit}
        for name, unit in UNITS.items()
        if loaded or name != "ModelLoadMs"
    ]
    directive = {"Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics}
    return orjson.Fragment(orjson.dumps([directive]))


_DIRECTIVES = {
    (model_exists, loaded): _directive(model_exists, loaded)
    for model_exists in (False, True)
    for loaded in (False, True)
}


def _add_metrics(line: dict[str, Any], call: Call, status: int, sample_rate: float) -> None:
    """Add metric values to a log line: requests, errors, latency, load time.

    They count in total and, if the model exists, by model and alias.
    """
    resolved, loaded = call.resolved, call.loaded and "load" in call.stages_ns
    line["Requests"] = 1 if sample_rate == 1 else 1 / sample_rate
    line["Errors"] = int(status >= 500)
    line["Latency"] = line["latency_ms"]
    line["_aws"] = {
        "Timestamp": call.began_ms,
        "CloudWatchMetrics": _DIRECTIVES[resolved is not None, loaded],
    }
    if loaded:
        line["ModelLoadMs"] = call.stages_ns["load"] / 1e6
    if resolved is not None:
        line["Model"] = resolved.version.model
        line["Alias"] = resolved.alias or NO_ALIAS
