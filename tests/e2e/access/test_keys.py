"""Access keys over HTTP: created by command and by the control plane, limited, ended."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from local.client import RunningStack
from tests.e2e.conftest import Api
from tests.models import scale_model


def without_key(api: Api) -> Api:
    return replace(api, key="")


def with_key(api: Api, key: str) -> Api:
    return replace(api, key=key)


def create(api: Api, **fields: Any) -> dict[str, Any]:
    """Create a key through the control plane; return its record with its text."""
    request = {"name": "e2e", "scopes": ["infer"], **fields}
    reply = api.call("POST", "/api/v1/keys", request)
    assert reply.status == 201, reply.body
    return dict(reply.json)


def test_the_command_creates_a_key_that_calls_one_model(
    stack: RunningStack, api: Api, scaled: str
) -> None:
    command = ["-m", "mayfly", "keys", "create", "--function", "ManageFunction", "--model", scaled]
    environment = {name: value for name, value in os.environ.items() if "AWS_" not in name} | {
        "AWS_ENDPOINT_URL_LAMBDA": stack.lambda_url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

    caller = with_key(api, done.stdout.strip())
    assert caller.infer(scaled, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
    assert caller.get(f"/v2/models/{scaled}/ready").status == 200


def test_a_request_without_a_key_is_told_how_to_send_one(api: Api, scaled: str) -> None:
    reply = without_key(api).infer(scaled, [1, 2, 3])

    assert (reply.status, reply.json["code"]) == (401, "KEY_MISSING")
    assert "authorization" in reply.json["error"]
    # API Gateway renames WWW-Authenticate, and the local stack as well.
    assert reply.headers["x-amzn-remapped-www-authenticate"] == "Bearer"
    assert without_key(api).get("/v2/health/ready").status == 200


def test_foreign_models_do_not_exist(api: Api, scaled: str, model: str) -> None:
    api.upload(f"models/{model}/x.onnx", scale_model(3.0))
    api.wait_ready(model)
    caller = with_key(api, create(api, scopes=["infer", "deploy"], models=[model])["key"])

    assert caller.infer(model, [1, 2, 3]).status == 200
    foreign, unknown = caller.infer(scaled, [1, 2, 3]), caller.infer("nobody", [1, 2, 3])
    assert foreign.status == unknown.status == 404
    assert foreign.json["error"].replace(scaled, "nobody") == unknown.json["error"]
    unload = f"/v2/repository/models/{scaled}/unload"
    assert caller.call("POST", unload, {}).status == 404
    assert caller.get("/v2/models").json == {"models": [model]}
    index = caller.call("POST", "/v2/repository/index").json
    assert {row["name"] for row in index} == {model}
    statistics = caller.get("/v2/models/stats").json["model_stats"]
    assert {row["name"] for row in statistics} == {model}
    assert api.infer(scaled, [1, 2, 3]).status == 200


def test_the_control_plane_needs_the_scope_admin(api: Api) -> None:
    caller = with_key(api, create(api, scopes=["infer", "read", "deploy"])["key"])

    refused = caller.call("POST", "/api/v1/keys", {"name": "x", "scopes": ["admin"]})
    assert (refused.status, refused.json["code"]) == (403, "SCOPE_MISSING")
    assert without_key(api).get("/api/v1/keys").status == 401


def test_keys_are_listed_and_bad_requests_name_their_field(api: Api) -> None:
    created = create(api, name="listed", expires_at="2999-01-01T00:00:00Z")

    def listed() -> list[dict[str, Any]]:
        keys, query = [], ""
        for _ in range(100):
            page = api.get(f"/api/v1/keys?limit=100{query}").json
            keys += page["keys"]
            if page["next_cursor"] is None:
                break
            query = f"&cursor={page['next_cursor']}"
        return [key for key in keys if key["id"] == created["id"]]

    [row] = api.wait(listed, "the new key to be listed")
    assert row == {name: value for name, value in created.items() if name != "key"}
    bad = api.call("POST", "/api/v1/keys", {"name": "x", "scopes": ["write"]})
    assert (bad.status, bad.json["code"]) == (400, "INVALID_REQUEST")
    assert bad.json["error"].startswith("scopes[0]: ")


@pytest.mark.parametrize("end", ["revoke", "rotate"])
def test_an_ended_key_stops_within_its_seconds_under_load(api: Api, scaled: str, end: str) -> None:
    """KeyCacheSeconds is 1 here; a test must not depend on the time that passes."""
    created = create(api)
    caller = with_key(api, created["key"])
    body = {"overlap_seconds": 0} if end == "rotate" else None

    def statuses(_: int) -> int:
        return caller.infer(scaled, [1, 2, 3]).status

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(statuses, range(20))) == {200}
        ended = api.call("POST", f"/api/v1/keys/{created['id']}/{end}", body)
        assert ended.status == 200
        api.wait(lambda: set(pool.map(statuses, range(8))) == {401}, "the key to be refused")
        assert set(pool.map(statuses, range(40))) == {401}
    if end == "rotate":
        assert with_key(api, ended.json["key"]).infer(scaled, [1, 2, 3]).status == 200


def test_a_log_line_names_the_key_by_its_id(stack: RunningStack, api: Api, scaled: str) -> None:
    created = create(api)
    reply = with_key(api, created["key"]).infer(scaled, [1, 2, 3])
    request_id = reply.headers["x-request-id"]

    def line() -> dict[str, Any] | None:
        rows = stack.log("InferFunction").splitlines()
        matching = [json.loads(row) for row in rows if request_id in row and row[:1] == "{"]
        return matching[0] if matching else None

    assert api.wait(line, "the log line")["key"] == created["id"]
