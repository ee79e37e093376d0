"""OpenAPI document of the control plane: every route, no other, and errors that occur."""

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from functions.core.access.grants import Scope
from functions.core.access.keys import new_id, new_key
from functions.manage.openapi.control_plane import statuses
from functions.manage.repeats import CHANGES
from functions.manage.route import Route
from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply

DOCUMENT = "/api/v1/openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    reply = ControlPlane().client.get(DOCUMENT)
    assert reply.status == 200
    return dict(reply.json)


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def routes() -> list[Route]:
    return list(ControlPlane().router.routes)


def path_of(route: Route) -> str:
    return route.rule.replace("<", "{").replace(">", "}")


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"
    assert "422" not in str(document)
    assert "ValidationError" not in str(document)


def test_every_route_is_in_the_document_and_no_other(document: dict[str, Any]) -> None:
    expected = {(route.method, path_of(route)) for route in routes()}

    assert set(operations(document)) == expected
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))


def test_every_operation_says_its_scope_errors_and_header(document: dict[str, Any]) -> None:
    for route in routes():
        operation = operations(document)[route.method, path_of(route)]
        assert operation["summary"]
        assert set(operation["responses"]) == {str(route.status), *map(str, statuses(route))}
        if route.scope is None:
            assert operation["security"] == []
        else:
            assert operation["security"] == [{"bearer": []}, {"key": []}]
            known = "any key" if route.scope is Scope.READ else f"the scope `{route.scope}`"
            assert known in operation["description"]
        headers = [p["name"] for p in operation.get("parameters", []) if p["in"] == "header"]
        assert headers == (["Idempotency-Key"] if route.method in CHANGES else [])


class Prober:
    """Causes each error on any route."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.plane = ControlPlane()
        self.plane.register("own-1")
        scope = route.scope or Scope.READ
        models = ["*"] if scope is Scope.ADMIN else ["own-*"]
        self.key = self.plane.create(str(scope), models=models)["key"]

    def send(self, key: str | None = None, model: str = "own-1", **request: Any) -> Reply:
        names = {"model": model, "alias": "prod", "number": "1"}
        path = re.sub("<([^>]*)>", lambda match: names.get(match[1], "7"), self.route.rule)
        headers = {"x-api-key": key or self.key} | request.pop("headers", {})
        return self.plane.client.send(self.route.method, path, headers=headers, **request)

    def status(self, status: int) -> Reply:
        match status:
            case 400:
                return self.send(query={"nothing": "1"})
            case 401:
                return self.send(new_key(new_id()))
            case 403:
                return self.send(self.plane.create("infer")["key"])
            case 404:
                name = self.route.function.__name__
                body, query = BODIES.get(name, b""), QUERIES.get(name)
                return self.send(model="other", body=body, query=query)
            case 409:
                key = f"key:{self.key.split('_')[1]}", "k"
                self.plane.replies.running.add(key)
                return self.send(headers={"idempotency-key": "k"})
            case 429:
                for _ in range(100):
                    self.send(new_key(new_id()))
                return self.send(new_key(new_id()))
        self.plane.table.broken = True
        return self.send()


# Bodies with which a route reaches what does not exist.
BODIES: dict[str, Any] = {
    "change_key": {"monthly_requests": 1},
    "create_upload": {"model": "digits", "file": "x.onnx", "size_bytes": 1, "sha256": "ab" * 32},
}
QUERIES = {"list_audit": {"model": "other"}}


@pytest.mark.parametrize(
    ("route", "status"),
    [(route, status) for route in routes() for status in sorted(statuses(route))],
    ids=lambda value: value if isinstance(value, int) else f"{value.method} {value.path}",
)
def test_every_documented_error_occurs(route: Route, status: int) -> None:
    reply = Prober(route).status(status)

    assert error(reply)[0] == status
