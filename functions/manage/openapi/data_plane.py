"""OpenAPI document of /v2, made from the data plane's route table."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from functions.core.access.grants import Scope
from functions.core.serving.metadata import VERSION
from functions.core.serving.paths import Route
from functions.core.serving.routing import ROUTES
from functions.core.serving.service import InferenceService as Service
from functions.manage.openapi.elements import (
    OPENAPI,
    SECURITY_SCHEMES,
    Document,
    access,
    error_responses,
    joined,
    scope_statuses,
    scope_text,
)
from functions.manage.openapi.tensors import SCHEMAS, ref

DESCRIPTION = (
    "Open Inference Protocol v2 of Mayfly. A GET path answers HEAD, too. Shared memory, tracing "
    "and logging settings are answered 501 and have no operations here; those of language models, "
    "also Triton's `generate`, have a document of their own, v1.json. "
    "API Gateway itself answers 413 above 10 MB, 429 above the stack's rate, and 504 after 29 s."
)
REFUSED_BODY = {400, 413, 415}  # errors of any body


@dataclass(frozen=True, slots=True)
class Shape:
    """Request and reply of a service method, with its own errors."""

    reply: str
    request: str = ""
    errors: frozenset[int] = frozenset()


_MODEL = frozenset({400, 404, 409})
SHAPES: dict[Callable[..., Any], Shape] = {
    Service.infer: Shape(
        "InferResponse", "InferRequest", _MODEL | REFUSED_BODY | frozenset({503, 504})
    ),
    Service.server_metadata: Shape("ServerMetadata"),
    Service.live: Shape("Live"),
    Service.ready: Shape("Ready", errors=frozenset({503})),
    Service.models: Shape("Models"),
    Service.statistics: Shape("Statistics"),
    Service.model_metadata: Shape("ModelMetadata", errors=_MODEL),
    Service.model_ready: Shape("ModelReady", errors=_MODEL),
    Service.model_config: Shape("ModelConfig", errors=_MODEL),
    Service.model_statistics: Shape("Statistics", errors=_MODEL),
    Service.index: Shape("Index", "IndexRequest", frozenset(REFUSED_BODY)),
    Service.load: Shape("Empty", "LoadRequest", _MODEL | REFUSED_BODY),
    Service.unload: Shape("Empty", "UnloadRequest", frozenset({404}) | REFUSED_BODY),
}
NAME_PATTERN = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": NAME_PATTERN},
}
REFERENCE = {"type": "string", "pattern": "^([1-9][0-9]{0,9}|[a-z]([a-z0-9._-]{0,126}[a-z0-9])?)$"}
_NO_REFERENCE = {"type": "string", "maxLength": 0}  # as if the header or parameter were missing
_OPTIONAL_REFERENCE = {"anyOf": [REFERENCE, _NO_REFERENCE]}
VERSION_IN_PATH = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "Version number or alias.",
    "schema": REFERENCE,
}
VERSION_ELSEWHERE = [
    {"name": "x-model-version", "in": "header", "required": False,
     "description": "Version number or alias; `prod` without one.",
     "schema": _OPTIONAL_REFERENCE},
    {"name": "version", "in": "query", "required": False,
     "description": "Version number or alias, after the header.",
     "schema": _OPTIONAL_REFERENCE},
]  # fmt: skip


def offered_routes() -> Iterator[tuple[Route, str]]:
    """Yield each route that is offered, with each of its paths.

    A route with an optional part, e.g. a version, has two.
    """
    for route in ROUTES:
        if route.action is not Service.not_offered:
            yield from ((route, path) for path in paths_of(route.pattern))


def paths_of(pattern: str) -> list[str]:
    """Return the paths of a pattern with an optional part.

    >>> paths_of("/v2/models/{model}[/versions/{version}]/infer")
    ['/v2/models/{model}/infer', '/v2/models/{model}/versions/{version}/infer']
    """
    without = re.sub(r"\[.*?\]", "", pattern)
    return list(dict.fromkeys([without, pattern.replace("[", "").replace("]", "")]))


def data_plane_document() -> Document:
    """Return the OpenAPI document of the data plane.

    Its paths are relative to the stage, one level above the document."""
    paths: Document = {}
    for route, path in offered_routes():
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": OPENAPI,
        "info": {"title": "Mayfly data plane", "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": ".."}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": SECURITY_SCHEMES},
    }


def statuses(route: Route) -> set[int]:
    """Return the error statuses of a route."""
    return {*SHAPES[route.action].errors, *scope_statuses(route.scope)}


def _operation(route: Route, path: str) -> Document:
    shape = SHAPES[route.action]
    name = route.action.__name__ + ("_of_version" if "{version}" in path else "")
    summary, _, more = (route.action.__doc__ or "").partition("\n\n")
    more = more.partition("Raises:")[0]
    operation: Document = {
        "tags": [_tag(path)],
        "operationId": name,
        "summary": summary.strip(),
        "description": joined(" ".join(more.split()), scope_text(route.scope)),
        **access(route.scope),
        "responses": {"200": _reply(route), **error_responses(statuses(route))},
    }
    if parameters := _parameters(path, shape):
        operation["parameters"] = parameters
    if shape.request:
        operation["requestBody"] = _request(route)
    return operation


def _tag(path: str) -> str:
    parts = path.split("/")
    return parts[2] if len(parts) > 2 else "server"


def _parameters(path: str, shape: Shape) -> list[Document]:
    """Return the parameters of a path.

    A version in a header or the query counts only without one in the path."""
    parameters: list[Document] = []
    if "{model}" in path:
        parameters.append(MODEL)
    if "{version}" in path:
        parameters.append(VERSION_IN_PATH)
    elif "{model}" in path and 409 in shape.errors and "repository" not in path:
        parameters += VERSION_ELSEWHERE
    return parameters


def _reply(route: Route) -> Document:
    content: Document = {"application/json": {"schema": ref(SHAPES[route.action].reply)}}
    if route.scope is Scope.INFER:
        content["application/octet-stream"] = {
            "schema": {"description": "JSON, then raw tensors: see the binary tensor extension."}
        }
    return {"description": "Success", "content": content}


def _request(route: Route) -> Document:
    shape = SHAPES[route.action]
    content: Document = {"application/json": {"schema": ref(shape.request)}}
    return {"required": route.scope is Scope.INFER, "content": content}
