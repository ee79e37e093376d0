"""Routes of the APIs: URL path patterns, service methods, the requested version.

prefetch.py needs them before the services are imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from functions.core.access.grants import Scope
from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.names import parse_reference
from functions.core.records import record

ROOT = "/v2"
INFER = "/v2/models/{model}[/versions/{version}]/infer"
VERSION_HEADER = "x-model-version"
USER_HEADER = "x-mayfly-user"  # keeps a caller's user on one side of a split

Action = Callable[[Any, Any], Any]  # a method of a service, which takes a call

_SYMBOLS = (("{", "(?P<"), ("}", ">[^/]+)"), ("[", "(?:"), ("]", ")?"), ("*", ".*"))


@cache  # compiled at first use: all routes together take 2 ms of a cold start
def compile_path(pattern: str) -> re.Pattern[str]:
    """Compile a URL path pattern such as /v2/models/{model} to a regex.

    {name} is one segment, [...] is optional, * is anything. A trailing slash is allowed.

    >>> compile_path(INFER).fullmatch("/v2/models/digits/versions/prod/infer")["version"]
    'prod'
    """
    expression = re.escape(pattern)
    for symbol, replacement in _SYMBOLS:
        expression = expression.replace(re.escape(symbol), replacement)
    return re.compile(expression + "/?", re.DOTALL)


def requested_version(
    path_version: str | None, headers: Mapping[str, str], query: Mapping[str, str]
) -> int | str | None:
    """Read the requested version number or alias from path, header or query.

    None stands for the default alias. The path comes before the header x-model-version, and that
    before the query ?version=; all that are given have to be right.

    Raises:
        InvalidRequest: one is neither a number nor an alias.
    """
    reference = None
    for text in (query.get("version"), headers.get(VERSION_HEADER), path_version):
        if text:
            reference = parse_reference(text)
    return reference


@record
class Route:
    """Route of an HTTP API: method, path pattern and service method.

    The HTTP method * is any; `compile_path` describes patterns. `scope` is what the caller's access
    key needs; None for routes without a key.
    """

    method: str
    pattern: str
    action: Action
    scope: Scope | None = Scope.READ

    @property
    def methods(self) -> tuple[str, ...]:
        """HTTP methods that the route accepts.

        The reply to HEAD is that to GET without its body.
        """
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


@record
class Match:
    """Matched route of a request: service method, model and version.

    `name` is the name of the service method, for the log.
    """

    name: str
    action: Action
    scope: Scope | None
    model: str
    version: str | None


def find_route(routes: Sequence[Route], method: str, path: str, absent: str) -> Match:
    """Find the route of a request's HTTP method and path.

    `absent` says, in the error of an unknown path, which paths there are.

    Raises:
        PathNotFound: no route has this path.
        MethodNotAllowed: routes with this path take other methods.
    """
    allowed: list[str] = []
    for route in routes:
        path_match = compile_path(route.pattern).fullmatch(path)
        if path_match is None:
            continue
        if route.method != "*" and method not in route.methods:
            allowed += route.methods
            continue
        segments = path_match.groupdict()
        name, model = route.action.__name__, segments.get("model") or ""
        return Match(name, route.action, route.scope, model, segments.get("version"))
    if allowed:
        methods = tuple(dict.fromkeys(allowed))
        text = f"this path takes {' or '.join(methods)}, not {shown(method)}"
        raise MethodNotAllowed(text, allow=methods)
    raise PathNotFound(f"there is nothing at {shown(path)}; {absent}")
