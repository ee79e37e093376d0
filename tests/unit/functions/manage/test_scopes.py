"""Every route of the control plane with every scope, and with foreign models."""

import re
from typing import Any

import pytest

from functions.core.access.auth import Auth
from functions.core.access.grants import Scope
from functions.core.registry.version import Blob
from functions.core.traffic.canary import Settings
from functions.manage.route import ROOT, Route
from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply

READ, DEPLOY, ADMIN = Scope.READ, Scope.DEPLOY, Scope.ADMIN
# The scope that each route needs: a second hand, so that none is given away by a slip.
TABLE: list[tuple[str, str, Scope | None]] = [
    ("POST", "/uploads", DEPLOY),
    ("GET", "/uploads", READ),
    ("GET", "/uploads/<upload_id>", READ),
    ("GET", "/models", READ),
    ("GET", "/models/<model>", READ),
    ("PATCH", "/models/<model>", DEPLOY),
    ("POST", "/models/<model>/archive", DEPLOY),
    ("POST", "/models/<model>/restore", DEPLOY),
    ("GET", "/models/<model>/versions", READ),
    ("GET", "/models/<model>/versions/<number>", READ),
    ("GET", "/models/<model>/diff", READ),
    ("PATCH", "/models/<model>/versions/<number>", DEPLOY),
    ("POST", "/models/<model>/versions/<number>/approve", DEPLOY),
    ("POST", "/models/<model>/versions/<number>/reject", DEPLOY),
    ("POST", "/models/<model>/versions/<number>/archive", DEPLOY),
    ("GET", "/models/<model>/versions/<number>/sample", READ),
    ("GET", "/models/<model>/aliases", READ),
    ("GET", "/models/<model>/aliases/<alias>", READ),
    ("GET", "/models/<model>/aliases/<alias>/history", READ),
    ("PUT", "/models/<model>/aliases/<alias>", DEPLOY),
    ("DELETE", "/models/<model>/aliases/<alias>", DEPLOY),
    ("POST", "/models/<model>/aliases/<alias>/rollback", DEPLOY),
    ("GET", "/models/<model>/aliases/<alias>/traffic", READ),
    ("PUT", "/models/<model>/aliases/<alias>/traffic", DEPLOY),
    ("DELETE", "/models/<model>/aliases/<alias>/traffic", DEPLOY),
    ("GET", "/models/<model>/aliases/<alias>/canary", READ),
    ("POST", "/models/<model>/aliases/<alias>/canary", DEPLOY),
    ("DELETE", "/models/<model>/aliases/<alias>/canary", DEPLOY),
    ("POST", "/models/<model>/aliases/<alias>/canary/promote", DEPLOY),
    ("GET", "/audit", ADMIN),
    ("GET", "/models/<model>/audit", READ),
    ("POST", "/keys", ADMIN),
    ("GET", "/keys", ADMIN),
    ("GET", "/keys/<key_id>", ADMIN),
    ("PATCH", "/keys/<key_id>", ADMIN),
    ("POST", "/keys/<key_id>/rotate", ADMIN),
    ("POST", "/keys/<key_id>/revoke", ADMIN),
    ("GET", "/models/<model>/usage", READ),
    ("GET", "/usage", READ),
    ("GET", "/dead-letters", ADMIN),
    ("POST", "/dead-letters/redrive", ADMIN),
    ("POST", "/reconcile", ADMIN),
    ("GET", "/openapi.json", None),
]
SAMPLE = Blob("sample.json", "5a" * 32, 12)
ROWS = [pytest.param(*row, id=f"{row[0]} {row[1]}") for row in TABLE]
NAMED = [
    pytest.param(method, path, id=f"{method} {path}")
    for method, path, _ in TABLE
    if "<model>" in path
]
BODIES: dict[str, dict[str, Any]] = {
    "POST /uploads": {"model": "own", "file": "x.onnx", "size_bytes": 1, "sha256": "ab" * 32},
    "PATCH /models/<model>": {"description": "x"},
    "PATCH /models/<model>/versions/<number>": {"note": "x"},
    "PUT /models/<model>/aliases/<alias>": {"version": 1},
    "PUT /models/<model>/aliases/<alias>/traffic": {
        "weights": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]
    },
    "POST /models/<model>/aliases/<alias>/canary": {"version": 2},
    "PATCH /keys/<key_id>": {"monthly_requests": 1000},
    "POST /keys": {"name": "x", "scopes": ["read"]},
}
QUERIES = {"/models/<model>/diff": {"from": "1", "to": "2"}}


class Plane(ControlPlane):
    """Control plane with two models of the same history, of two owners."""

    def __init__(self, auth: Auth = Auth.KEYS) -> None:
        super().__init__(auth)
        self.samples.stored[SAMPLE.sha256] = {"request": {}, "response": {}, "synthetic": True}
        for model in ("own", "other"):
            for _ in range(3):
                self.register(model, sample=SAMPLE)
            self.canaries.start(model, "prod", 3, Settings(), lambda *_: None, actor="ann")
        self.key_id = self.create("read")["id"]
        [self.upload_id, *_] = [
            pk.partition("#")[2]
            for (pk, _), item in self.table.items.items()
            if item.get("kind") == "UPLOAD" and item["upload"]["model"] == "own"
        ]

    def send(self, method: str, path: str, key: str | None, model: str = "own") -> Reply:
        names = {"model": model, "number": "2", "alias": "prod", "key_id": self.key_id}
        names["upload_id"] = self.upload_id
        target = ROOT + re.sub("<([^>]*)>", lambda match: names[match[1]], path)
        body: Any = BODIES.get(f"{method} {path}", b"")
        headers = {} if key is None else {"x-api-key": key}
        return self.client.send(method, target, body, headers=headers, query=QUERIES.get(path))


@pytest.fixture
def plane() -> Plane:
    return Plane()


def test_the_table_has_every_route(plane: Plane) -> None:
    routes: list[Route] = plane.router.routes

    assert [(route.method, route.path, route.scope) for route in routes] == TABLE


@pytest.mark.parametrize(("method", "path", "needed"), ROWS)
def test_exactly_the_permitted_scopes_pass(
    plane: Plane, method: str, path: str, needed: Scope | None
) -> None:
    for scope in Scope:
        reply = plane.send(method, path, plane.create(scope.value)["key"])
        if needed in (None, Scope.READ, scope) or scope is Scope.ADMIN:
            assert reply.status in (200, 201, 202, 409), (scope, reply.body)
        else:
            assert error(reply)[:2] == (403, "SCOPE_MISSING")
            assert f"the scope {needed}; yours has {scope}" in reply.json["error"]
    if needed is not None:
        assert error(plane.send(method, path, None))[:2] == (401, "KEY_MISSING")


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_a_foreign_model_is_answered_as_one_that_does_not_exist(
    plane: Plane, method: str, path: str
) -> None:
    """`own-none` is unknown, `other` and `none` are foreign; only `other` exists."""
    key = plane.create("read", "deploy", models=["own*"])["key"]
    before = dict(plane.table.items)
    forms = {
        model: plane.send(method, path, key, model).body.decode().replace(model, "<model>")
        for model in ("own-none", "other", "none")
    }

    assert forms["other"] == forms["none"] == forms["own-none"]
    assert error(plane.send(method, path, key, "other"))[:2] == (404, "MODEL_NOT_FOUND")
    assert plane.table.items == before


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_a_foreign_model_costs_no_read_of_the_registry(
    plane: Plane, method: str, path: str
) -> None:
    key = plane.create("read", "deploy", models=["own*"])["key"]
    plane.send("GET", "/models/<model>", key)
    reads = plane.table.reads

    plane.send(method, path, key, "other")
    assert plane.table.reads == reads


def test_lists_hold_visible_models_alone(plane: Plane) -> None:
    key = plane.create("read", models=["own*"])["key"]

    page = plane.send("GET", "/models", key).json
    assert [model["name"] for model in page["models"]] == ["own"]
    assert page["next_cursor"] is None


@pytest.mark.parametrize(("method", "path", "needed"), ROWS)
def test_with_iam_the_signature_is_enough(method: str, path: str, needed: Scope | None) -> None:
    assert Plane(Auth.IAM).send(method, path, None).status in (200, 201, 202, 409)


@pytest.mark.parametrize(("method", "path", "needed"), ROWS)
def test_without_authorisation_keys_alone_are_refused(
    method: str, path: str, needed: Scope | None
) -> None:
    reply = Plane(Auth.NONE).send(method, path, None)

    if path.startswith("/keys"):
        assert error(reply)[:2] == (403, "AUTH_NONE")
    else:
        assert reply.status in (200, 201, 202, 409)
