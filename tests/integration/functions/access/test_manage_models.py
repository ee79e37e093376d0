"""Models, aliases and audit records over HTTP, with the table that template.yaml declares."""

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import utc_now
from functions.core.registry.registry import Registry
from functions.core.registry.version import Source
from tests.data_plane import Client, Reply
from tests.unit.functions.registry.versions import ready

API = "/live/api/v1"


@pytest.fixture
def registry(function_environment: dict[str, dict[str, str]]) -> Registry:
    name = function_environment["ManageFunction"]["REGISTRY_TABLE"]
    return Registry(DynamoTable(boto3.client("dynamodb"), name), utc_now)


@pytest.fixture
def client(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """Manage function as Lambda starts it, where API Gateway checks the signatures."""
    sys.modules.pop("functions.manage.main", None)
    for name, value in {**function_environment["ManageFunction"], "AUTH": "iam"}.items():
        monkeypatch.setenv(name, value)
    yield Client(importlib.import_module("functions.manage.main").lambda_handler)
    sys.modules.pop("functions.manage.main", None)
    # Powertools' logger keeps the stream of its first test otherwise.
    logging.Logger.manager.loggerDict.pop("manage", None)


def register(registry: Registry, model: str, count: int) -> None:
    for n in range(count):
        claimed = registry.claim(model, Source("b", f"models/{model}/{n}.onnx", "v"))
        registry.finish(replace(ready(claimed), written_at=utc_now()))


def event(client: Client, name: str) -> Reply:
    return client.deliver(json.loads(Path(f"events/{name}.json").read_text()))


def pages(client: Client, path: str, name: str, **query: str) -> list[Any]:
    rows: list[Any] = []
    while True:
        reply = client.get(API + path, query=query)
        assert reply.status == 200, reply.body
        rows += reply.json[name]
        if reply.json["next_cursor"] is None:
            return rows
        query["cursor"] = reply.json["next_cursor"]


def test_every_kind_of_request_is_answered_on_dynamodb(client: Client, registry: Registry) -> None:
    register(registry, "demo", 2)

    [row] = event(client, "apigw_list_models").json["models"]
    assert row["aliases"] == {"latest": 2, "prod": 1}
    assert event(client, "apigw_diff_versions").json["differences"] == {}
    assert event(client, "apigw_change_model").json["description"] == "Doubles numbers"
    for _ in range(2):  # the second time, it points there already
        moved = event(client, "apigw_move_alias")
        assert (moved.status, moved.json["version"], moved.json["revision"]) == (200, 1, 1)
    weights = event(client, "apigw_set_traffic").json["weights"]
    assert weights == [{"version": 1, "weight": 100.0}]
    split = {"weights": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]}
    assert client.send("PUT", f"{API}/models/demo/aliases/prod/traffic", split).status == 200
    assert client.send("PUT", f"{API}/models/demo/aliases/prod", {"version": 2}).status == 200
    back = client.send("POST", f"{API}/models/demo/aliases/prod/rollback")
    assert (back.json["version"], back.json["revision"]) == (1, 4)
    assert event(client, "apigw_delete_alias").json["deleted"] is True
    assert event(client, "apigw_delete_alias").status == 404


@pytest.mark.parametrize("limit", ["1", "2", "100"])
def test_pages_hold_every_row_once(client: Client, registry: Registry, limit: str) -> None:
    for model in ("a", "b-1", "b-2", "c"):
        register(registry, model, 1)
    register(registry, "b", 4)
    client.send("PUT", f"{API}/models/b/aliases/stage", {"version": 2})
    registry.serve("b", False)
    client.send("POST", f"{API}/models/c/archive")
    client.send("POST", f"{API}/models/b/versions/4/reject")

    def listed(path: str, name: str, **query: str) -> list[Any]:
        return pages(client, path, name, limit=limit, **query)

    def names(**query: str) -> list[str]:
        return [row["name"] for row in listed("/models", "models", **query)]

    assert names() == ["a", "b", "b-1", "b-2"]
    assert names(prefix="b-") == ["b-1", "b-2"]
    assert names(search="B") == ["b", "b-1", "b-2"]
    assert names(state="archived") == ["c"]
    versions = "/models/b/versions"
    assert [row["version"] for row in listed(versions, "versions")] == [4, 3, 2, 1]
    ready_versions = listed(versions, "versions", state="READY")
    assert [row["version"] for row in ready_versions] == [3, 2, 1]
    of_b = listed("/models/b/audit", "records")
    assert [record["action"] for record in of_b][:3] == ["reject", "unload", "move_alias"]
    assert len(of_b) == 8 + 3
    everything = listed("/audit", "records")
    assert len(everything) == 11 + 4 * 2 + 1
    assert [record["at"] for record in everything] == sorted(
        (record["at"] for record in everything), reverse=True
    )
