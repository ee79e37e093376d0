"""OpenAPI document of /v2: every route, no other; replies and errors as they occur."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from functions.core.access.grants import Scope
from functions.core.access.keys import new_id, new_key
from functions.core.errors import TimedOut
from functions.core.serving.paths import Route
from functions.core.serving.routing import ROUTES
from functions.core.serving.service import InferenceService
from functions.manage.openapi.data_plane import data_plane_document, offered_routes, statuses
from functions.manage.openapi.elements import EXAMPLES
from tests.control_plane import ControlPlane
from tests.data_plane import Client, DataPlane, Reply, rows

ROUTES_OFFERED = list(offered_routes())
BODIES = {"infer": rows([1.0, 2.0, 3.0]), "index": {"ready": True}}


class Plane(DataPlane):
    """Environment of infer with a model in each state."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.register("own")
        self.reject("rejected")
        self.client = Client(self.handler(gate=self.gate))

    def call(self, route: Route, path: str, model: str = "own", **request: Any) -> Reply:
        target = path.replace("{model}", model).replace("{version}", request.pop("version", "1"))
        scope = route.scope or Scope.READ
        key = request.pop("key", None) or self.create_key(scope)
        body = request.pop("body", BODIES.get(route.action.__name__, b""))
        headers = {"x-api-key": key} | request.pop("headers", {})
        return self.client.send(route.method, target, body, headers=headers, **request)

    def fail(self, status: int, route: Route, path: str) -> Reply:
        """Cause an error on a route."""
        match status:
            case 400 if route.method == "POST":
                return self.call(route, path, body=b"{")
            case 400 if "{version}" in path:
                return self.call(route, path, version="NO")
            case 400 if "{model}" in path:
                return self.call(route, path, query={"version": "NO"})
            case 400:
                other = self.create_key(Scope.READ)
                return self.call(route, path, headers={"authorization": f"Bearer {other}"})
            case 401:
                return self.call(route, path, key=new_key(new_id()))
            case 403:
                return self.call(route, path, key=self.create_key(Scope.READ))
            case 404:
                return self.call(route, path, model="nobody")
            case 409:
                return self.call(route, path, model="rejected")
            case 413:
                return self.call(route, path, body=b"[" * 3_000_000 + b"]" * 3_000_000)
            case 415:
                return self.call(route, path, headers={"content-encoding": "br"})
            case 429:
                replies = [self.call(route, path, key=new_key(new_id())) for _ in range(101)]
                return replies[-1]
            case 504:
                self.runtime.failure = TimedOut("the model was stopped")
                return self.call(route, path)
        key = self.create_key(route.scope or Scope.READ)
        self.table.broken = True
        return self.call(route, path, key=key)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    reply = ControlPlane().client.get("/docs/v2.json")
    assert reply.json == data_plane_document()
    return dict(reply.json)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_every_offered_route_is_in_the_document_and_no_other(document: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }

    assert operations == {(route.method, path) for route, path in ROUTES_OFFERED}
    missing = {route.action for route in ROUTES} - {route.action for route, _ in ROUTES_OFFERED}
    assert missing == {InferenceService.not_offered}


def schema_of(document: dict[str, Any], route: Route, path: str, status: str) -> dict[str, Any]:
    operation = document["paths"][path][route.method.lower()]
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


@pytest.mark.parametrize(
    ("route", "path"),
    ROUTES_OFFERED,
    ids=[f"{route.method} {path}" for route, path in ROUTES_OFFERED],
)
def test_a_reply_is_as_described(
    document: dict[str, Any], tmp_path: Path, route: Route, path: str
) -> None:
    plane = Plane(tmp_path)
    reply = plane.call(route, path)

    assert reply.status == 200, reply.body
    jsonschema.validate(reply.json, schema_of(document, route, path, "200"))
    operation = document["paths"][path][route.method.lower()]
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        request = {**content["schema"], "components": document["components"]}
        jsonschema.validate(BODIES.get(route.action.__name__, {}), request)


CASES = [
    (route, path, status) for route, path in ROUTES_OFFERED for status in sorted(statuses(route))
]


@pytest.mark.parametrize(
    ("route", "path", "status"),
    CASES,
    ids=[f"{route.method} {path} {status}" for route, path, status in CASES],
)
def test_every_documented_error_occurs(
    document: dict[str, Any], tmp_path: Path, route: Route, path: str, status: int
) -> None:
    reply = Plane(tmp_path).fail(status, route, path)

    assert reply.status == status, reply.body
    if route.method != "HEAD":
        jsonschema.validate(reply.json, schema_of(document, route, path, str(status)))


def test_every_error_has_an_example_of_its_shape(document: dict[str, Any]) -> None:
    error = document["components"]["schemas"]["ErrorDocument"]
    for code, text in EXAMPLES.values():
        jsonschema.validate({"error": text, "code": code, "request_id": "x"}, error)
    assert json.dumps(document).count('"$ref"') > 0
