"""Control plane with API Gateway events and direct invocations: keys, errors, log lines."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from functions.core.access.auth import Auth
from functions.core.access.key_store import KeyStore
from functions.core.access.keys import key_digest, new_id, new_key
from functions.core.errors import Unavailable
from tests.control_plane import ControlPlane, error
from tests.data_plane import Context

KEYS = "/api/v1/keys"


@pytest.fixture
def plane() -> ControlPlane:
    return ControlPlane()


@pytest.fixture
def admin(plane: ControlPlane) -> dict[str, str]:
    return {"authorization": f"Bearer {plane.create()['key']}"}


def test_the_first_key_is_created_by_direct_invocation(plane: ControlPlane) -> None:
    created = plane.create(actor="anna")

    assert created["created_by"] == "iam:anna"
    assert plane.client.get(KEYS, headers={"x-api-key": created["key"]}).status == 200


def test_a_key_is_created_over_http(plane: ControlPlane, admin: dict[str, str]) -> None:
    request = {
        "name": "ci",
        "scopes": ["infer", "read"],
        "models": ["digits", "fraud-*"],
        "expires_at": "2027-01-01T00:00:00+01:00",
    }
    plane.clock.now += 1
    reply = plane.client.post(KEYS, request, headers=admin)

    created = reply.json
    assert reply.status == 201
    assert (reply.headers["cache-control"], reply.headers["x-request-id"]) == (
        "no-store",
        "the-request",
    )
    [first, _] = plane.invoke("list-keys")["keys"]
    key_id = created["id"]
    assert created == {
        "id": key_id,
        "name": "ci",
        "state": "active",
        "scopes": ["infer", "read"],
        "models": ["digits", "fraud-*"],
        "created_at": created["created_at"],
        "created_by": f"key:{first['id']}",
        "expires_at": "2026-12-31T23:00:00Z",
        "rotated_at": None,
        "revoked_at": None,
        "monthly_requests": None,
        "max_tokens": None,
        "previous_valid_until": None,
        "key": created["key"],
    }
    assert created["key"].startswith(f"mfy_{key_id}_")
    shown = plane.client.get(f"{KEYS}/{key_id}", headers=admin).json
    assert shown == {name: value for name, value in created.items() if name != "key"}


def test_a_key_may_limit_the_tokens_of_a_reply(plane: ControlPlane, admin: dict[str, str]) -> None:
    body = {"name": "chat", "scopes": ["infer"], "max_tokens": 100}
    created = plane.client.post(KEYS, body, headers=admin).json
    assert created["max_tokens"] == 100
    assert plane.client.get(f"{KEYS}/{created['id']}", headers=admin).json["max_tokens"] == 100
    for wrong in (0, -1, "many"):
        reply = plane.client.post(KEYS, {**body, "max_tokens": wrong}, headers=admin)
        assert error(reply)[0] == 400


def test_a_key_is_for_every_model_unless_it_names_some(
    plane: ControlPlane, admin: dict[str, str]
) -> None:
    request = {"name": "ci", "scopes": ["infer"]}

    assert plane.client.post(KEYS, request, headers=admin).json["models"] == ["*"]


def test_a_key_is_rotated_and_revoked_over_http(plane: ControlPlane, admin: dict[str, str]) -> None:
    created = plane.create("infer")
    path = f"{KEYS}/{created['id']}"

    rotated = plane.client.post(f"{path}/rotate", {"overlap_seconds": 3600}, headers=admin).json
    assert rotated["key"] != created["key"]
    assert rotated["previous_valid_until"] > rotated["rotated_at"]
    by_default = plane.client.post(f"{path}/rotate", headers=admin)
    assert by_default.status == 200
    revoked = plane.client.post(f"{path}/revoke", headers=admin).json
    assert (revoked["state"], "key" in revoked) == ("revoked", False)
    assert error(plane.client.post(f"{path}/rotate", headers=admin))[:2] == (409, "STATE_CONFLICT")


def test_keys_are_listed_page_by_page(plane: ControlPlane, admin: dict[str, str]) -> None:
    ids = []
    for n in range(4):
        plane.clock.now += 1
        ids.append(plane.create("read", name=f"key {n}")["id"])
    listed, query = [], {"limit": "2"}
    for _ in range(4):
        page = plane.client.get(KEYS, headers=admin, query=query).json
        listed += [key["id"] for key in page["keys"]]
        assert "key" not in page["keys"][0]
        if page["next_cursor"] is None:
            break
        query = {"limit": "2", "cursor": page["next_cursor"]}

    assert listed[1:] == ids  # after the admin's
    again = plane.invoke("list-keys", limit=2)
    assert again == plane.client.get(KEYS, headers=admin, query={"limit": "2"}).json


def test_every_operation_has_the_reply_of_its_route(plane: ControlPlane) -> None:
    created = plane.create("infer")
    shown = {name: value for name, value in created.items() if name != "key"}

    assert plane.invoke("read-key", id=created["id"]) == shown
    rotated = plane.invoke("rotate-key", id=created["id"], overlap_seconds=0)
    assert rotated["key"] != created["key"]
    assert plane.invoke("revoke-key", id=created["id"])["state"] == "revoked"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body: Field required"),
        (b"[]", "body: Input should be a valid dictionary"),
        (b"{", "body: it is no JSON: "),
        (b"\xff", "body: it is no JSON: "),
        (b"[" * 100_000, "body: it is no JSON: "),
        (b'{"name": "\\ud800"}', "body: it is no JSON: "),
        ({}, "name: Field required; scopes: Field required"),
        ({"name": 1, "scopes": "all", "more": 2}, "name: Input should be a valid string; scopes: "),
        ({"name": "x", "scopes": ["infer", "write"]}, "scopes[1]: Input should be 'infer', "),
        ({"name": "x", "scopes": []}, "scopes: empty"),
        ({"name": "x", "scopes": ["infer"], "models": ["a/b"]}, "models: 'a/b'"),
        ({"name": "", "scopes": ["infer"]}, "name: ''"),
        ({"name": "x", "scopes": ["infer"], "expires_at": "soon"}, "expires_at: Input should"),
        ({"name": "x", "scopes": ["infer"], "expires_at": "2030-01-01T00:00:00"}, "expires_at: "),
        ({"name": "x", "scopes": ["infer"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at: "),
        ({"name": "x", "scopes": ["infer"], "key": "mfy"}, "key: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_body_is_answered_400_with_its_field(
    plane: ControlPlane, admin: dict[str, str], body: Any, text: str
) -> None:
    items = dict(plane.table.items)
    status, code, message = error(plane.client.post(KEYS, body, headers=admin))

    assert (status, code) == (400, "INVALID_REQUEST")
    assert message.startswith(text)
    assert plane.table.items == items


@pytest.mark.parametrize(
    ("query", "field"),
    [({"limit": "0"}, "limit"), ({"limit": "101"}, "limit"), ({"limit": "x"}, "limit"),
     ({"cursor": "?"}, "cursor"), ({"cursor": "_w=="}, "cursor")],
)  # fmt: skip
def test_a_wrong_query_is_answered_400_with_its_field(
    plane: ControlPlane, admin: dict[str, str], query: dict[str, str], field: str
) -> None:
    status, _, text = error(plane.client.get(KEYS, headers=admin, query=query))

    assert (status, text.partition(":")[0]) == (400, field)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({}, "operation: there is no None; choose from create-key, list-keys"),
        ({"operation": "drop"}, "operation: there is no 'drop'"),
        ({"operation": ["create-key"]}, 'operation: there is no ["create-key"]'),
        ({"operation": "create-key"}, "name: Field required; scopes: Field required"),
        ({"operation": "read-key"}, "id: Field required"),
        ({"operation": "read-key", "id": "nobody"}, "there is no key with this id"),
        ({"operation": "list-keys", "limit": 0}, "limit: Input should be greater"),
        ({"operation": "list-keys", "cursor": "?"}, "cursor: "),
        ({"operation": "rotate-key", "id": "x", "overlap_seconds": -1}, "overlap_seconds: "),
        ({"operation": "list-keys", "actor": "a\nb"}, "actor: "),
        ([], "operation: there is no None"),
        ("x", "operation: there is no None"),
    ],
)
def test_a_wrong_operation_is_answered_with_its_field(
    plane: ControlPlane, event: Any, text: str
) -> None:
    """It does not fail the invocation: the alarm is for the operator's errors."""
    reply = plane.handler(event, Context())

    assert set(reply) - {"details"} == {"error", "code", "request_id"}
    assert reply["error"].replace("'create-key'", '"create-key"').startswith(text)
    assert reply["request_id"] == "lambda-id"


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "field"),
    [
        ("GET", KEYS, {"limits": "2"}, b"", "limits"),
        ("POST", f"{KEYS}/x/revoke", {"now": "1"}, b"", "now"),
        ("POST", f"{KEYS}/x/revoke", {}, b'{"now": true}', "body"),
        ("GET", KEYS, {}, b"[]", "body"),
    ],
)
def test_nothing_that_a_route_does_not_know_is_ignored(
    plane: ControlPlane,
    admin: dict[str, str],
    method: str,
    path: str,
    query: dict[str, str],
    body: bytes,
    field: str,
) -> None:
    status, _, text = error(plane.client.send(method, path, body, headers=admin, query=query))

    assert (status, text.partition(":")[0]) == (400, field)


def test_an_error_lists_each_wrong_field(plane: ControlPlane, admin: dict[str, str]) -> None:
    reply = plane.client.post(KEYS, {"name": 1, "scopes": ["infer", "write"]}, headers=admin)

    assert [problem["path"] for problem in reply.json["details"]] == ["name", "scopes[1]"]


def test_head_is_a_get_without_its_body(plane: ControlPlane, admin: dict[str, str]) -> None:
    reply = plane.client.send("HEAD", KEYS, headers=admin)

    assert (reply.status, reply.body) == (200, b"")


def test_unknown_paths_and_methods_are_answered_without_a_key(plane: ControlPlane) -> None:
    assert error(plane.client.get("/api/v1/nothing"))[:2] == (404, "PATH_NOT_FOUND")
    assert error(plane.client.send("DELETE", KEYS))[:2] == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "key", ["x", "null,null", "\0", "a\nb", '"', "#", "é", "\ud800", "a" * 3000]
)
@pytest.mark.parametrize(
    ("method", "action", "body"),
    [
        ("GET", "", b""),
        ("PATCH", "", {"monthly_requests": 1}),
        ("POST", "/revoke", b""),
        ("POST", "/rotate", {"overlap_seconds": 0}),
    ],
)
def test_an_odd_id_of_a_key_is_answered_404(
    plane: ControlPlane, admin: dict[str, str], key: str, method: str, action: str, body: object
) -> None:
    reply = plane.client.send(method, f"{KEYS}/{key}{action}", body, headers=admin)

    assert error(reply)[0] == 404
    assert "a" * 200 not in reply.body.decode()


def test_unknown_paths_methods_and_ids_have_their_status(
    plane: ControlPlane, admin: dict[str, str]
) -> None:
    client = plane.client
    assert error(client.get("/api/v1/nothing", headers=admin))[:2] == (404, "PATH_NOT_FOUND")
    assert error(client.get(f"{KEYS}/nobody", headers=admin))[:2] == (404, "KEY_NOT_FOUND")
    wrong_method = client.send("DELETE", f"{KEYS}/x", headers=admin)
    assert error(wrong_method)[:2] == (405, "METHOD_NOT_ALLOWED")
    assert wrong_method.headers["allow"] == "GET, PATCH"
    assert client.send("PUT", KEYS, headers=admin).headers["allow"] == "POST, GET"


def test_a_base_path_and_a_trailing_slash_are_accepted(
    plane: ControlPlane, admin: dict[str, str]
) -> None:
    assert plane.client.get(f"/base{KEYS}/", headers=admin).status == 200


ROUTES: list[tuple[str, str]] = [
    ("POST", KEYS),
    ("GET", KEYS),
    ("GET", f"{KEYS}/x"),
    ("POST", f"{KEYS}/x/rotate"),
    ("POST", f"{KEYS}/x/revoke"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_keys_need_the_scope_admin(plane: ControlPlane, method: str, path: str) -> None:
    others = plane.create("infer", "read", "deploy")["key"]
    sent = plane.client.send

    assert error(sent(method, path))[:2] == (401, "KEY_MISSING")
    assert error(sent(method, path, headers={"x-api-key": new_key(new_id())}))[0] == 401
    status, code, text = error(sent(method, path, headers={"x-api-key": others}))
    assert (status, code) == (403, "SCOPE_MISSING")
    assert "the scope admin" in text
    assert sent(method, path).headers["www-authenticate"] == "Bearer"


def test_a_body_is_not_read_before_the_key_is_checked(plane: ControlPlane) -> None:
    assert error(plane.client.post(KEYS, b"\xff"))[0] == 401


def test_a_page_of_an_allowed_origin_asks_without_a_key_and_sees_errors(
    plane: ControlPlane,
) -> None:
    origin = {"origin": "https://app.example.org"}
    preflight = {**origin, "access-control-request-method": "POST"}

    assert plane.client.send("OPTIONS", KEYS, headers=preflight).status == 204
    refused = plane.client.get(KEYS, headers=origin)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == origin["origin"]
    assert error(plane.client.send("OPTIONS", KEYS))[0] == 405


def test_with_iam_no_key_is_looked_at() -> None:
    plane = ControlPlane(Auth.IAM)
    request = {"name": "ci", "scopes": ["infer"]}
    arn = "arn:aws:iam::123456789012:user/anna"
    event = {
        "httpMethod": "POST",
        "path": KEYS,
        "headers": {"x-api-key": "nonsense"},
        "requestContext": {"requestId": "the-request", "identity": {"userArn": arn}},
        "body": json.dumps(request),
    }

    reply = plane.client.deliver(event)
    assert reply.status == 201
    assert reply.json["created_by"] == f"iam:{arn}"


def test_without_authorisation_keys_are_managed_by_invocation_alone() -> None:
    """A key made by anybody would be valid once the stack asks for keys."""
    plane = ControlPlane(Auth.NONE)

    reply = plane.client.post(KEYS, {"name": "ci", "scopes": ["admin"]})
    assert error(reply)[:2] == (403, "AUTH_NONE")
    assert "key" in plane.create()


def test_a_failing_registry_is_unavailable(plane: ControlPlane, admin: dict[str, str]) -> None:
    assert plane.client.get(KEYS, headers=admin).status == 200  # the key is cached now
    plane.table.broken = True
    reply = plane.client.get(f"{KEYS}/{'0' * 12}", headers=admin)

    assert error(reply)[:2] == (503, "UNAVAILABLE")
    assert reply.headers["retry-after"] == "1"
    with pytest.raises(Unavailable):
        plane.invoke("read-key", id="0" * 12)


def test_a_bug_is_answered_500_and_logged_without_its_values(
    plane: ControlPlane,
    admin: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("value of the request")

    monkeypatch.setattr(KeyStore, "read", fail)
    reply = plane.client.get(f"{KEYS}/x", headers=admin)

    assert error(reply) == (500, "INTERNAL_ERROR", "internal error")
    line = capsys.readouterr().out
    assert "RuntimeError" in line
    assert "value of the request" not in line + caplog.text


def test_log_lines_name_the_caller_and_hold_no_key_or_digest(
    plane: ControlPlane, admin: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    created = plane.client.post(KEYS, {"name": "ci", "scopes": ["infer"]}, headers=admin).json
    path = f"{KEYS}/{created['id']}"
    rotated = plane.client.post(f"{path}/rotate", headers=admin).json
    plane.client.post(f"{path}/revoke", headers=admin)
    plane.client.get(KEYS, headers={"x-api-key": rotated["key"]})
    calls: list[Callable[[], Any]] = [
        lambda: plane.client.get(KEYS, headers={"x-api-key": rotated["key"] + "x"}),
        lambda: plane.client.get(f"{KEYS}/{rotated['key']}", headers=admin),
    ]
    for call in calls:
        call()

    text = plane.log.getvalue() + caplog.text
    keys = [admin["authorization"].partition(" ")[2], created["key"], rotated["key"]]
    for key in keys:
        assert key not in text
        assert key.rpartition("_")[2] not in text
        assert key_digest(key) not in text
    requests = [line for line in plane.lines if line["message"] == "request"]
    assert requests[1]["status"] == 201
    assert requests[1]["actor"].startswith("key:")
    assert [line["audit"]["action"] for line in plane.lines if line["message"] == "audit"] == [
        "create", "create", "rotate", "revoke",
    ]  # fmt: skip
