"""OpenAPI document of language models, made from the generate function's route table."""

from collections.abc import Callable, Iterator
from typing import Any

from functions.core.openai.errors import describe_error
from functions.core.openai.routing import ROOT, ROUTES
from functions.core.openai.service import LanguageService as Service
from functions.core.serving.metadata import VERSION
from functions.core.serving.paths import Route
from functions.manage.openapi.data_plane import (
    MODEL,
    NAME_PATTERN,
    REFERENCE,
    REFUSED_BODY,
    VERSION_IN_PATH,
    Shape,
    paths_of,
)
from functions.manage.openapi.elements import (
    EXAMPLES,
    OPENAPI,
    SECURITY_SCHEMES,
    Document,
    access,
    error_response,
    error_responses,
    joined,
    scope_statuses,
    scope_text,
)
from functions.manage.openapi.language_examples import EXAMPLES as REQUEST_EXAMPLES
from functions.manage.openapi.language_schemas import LANGUAGE_SCHEMAS
from functions.manage.openapi.tensors import ref

DESCRIPTION = (
    "Language models of Mayfly: OpenAI's API at /v1, and Triton's `generate` at /v2. A GET path "
    "answers HEAD, too. null stands for a missing field. Unknown fields are ignored; known ones "
    "that are not supported are refused. A stream is events, `data: ` and a JSON document each; an "
    "error after the first one is the last one. API Gateway itself answers 413 above 10 MB, 429 "
    "above the stack's rate, and 504 after 5 minutes without a byte."
)
_MODEL_ERRORS = frozenset({400, 404, 409})
_POST_ERRORS = _MODEL_ERRORS | REFUSED_BODY | frozenset({429, 503, 504})
SHAPES: dict[Callable[..., Any], Shape] = {
    Service.chat: Shape("ChatCompletion", "ChatRequest", _POST_ERRORS),
    Service.complete: Shape("Completion", "CompletionRequest", _POST_ERRORS),
    Service.embed: Shape("Embeddings", "EmbeddingsRequest", _POST_ERRORS),
    Service.rerank: Shape("Ranking", "RerankRequest", _POST_ERRORS),
    Service.list_models: Shape("LanguageModels"),
    Service.read_model: Shape("LanguageModel", errors=_MODEL_ERRORS),
    Service.generate: Shape("Generated", "GenerateRequest", _POST_ERRORS),
    Service.generate_stream: Shape("GeneratedEvent", "GenerateRequest", _POST_ERRORS),
}
EVENTS: dict[Callable[..., Any], str] = {  # documents of a stream's events
    Service.chat: "ChatCompletionChunk",
    Service.complete: "CompletionChunk",
    Service.generate_stream: "GeneratedEvent",
}
OPENAI_ERROR, TRITON_ERROR = "OpenAIError", "ErrorDocument"
_NAME = NAME_PATTERN[1:-1]
NAMED_MODEL = {
    **MODEL,
    "description": "Name, alone or with an alias or version: smollm, smollm:3.",
    "schema": {"type": "string", "pattern": f"^{_NAME}(:{REFERENCE['pattern'][1:-1]})?$"},
}


def language_routes() -> Iterator[tuple[Route, str]]:
    """Yield each route with each of its paths."""
    for route in ROUTES:
        yield from ((route, path) for path in paths_of(route.pattern))


def language_document() -> Document:
    """Return the OpenAPI document of language models.

    Its paths are relative to the stage, one level above the document."""
    paths: Document = {}
    for route, path in language_routes():
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": OPENAPI,
        "info": {"title": "Mayfly language models", "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": ".."}],
        "paths": paths,
        "components": {"schemas": LANGUAGE_SCHEMAS, "securitySchemes": SECURITY_SCHEMES},
    }


def statuses(route: Route) -> set[int]:
    """Return the error statuses of a route."""
    return {*SHAPES[route.action].errors, *scope_statuses(route.scope)}


def _operation(route: Route, path: str) -> Document:
    shape = SHAPES[route.action]
    summary, _, more = (route.action.__doc__ or "").partition("\n\n")
    more = more.partition("Raises:")[0]
    operation: Document = {
        "tags": ["openai" if path.startswith(ROOT) else "triton"],
        "operationId": route.action.__name__ + ("_of_version" if "{version}" in path else ""),
        "summary": summary.strip(),
        "description": joined(" ".join(more.split()), scope_text(route.scope)),
        **access(route.scope),
        "responses": {"200": _reply(route), **_errors(route, path)},
    }
    if parameters := _parameters(path):
        operation["parameters"] = parameters
    if shape.request:
        examples = REQUEST_EXAMPLES[shape.request]
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref(shape.request),
                    "examples": {name: {"value": value} for name, value in examples.items()},
                }
            },
        }
    return operation


def _parameters(path: str) -> list[Document]:
    if "{model}" not in path:
        return []
    if path.startswith(ROOT):
        return [NAMED_MODEL]
    return [MODEL, VERSION_IN_PATH] if "{version}" in path else [MODEL]


def _reply(route: Route) -> Document:
    content: Document = {}
    if route.action is not Service.generate_stream:
        content["application/json"] = {"schema": ref(SHAPES[route.action].reply)}
    if route.action in EVENTS:
        content["text/event-stream"] = {"schema": _event(route)}
    return {"description": "Success", "content": content}


def _event(route: Route) -> Document:
    """Return the schema of each server-sent event of a stream."""
    is_openai = route.pattern.startswith(ROOT)
    document, error = EVENTS[route.action], OPENAI_ERROR if is_openai else TRITON_ERROR
    data: Document = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [ref(document), ref(error)]},
    }
    if is_openai:
        data = {"anyOf": [data, {"const": "[DONE]"}]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _errors(route: Route, path: str) -> Document:
    if not path.startswith(ROOT):
        return error_responses(statuses(route))
    return {str(status): _openai_error(status) for status in sorted(statuses(route))}


def _openai_error(status: int) -> Document:
    code, text = EXAMPLES[status]
    return error_response(status, OPENAI_ERROR, describe_error(status, code, text))
