"""Routes of language models: OpenAI's /v1, and Triton's extension of /v2."""

from collections.abc import Callable
from functools import partial

from functions.core.access.grants import Scope
from functions.core.errors import MethodNotAllowed, PathNotFound, shown
from functions.core.openai.call import LanguageCall
from functions.core.openai.replies import Document
from functions.core.openai.service import LanguageService as Service
from functions.core.openai.service import Stream
from functions.core.records import record
from functions.core.serving.paths import compile_path

ROOT = "/v1"
TRITON_ROOT = "/v2"
TRITON_ENDS = ("/generate", "/generate_stream")

Action = Callable[[Service, LanguageCall], Document | Stream]


@record
class Route:
    """Route: method, path pattern, logged name, service method, scope."""

    method: str
    pattern: str
    name: str
    action: Action
    scope: Scope


@record
class Match:
    """Route of a request, with the model and version in its path."""

    route: Route
    model: str
    version: str | None


_GENERATE = "/v2/models/{model}[/versions/{version}]/generate"
ROUTES = (
    Route("POST", "/v1/chat/completions", "chat", Service.chat, Scope.INFER),
    Route("POST", "/v1/completions", "complete", Service.complete, Scope.INFER),
    Route("POST", "/v1/embeddings", "embed", Service.embed, Scope.INFER),
    Route("POST", "/v1/rerank", "rerank", Service.rerank, Scope.INFER),
    Route("GET", "/v1/models", "list_models", Service.list_models, Scope.READ),
    Route("GET", "/v1/models/{model}", "read_model", Service.read_model, Scope.READ),
    Route("POST", _GENERATE, "generate", Service.generate, Scope.INFER),
    Route(
        "POST",
        f"{_GENERATE}_stream",
        "generate_stream",
        partial(Service.generate, stream=True),
        Scope.INFER,
    ),
)


def root_of(path: str) -> str:
    """Return the root of a path, which stage or base path precede."""
    return TRITON_ROOT if path.rstrip("/").endswith(TRITON_ENDS) else ROOT


def match(method: str, path: str) -> Match:
    """Match a request's HTTP method and path to a route.

    >>> match("GET", "/v1/models/smollm:prod").model
    'smollm:prod'

    Raises:
        PathNotFound: no route has this path.
        MethodNotAllowed: routes with this path take other methods.
    """
    allowed: list[str] = []
    for route in ROUTES:
        path_match = compile_path(route.pattern).fullmatch(path)
        if path_match is None:
            continue
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        if method in methods:
            segments = path_match.groupdict()
            return Match(route, segments.get("model") or "", segments.get("version"))
        allowed += methods
    if allowed:
        text = f"this path takes {' or '.join(allowed)}, not {shown(method)}"
        raise MethodNotAllowed(text, allow=tuple(allowed))
    raise PathNotFound(
        f"there is nothing at {shown(path)}: language models answer at /v1/chat/completions, "
        "/v1/completions, /v1/embeddings, /v1/rerank and /v1/models"
    )
