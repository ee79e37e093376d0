"""Route table of the HTTP API: service methods by method and path.

A new route is one line in ROUTES, one method of `InferenceService`, one event in events/ and one
test. Load balancers and uptime monitors send no keys, so the two health routes need none.

GET /v2/models/stats returns the statistics of all models, as in Triton, even if a model is called
`stats`. That model's metadata is at /v2/models/stats/versions/<version>; its other paths are as
for any model.
"""

from functools import lru_cache

from functions.core.access.grants import Scope
from functions.core.serving.paths import INFER, ROOT, Match, Route, find_route
from functions.core.serving.service import InferenceService as Service

PATHS = 256  # paths whose route is cached
ABSENT = f"the API is under {ROOT}, for language models /v1, and for its control /api/v1"

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


@lru_cache(maxsize=PATHS)
def match(method: str, path: str) -> Match:
    """Match a request's HTTP method and path to a service method.

    >>> match("POST", "/v2/models/digits/versions/prod/infer").version
    'prod'

    Raises:
        PathNotFound, MethodNotAllowed: as `find_route`.
    """
    return find_route(ROUTES, method, path, ABSENT)
