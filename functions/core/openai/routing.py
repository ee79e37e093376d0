"""Routes of language models: OpenAI's /v1, and Triton's extension of /v2."""

from functions.core.access.grants import Scope
from functions.core.openai.service import LanguageService as Service
from functions.core.serving.paths import Match, Route, find_route

ROOT = "/v1"
TRITON_ROOT = "/v2"
TRITON_ENDS = ("/generate", "/generate_stream")
ABSENT = (
    "language models answer at /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank "
    "and /v1/models"
)

_GENERATE = "/v2/models/{model}[/versions/{version}]/generate"
ROUTES = (
    Route("POST", "/v1/chat/completions", Service.chat, Scope.INFER),
    Route("POST", "/v1/completions", Service.complete, Scope.INFER),
    Route("POST", "/v1/embeddings", Service.embed, Scope.INFER),
    Route("POST", "/v1/rerank", Service.rerank, Scope.INFER),
    Route("GET", "/v1/models", Service.list_models),
    Route("GET", "/v1/models/{model}", Service.read_model),
    Route("POST", _GENERATE, Service.generate, Scope.INFER),
    Route("POST", f"{_GENERATE}_stream", Service.generate_stream, Scope.INFER),
)


def root_of(path: str) -> str:
    """Return the root of a path, which stage or base path precede."""
    return TRITON_ROOT if path.rstrip("/").endswith(TRITON_ENDS) else ROOT


def match(method: str, path: str) -> Match:
    """Match a request's HTTP method and path to a service method.

    >>> match("GET", "/v1/models/smollm:prod").model
    'smollm:prod'

    Raises:
        PathNotFound, MethodNotAllowed: as `find_route`.
    """
    return find_route(ROUTES, method, path, ABSENT)
