"""Control plane of a deployed stack: lists and changes, with the permissions of its own roles."""

from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.conftest import Api
from tests.models import scale_model

pytestmark = pytest.mark.deployed


@pytest.fixture
def two_versions(api: Api, model: str) -> str:
    """Return the name of a model with two READY versions."""
    for number, factor in enumerate((2.0, 3.0), start=1):
        api.upload(f"models/{model}/x.onnx", scale_model(factor))
        api.wait_ready(model, number)
    return model


def ask(api: Api, method: str, path: str, body: object = None) -> Any:
    """Send a request to the control plane that must succeed; return its document."""
    reply = api.call(method, f"/api/v1{path}", body)
    assert reply.status < 300, (path, reply.status, reply.body)
    return reply.json if reply.body else None


def test_models_versions_and_records_are_listed(api: Api, two_versions: str) -> None:
    model = f"/models/{two_versions}"
    listed = api.wait(
        lambda: ask(api, "GET", f"/models?search={two_versions}")["models"], "the index to follow"
    )
    versions = ask(api, "GET", f"{model}/versions")["versions"]

    assert [row["name"] for row in listed] == [two_versions]
    assert [row["version"] for row in versions] == [2, 1]
    for path in ("", "/versions/1", "/diff?from=1&to=2", "/aliases", "/audit", "/usage"):
        ask(api, "GET", model + path)
    ask(api, "GET", "/audit")
    ask(api, "GET", "/usage")


def test_an_alias_is_moved_split_rolled_back_and_deleted(api: Api, two_versions: str) -> None:
    alias = f"/models/{two_versions}/aliases/blue"
    for version in (1, 2):
        assert ask(api, "PUT", alias, {"version": version})["version"] == version
    weights = [{"version": 2, "weight": 90}, {"version": 1, "weight": 10}]
    ask(api, "PUT", f"{alias}/traffic", {"weights": weights})
    ask(api, "DELETE", f"{alias}/traffic")
    ask(api, "POST", f"{alias}/rollback", {})

    assert api.infer(two_versions, [1, 2, 3], "blue").json["outputs"][0]["data"] == [2, 4, 6]
    assert ask(api, "GET", f"{alias}/history")
    ask(api, "DELETE", alias)
    assert api.call("GET", f"/api/v1{alias}").status == 404


def test_a_model_is_archived_and_restored(api: Api, two_versions: str) -> None:
    model = f"/models/{two_versions}"
    ask(api, "PATCH", model, {"description": "doubles"})
    for change in ("archive", "restore"):
        ask(api, "POST", f"{model}/{change}", {})

    assert ask(api, "GET", model)["description"] == "doubles"


def test_the_state_machine_judges_a_canary_and_promotes_it(api: Api, two_versions: str) -> None:
    """Step Functions waits, invokes the judge and goes on until the canary is over."""
    path = f"/models/{two_versions}/aliases/prod"
    ask(api, "PUT", path, {"version": 1})
    # Versions that answer differently, and as fast and as often: no test of a canary tells them
    settings = {"steps": [50], "bake_seconds": 1, "min_samples": 20, "max_age_seconds": 1800}
    canary = ask(api, "POST", f"{path}/canary", {"version": 2, **settings})
    assert canary["state"] == "running"

    def ended() -> dict[str, Any] | None:
        for _ in range(5):
            assert api.infer(two_versions, [1, 2, 3]).status == 200
        current = dict(ask(api, "GET", f"{path}/canary"))
        return None if current["state"] == "running" else current

    end = api.wait(ended, "the canary's end")
    assert (end["state"], end["stable_version"]) == ("promoted", 2), end
    [record] = ask(api, "GET", f"/models/{two_versions}/audit?action=promote_canary")["records"]
    assert record["actor"] == "judge"


def test_a_person_stops_a_canary(api: Api, two_versions: str) -> None:
    alias = f"/models/{two_versions}/aliases/prod"
    ask(api, "PUT", alias, {"version": 1})
    ask(api, "POST", f"{alias}/canary", {"version": 2})

    assert ask(api, "DELETE", f"{alias}/canary")["state"] == "stopped"


def test_keys_uploads_and_dead_letters_are_listed(api: Api, two_versions: str) -> None:
    uploads = ask(api, "GET", f"/uploads?model={two_versions}")["uploads"]

    assert {upload["state"] for upload in uploads} == {"READY"}
    for path in ("/keys", "/openapi.json"):
        assert ask(api, "GET", path)
    # 503 while other runs of the reconciler use all its environments
    api.wait(lambda: api.get("/api/v1/dead-letters").status == 200, "the reconcile function")
    assert ask(api, "POST", "/reconcile") is not None


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/console/", "text/html", b"console.js"),
        ("/console/console.js", "text/javascript", b"use strict"),
        ("/docs", "text/html", b"swagger-ui.js"),
        ("/docs/swagger-ui.js", "text/javascript", b"SwaggerUIBundle"),
    ],
)
def test_pages_are_served_without_a_key(api: Api, path: str, kind: str, content: bytes) -> None:
    reply = replace(api, key="").get(path)

    assert reply.status == 200
    assert reply.headers["content-type"].startswith(kind)
    assert content in reply.body
    assert reply.headers["x-content-type-options"] == "nosniff"
