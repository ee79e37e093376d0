"""Route table of the HTTP API: service methods by method and path.

A new route is one line in ROUTES, one method of `InferenceService`, one event in events/ and one
test. Load balancers and uptime monitors send no keys, so the two health routes need none.

GET /v2/models/stats returns the statistics of all models, as in Triton, even if a model is called
`stats`. That model's metadata is at /v2/models/stats/versions/<version>; its other paths are as
for any model.
"""

from collections.abc import Callable

from functions.core.access.grants import Scope
from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.records import record
from functions.core.serving.paths import INFER, ROOT, compile_path
from functions.core.serving.service import Call, Reply
from functions.core.serving.service import InferenceService as Service

Action = Callable[[Service, Call], Reply]


@record
class Route:
    """Route of the HTTP API: method, path pattern and service method.

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


ROUTES = (
    Route("POST", INFER, Service.infer, Scope.INFER),
    Route("GET", "/v2", Service.server_metadata),
    Route("GET", "/v2/health/live", Service.live, None),
    Route("GET", "/v2/health/ready", Service.ready, None),
    Route("GET", "/v2/models", Service.models),
    Route("GET", "/v2/models/stats", Service.statistics),
    Route("GET", "/v2/models/{model}[/versions/{version}]", Service.model_metadata),
    Route("GET", "/v2/models/{model}[/versions/{version}]/ready", Service.model_ready),
    Route("GET", "/v2/models/{model}[/versions/{version}]/config", Service.model_config),
    Route("GET", "/v2/models/{model}[/versions/{version}]/stats", Service.model_statistics),
    Route("POST", "/v2/repository/index", Service.index),
    Route("POST", "/v2/repository/models/{model}/load", Service.load, Scope.DEPLOY),
    Route("POST", "/v2/repository/models/{model}/unload", Service.unload, Scope.DEPLOY),
    Route("*", "/v2/models/{model}[/versions/{version}]/generate", Service.not_offered),
    Route("*", "/v2/models/{model}[/versions/{version}]/generate_stream", Service.not_offered),
    Route("*", "/v2/models/{model}[/versions/{version}]/trace/setting", Service.not_offered),
    Route("*", "/v2/trace/setting", Service.not_offered),
    Route("*", "/v2/logging", Service.not_offered),
    Route("*", "/v2/systemsharedmemory*", Service.not_offered),
    Route("*", "/v2/cudasharedmemory*", Service.not_offered),
    Route("*", "/v2/xpusharedmemory*", Service.not_offered),
)


def match(method: str, path: str) -> Match:
    """Match a request's HTTP method and path to a service method.

    >>> match("POST", "/v2/models/digits/versions/prod/infer").version
    'prod'

    Raises:
        PathNotFound: no route has this path.
        MethodNotAllowed: routes with this path take other methods.
    """
    allowed: list[str] = []
    for route in ROUTES:
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
    raise PathNotFound(
        f"there is nothing at {shown(path)}; the API is under {ROOT} and, for its control, /api/v1"
    )
