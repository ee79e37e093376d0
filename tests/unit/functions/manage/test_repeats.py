"""Header Idempotency-Key: repeats, other requests, secrets, bad values."""

import json
from typing import Any

import pytest

from tests.control_plane import ControlPlane, error
from tests.data_plane import Reply

KEYS = "/api/v1/keys"
CREATE = {"name": "ci", "scopes": ["infer"]}


class Caller:
    """Administrator who sends an Idempotency-Key."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.headers = {"x-api-key": plane.create()["key"]}

    def post(self, path: str, body: Any = b"", key: str | None = "k1") -> Reply:
        sent = self.headers | ({} if key is None else {"Idempotency-Key": key})
        return self.plane.client.post(path, body, headers=sent)


@pytest.fixture
def plane() -> ControlPlane:
    return ControlPlane()


@pytest.fixture
def caller(plane: ControlPlane) -> Caller:
    return Caller(plane)


def test_a_repeat_has_the_first_reply_and_changes_nothing(
    plane: ControlPlane, caller: Caller
) -> None:
    first = caller.post("/api/v1/reconcile")
    again = caller.post("/api/v1/reconcile")

    assert (again.status, again.json) == (first.status, first.json) == (202, {"started": True})
    assert plane.reconcile.started == [{}]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    caller.post("/api/v1/reconcile", key="k2")
    caller.post("/api/v1/reconcile", key=None)
    assert plane.reconcile.started == [{}, {}, {}]


def test_the_text_of_a_key_is_in_the_first_reply_alone(plane: ControlPlane, caller: Caller) -> None:
    first, again = caller.post(KEYS, CREATE), caller.post(KEYS, CREATE)

    assert (first.status, again.status) == (201, 201)
    assert first.json["key"].startswith("mfy_")
    assert again.json == {**first.json, "key": None}
    assert len(plane.invoke("list-keys")["keys"]) == 2  # the caller's, and one
    path = f"{KEYS}/{first.json['id']}/rotate"
    rotated, repeat = caller.post(path, key="k2"), caller.post(path, key="k2")
    assert repeat.json == {**rotated.json, "key": None}
    stored = str(plane.replies.stored)
    for text in (first.json["key"], rotated.json["key"]):
        assert text.rpartition("_")[2] not in stored


@pytest.mark.parametrize(
    ("path", "body"),
    [(KEYS, {**CREATE, "name": "other"}), ("/api/v1/reconcile", b""), (f"{KEYS}?x=1", CREATE)],
)
def test_another_request_with_the_same_key_is_refused(
    plane: ControlPlane, caller: Caller, path: str, body: Any
) -> None:
    caller.post(KEYS, CREATE)
    target, _, query = path.partition("?")
    sent = caller.headers | {"idempotency-key": "k1"}
    fields = {"x": "1"} if query else None
    reply = plane.client.send("POST", target, body, headers=sent, query=fields)

    status, code, text = error(reply)
    assert (status, code) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert text.startswith("Idempotency-Key: ")


def test_a_key_of_another_caller_is_another_key(plane: ControlPlane, caller: Caller) -> None:
    caller.post("/api/v1/reconcile")
    Caller(plane).post("/api/v1/reconcile")

    assert len(plane.reconcile.started) == 2


def test_a_request_that_is_still_running_is_refused_with_a_pause(
    plane: ControlPlane, caller: Caller
) -> None:
    caller.post("/api/v1/reconcile")
    [key] = plane.replies.stored
    plane.replies.running.add(key)
    reply = caller.post("/api/v1/reconcile")

    assert error(reply)[:2] == (409, "IDEMPOTENCY_IN_PROGRESS")
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("value", ["", " ", "a b", "é", "x" * 256, "a\tb"])
def test_a_bad_value_is_answered_400(plane: ControlPlane, caller: Caller, value: str) -> None:
    status, code, text = error(caller.post("/api/v1/reconcile", key=value))

    assert (status, code) == (400, "INVALID_REQUEST")
    assert text.startswith("Idempotency-Key: ")
    assert plane.reconcile.started == []


def test_a_refused_request_leaves_its_key_free(plane: ControlPlane, caller: Caller) -> None:
    assert caller.post(KEYS, {"name": "ci"}).status == 400
    assert caller.post(KEYS, CREATE).status == 201


def test_a_read_takes_no_notice_of_the_header(plane: ControlPlane, caller: Caller) -> None:
    sent = caller.headers | {"idempotency-key": "a b"}

    assert plane.client.get(KEYS, headers=sent).status == 200
    assert plane.replies.stored == {}


def test_a_reply_too_large_to_be_stored_is_not_made_again(
    plane: ControlPlane, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.manage.repeats.BODY_MAX", 10)
    assert caller.post(KEYS, CREATE).status == 201

    reply = caller.post(KEYS, CREATE)
    assert error(reply)[:2] == (409, "IDEMPOTENCY_REPLY_TOO_LARGE")
    assert len(plane.invoke("list-keys")["keys"]) == 2


def test_a_repeat_needs_a_valid_key_of_its_own(plane: ControlPlane, caller: Caller) -> None:
    caller.post(KEYS, CREATE)
    reply = plane.client.post(KEYS, CREATE, headers={"idempotency-key": "k1"})

    assert error(reply)[0] == 401
    assert json.dumps(plane.lines).count("k1") == 0
