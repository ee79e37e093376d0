"""Request log: one JSON line for each request, with its metrics.

Inferences and replies of language models have metrics, in CloudWatch's embedded metric format. A
line repeats nothing that a caller wrote: no payload, no path, no name of a model that does not
exist. Successful inferences may be sampled (docs/decisions/0014-one-line-a-request.md).
"""

import json
from collections.abc import Mapping
from functools import cache
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
# Metrics of replies by language models: names in the log line, and units.
LANGUAGE_UNITS = {
    "FirstTokenMs": "Milliseconds",
    "TokensPerSecond": "Count/Second",
    "PromptTokens": "Count",
    "CompletionTokens": "Count",
}
BUG_FRAMES = 12  # innermost frames of a traceback that are logged
NOT_OFFERED = 501  # status of an unimplemented protocol part: the caller's mistake, so INFO


class ModelMetrics:
    """First models of an environment that are called, up to a number.

    Only these have metrics of their own, for each alias by which they are called: CloudWatch
    charges every metric (docs/operations.md, costs).
    """

    __slots__ = ("_most", "_pairs")

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._pairs: set[tuple[str, str]] = set()

    def include(self, model: str, alias: str) -> bool:
        """Return True if a model by this alias has own metrics."""
        pair = (model, alias)
        if pair not in self._pairs:
            if len(self._pairs) >= self._most:
                return False
            self._pairs.add(pair)
        return True


NO_MODEL_METRICS = ModelMetrics(0)


def request_line(
    call: Call,
    status: int,
    latency_ns: int,
    cold: bool,
    *,
    sample_rate: float = 1.0,
    model_metrics: ModelMetrics = NO_MODEL_METRICS,
) -> bytes:
    """Return a request's JSON log line, with CloudWatch metrics for inferences.

    The metric `Errors` counts status 5xx. `sample_rate` is the share of such requests that are
    logged; the metric `Requests` is its reciprocal, to count the requests that are not.
    `model_metrics` decides which models have metrics of their own, besides the total.
    """
    line = _line(call, status, latency_ns, cold)
    if sample_rate != 1:
        line["sample_rate"] = sample_rate
    if call.action == "infer":
        _add_metrics(line, call, status, sample_rate, model_metrics)
    return _dump(line)


def language_line(
    call: Call,
    status: int,
    latency_ns: int,
    cold: bool,
    finish: str,
    metrics: Mapping[str, float],
) -> bytes:
    """Return a language model's JSON log line, with CloudWatch metrics.

    `finish` says why the reply ended, "" without one. `metrics` are values by the names of
    LANGUAGE_UNITS; zeros are left out, as vectors have no first token.
    """
    line = _line(call, status, latency_ns, cold)
    if finish:
        line["finish"] = finish
    if present := {name: value for name, value in metrics.items() if value}:
        line |= present
        line["_aws"] = {
            "Timestamp": call.began_ms,
            "CloudWatchMetrics": _language_directive(tuple(present)),
        }
    return _dump(line)


def _line(call: Call, status: int, latency_ns: int, cold: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "level": "ERROR" if status >= 500 and status != NOT_OFFERED else "INFO",
        "message": "request",
        "request_id": call.request_id,
        "action": call.action,
        "status": status,
        "latency_ms": latency_ns // 1000 / 1000,
        "cold": cold,
        "bytes_in": call.bytes_in,
        "bytes_out": call.bytes_out,
    }
    if call.code is not None:
        line["code"] = call.code
    if call.grant.key_id:
        line["key"] = call.grant.key_id
    if (resolved := call.resolved) is not None:
        line["model"] = resolved.version.model
        line["version"] = resolved.version.number
        line["alias"] = resolved.alias
        if resolved.variant:
            line["variant"] = resolved.variant
    if call.stages_ns:
        line["stages_ms"] = {stage: ns / 1e6 for stage, ns in call.stages_ns.items()}
    return line


def _dump(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate in the request id
        line["request_id"] = ascii(line["request_id"])
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


def warning_line(text: str) -> str:
    """Return the JSON log line of a warning that concerns no request."""
    return json.dumps({"level": "WARNING", "message": text}, separators=(",", ":"))


def _directive(by_model: bool, loaded: bool) -> orjson.Fragment:
    """Return the JSON that declares a log line's metrics to CloudWatch."""
    dimensions = [[], ["Model", "Alias"]] if by_model else [[]]
    units = {name: unit for name, unit in UNITS.items() if loaded or name != "ModelLoadMs"}
    return _declaration(units, dimensions)


@cache
def _language_directive(names: tuple[str, ...]) -> orjson.Fragment:
    """Return the JSON that declares metrics of a language model."""
    return _declaration({name: LANGUAGE_UNITS[name] for name in names}, [[]])


def _declaration(units: Mapping[str, str], dimensions: list[list[str]]) -> orjson.Fragment:
    metrics = [{"Name": name, "Unit": unit} for name, unit in units.items()]
    directive = {"Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics}
    return orjson.Fragment(orjson.dumps([directive]))


_DIRECTIVES = {
    (by_model, loaded): _directive(by_model, loaded)
    for by_model in (False, True)
    for loaded in (False, True)
}


def _add_metrics(
    line: dict[str, Any],
    call: Call,
    status: int,
    sample_rate: float,
    model_metrics: ModelMetrics,
) -> None:
    """Add metric values to a log line: requests, errors, latency, load time.

    They count in total and, if `model_metrics` includes the model, by model and alias.
    """
    resolved, loaded = call.resolved, call.loaded and "load" in call.stages_ns
    alias = (resolved.alias or NO_ALIAS) if resolved is not None else ""
    by_model = resolved is not None and model_metrics.include(resolved.version.model, alias)
    line["Requests"] = 1 if sample_rate == 1 else 1 / sample_rate
    line["Errors"] = int(status >= 500)
    line["Latency"] = line["latency_ms"]
    line["_aws"] = {
        "Timestamp": call.began_ms,
        "CloudWatchMetrics": _DIRECTIVES[by_model, loaded],
    }
    if loaded:
        line["ModelLoadMs"] = call.stages_ns["load"] / 1e6
    if by_model:
        line["Model"] = line["model"]
        line["Alias"] = alias
