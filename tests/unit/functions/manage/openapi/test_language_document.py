"""OpenAPI document of language models: routes, fields as they are read, replies, errors."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from functions.core.access.grants import Scope
from functions.core.access.keys import new_id, new_key
from functions.core.openai.fields import Fields
from functions.core.openai.routing import ROUTES
from functions.core.serving.paths import Route
from functions.generate.handler import GenerateHandler
from functions.manage.openapi.language import (
    SHAPES,
    language_document,
    language_routes,
    statuses,
)
from functions.manage.openapi.language_examples import EXAMPLES
from tests.control_plane import ControlPlane
from tests.data_plane import Context
from tests.unit.functions.openai.plane import DECODER, ENCODER, LanguagePlane, Reply

OFFERED = list(language_routes())
IDS = [f"{route.method} {path}" for route, path in OFFERED]
VECTORS = ("EmbeddingsRequest", "RerankRequest")
OF_THE_MODEL = {"dimensions"}  # its bound depends on the model
REJECTED = "rejected:1"


class Plane(LanguagePlane):
    """Environment of generate with the models of the document's examples."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.add("minilm", ENCODER)
        self.add("smollm", replace(DECODER, context=1024))
        self.reject("rejected")
        self.generate = GenerateHandler(
            self.language, meter=self.meter, write=self._read, gate=self.gate
        )

    def call(
        self, route: Route, path: str, body: Any = None, model: str = "", **request: Any
    ) -> Reply:
        requested = SHAPES[route.action].request
        if body is None and requested:
            body = next(iter(EXAMPLES[requested].values()))
        if isinstance(body, dict) and model and "model" in body:
            body = {**body, "model": model}
        target = path.replace("{model}", model or "smollm").replace("{version}", "1")
        key = request.pop("key", None) or self.create_key(route.scope)
        headers = {"x-api-key": key} | request.pop("headers", {})
        body = b"" if body is None else body
        return self.send(route.method, target, body, headers, request.pop("context", None))

    def fail(self, status: int, route: Route, path: str) -> Reply:
        """Cause an error on a route."""
        match status:
            case 400 if route.method == "POST":
                return self.call(route, path, body=b"{")
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
                return self.call(route, path, model="rejected" if "{version}" in path else REJECTED)
            case 413:
                return self.call(route, path, body=b"[" * 3_000_000 + b"]" * 3_000_000)
            case 415:
                return self.call(route, path, headers={"content-encoding": "br"})
            case 429:
                replies = [self.call(route, path, key=new_key(new_id())) for _ in range(101)]
                return replies[-1]
            case 504 if SHAPES[route.action].request in VECTORS:
                return self.call(route, path, context=Context(remaining_ms=0))
            case 504:
                self.model.late_after = 0
                return self.call(route, path)
        key = self.create_key(route.scope)
        self.table.broken = True
        return self.call(route, path, key=key)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    reply = ControlPlane().client.get("/docs/v1.json")
    assert reply.json == language_document()
    return dict(reply.json)


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_every_route_is_in_the_document_and_no_other(document: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }

    assert operations == {(route.method, path) for route, path in OFFERED}
    assert {route for route, _ in OFFERED} == set(ROUTES)
    ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(ids) == len(set(ids))


# --- requests


class Reads:
    """Fields that a request's parsing reads, by path: kinds and bounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, set[tuple[Any, ...]]] = {}
        for name in ("get", "number", "integer", "optional_integer", "flag", "text"):
            self._watch(monkeypatch, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        method, kind = getattr(Fields, name), name.removeprefix("optional_")

        def read(fields: Fields, field: str, *more: Any, **named: Any) -> Any:
            kinds = self.seen.setdefault(re.sub(r"\[\d+\]", "[]", fields.param(field)), set())
            if kind in ("number", "integer"):
                kinds.add((kind, *more[-2:]))
            elif kind != "get":
                kinds.add(({"flag": "boolean", "text": "string"}[kind],))
            return method(fields, field, *more, **named)

        monkeypatch.setattr(Fields, name, read)


def properties(
    document: dict[str, Any], schema: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the documented fields of a schema, with the paths to them."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for choice in schema.get("anyOf", ()):
        yield from properties(document, choice, path)
    if "items" in schema:
        yield from properties(document, schema["items"], f"{path}[]")
    inner = dict(schema.get("properties", {}))
    if "additionalProperties" in schema:
        inner["5"] = schema["additionalProperties"]  # the token of the examples
    for name, each in inner.items():
        field = f"{path}.{name}" if path else name
        yield field, each
        yield from properties(document, each, field)


@pytest.mark.parametrize("request_name", EXAMPLES)
def test_the_fields_read_are_those_documented(
    document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_name: str,
) -> None:
    plane = Plane(tmp_path)
    reads = Reads(monkeypatch)
    [route, path] = next(
        (route, path) for route, path in OFFERED if SHAPES[route.action].request == request_name
    )
    for body in EXAMPLES[request_name].values():
        jsonschema.validate(body, component(document, request_name))
        reply = plane.call(route, path, body)
        assert reply.status == 200, reply.body

    documented: dict[str, list[dict[str, Any]]] = {}
    for field, schema in properties(document, component(document, request_name)):
        documented.setdefault(field, []).append(schema)
    if request_name == "GenerateRequest":  # `parameters` is read as if it lay beside the text
        inner = {name for name in documented if name.startswith("parameters.")}
        assert {name.removeprefix("parameters.") for name in inner} == set(documented) - inner - {
            "text_input",
            "id",
            "parameters",
        }
        documented = {name: documented[name] for name in set(documented) - inner}
    assert set(reads.seen) == set(documented)
    for field, kinds in reads.seen.items():
        for kind, *bounds in kinds:
            assert any(agrees(schema, kind, bounds, field) for schema in documented[field]), field


def agrees(schema: dict[str, Any], kind: str, bounds: list[float], field: str) -> bool:
    values = schema.get("enum") or [schema["const"]] if {"enum", "const"} & set(schema) else []
    names = schema.get("type", ["string" for value in values if isinstance(value, str)])
    names = [names] if isinstance(names, str) else names
    if bounds and field not in OF_THE_MODEL:
        return kind in names and [schema.get("minimum"), schema.get("maximum")] == bounds
    return kind in names


@pytest.mark.parametrize(
    ("request_name", "field"),
    [(name, field) for name in EXAMPLES for body in EXAMPLES[name].values() for field in body],
)
def test_a_field_of_a_wrong_type_is_refused_by_name(
    tmp_path: Path, request_name: str, field: str
) -> None:
    [route, path] = next(
        (route, path) for route, path in OFFERED if SHAPES[route.action].request == request_name
    )
    body = next(each for each in EXAMPLES[request_name].values() if field in each)
    wrong = 5 if isinstance(body[field], str | list | dict | bool) else "5"
    reply = Plane(tmp_path).call(route, path, {**body, field: wrong})

    assert reply.status == 400, reply.body
    text = reply.json["error"] if path.startswith("/v2") else reply.json["error"]["param"]
    assert text.startswith(field)


# --- replies


def reply_schema(document: dict[str, Any], route: Route, path: str, status: str) -> dict[str, Any]:
    operation = document["paths"][path][route.method.lower()]
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


@pytest.mark.parametrize(("route", "path"), OFFERED, ids=IDS)
def test_a_reply_is_as_described(
    document: dict[str, Any], tmp_path: Path, route: Route, path: str
) -> None:
    plane = Plane(tmp_path)
    operation = document["paths"][path][route.method.lower()]
    content = operation["responses"]["200"]["content"]
    for body in EXAMPLES.get(SHAPES[route.action].request, {"none": None}).values():
        reply = plane.call(route, path, body)

        assert reply.status == 200, reply.body
        kind = reply.headers["content-type"].partition(";")[0]
        assert kind in content
        if kind == "application/json":
            jsonschema.validate(reply.json, reply_schema(document, route, path, "200"))
        else:
            data = content[kind]["schema"]["properties"]["data"]
            data, *end = data.get("anyOf", [data])
            assert end == ([{"const": "[DONE]"}] if path.startswith("/v1") else [])
            event = {**data["contentSchema"]["anyOf"][0], "components": document["components"]}
            documents = [each for each in reply.events if each != "[DONE]"]
            assert documents
            for each in documents:
                jsonschema.validate(each, event)


CASES = [(route, path, status) for route, path in OFFERED for status in sorted(statuses(route))]


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
    jsonschema.validate(reply.json, reply_schema(document, route, path, str(status)))


def test_every_error_has_an_example_of_its_shape(document: dict[str, Any]) -> None:
    for item in document["paths"].values():
        for operation in item.values():
            for status, reply in operation["responses"].items():
                content = reply["content"]
                if status != "200":
                    [each] = content.values()
                    schema = {**each["schema"], "components": document["components"]}
                    jsonschema.validate(each["example"], schema)
