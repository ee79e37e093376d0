"""The paths under /v2, one line each.

A trailing slash is tolerated. GET /v2/models/stats is the statistics of everything, as in Triton, also where a model is
called `stats`: that one answers at /v2/models/stats/versions/<v>, and everything below works as for any other.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.names import parse_reference
from functions.core.serving.service import Answer, Call
from functions.core.serving.service import InferenceService as Service

ROOT = "/v2"
VERSION_HEADER = "x-model-version"

Action = Callable[[Service, Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern`: {m} is a model, {v} a version or alias, [..] may be left out, * is anything; `method` * is any."""

    method: str
    pattern: str
    action: Action


@dataclass(frozen=True, slots=True)
class Match:
    """What a request asks for. `name` is the route's action, for the log."""

    name: str
    action: Action
    model: str
    version: str | None


@cache  # when it is needed first: to compile them all takes a cold start 2 ms
def _path(pattern: str) -> re.Pattern[str]:
    expression = re.escape(pattern)
    for written, meant in (
        (r"\[", "(?:"),
        (r"\]", ")?"),
        (r"\{m\}", "(?P<model>[^/]+)"),
        (r"\{v\}", "(?P<version>[^/]+)"),
        (r"\*", ".*"),
    ):
        expression = expression.replace(written, meant)
    return re.compile(expression + "/?", re.DOTALL)


ROUTES = (
    Route("POST", "/v2/models/{m}[/versions/{v}]/infer", Service.infer),
    Route("GET", "/v2", Service.server_metadata),
    Route("GET", "/v2/health/live", Service.live),
    Route("GET", "/v2/health/ready", Service.ready),
    Route("GET", "/v2/models", Service.models),
    Route("GET", "/v2/models/stats", Service.statistics),
    Route("GET", "/v2/models/{m}[/versions/{v}]", Service.model_metadata),
    Route("GET", "/v2/models/{m}[/versions/{v}]/ready", Service.model_ready),
    Route("GET", "/v2/models/{m}[/versions/{v}]/config", Service.model_config),
    Route("GET", "/v2/models/{m}[/versions/{v}]/stats", Service.model_statistics),
    Route("POST", "/v2/repository/index", Service.index),
    Route("POST", "/v2/repository/models/{m}/load", Service.load),
    Route("POST", "/v2/repository/models/{m}/unload", Service.unload),
    Route("*", "/v2/models/{m}[/versions/{v}]/generate", Service.not_offered),
    Route("*", "/v2/models/{m}[/versions/{v}]/generate_stream", Service.not_offered),
    Route("*", "/v2/models/{m}[/versions/{v}]/trace/setting", Service.not_offered),
    Route("*", "/v2/trace/setting", Service.not_offered),
    Route("*", "/v2/logging", Service.not_offered),
    Route("*", "/v2/systemsharedmemory*", Service.not_offered),
    Route("*", "/v2/cudasharedmemory*", Service.not_offered),
    Route("*", "/v2/xpusharedmemory*", Service.not_offered),
)


def match(method: str, path: str) -> Match:
    """The route of a request.

    >>> match("POST", "/v2/models/digits/versions/prod/infer").version
    'prod'

    Raises:
        PathNotFound: there is nothing at this path.
        MethodNotAllowed: there is, for other methods.
    """
    allowed = []
    for route in ROUTES:
        found = _path(route.pattern).fullmatch(path)
        if found is None:
            continue
        if route.method not in (method, "*"):
            allowed.append(route.method)
            continue
        parts = found.groupdict()
        return Match(
            route.action.__name__, route.action, parts.get("model") or "", parts.get("version")
        )
    if allowed:
        methods = tuple(dict.fromkeys(allowed))
        raise MethodNotAllowed(
            f"this path takes {' or '.join(methods)}, not {shown(method)}", allow=methods
        )
    raise PathNotFound(f"there is nothing at {shown(path)}; the API is under {ROOT}")


def reference(
    found: Match, headers: Mapping[str, str], query: Mapping[str, str]
) -> int | str | None:
    """The version asked for: the path before the header x-model-version before the query ?version=.

    Raises:
        InvalidRequest: it is neither a number nor an alias.
    """
    text = found.version or headers.get(VERSION_HEADER) or query.get("version")
    return parse_reference(text) if text else None
