"""Routes of uploads, dead letters and the reconciler, over fakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import StateConflict, Unavailable
from functions.core.records import replace
from functions.core.registry.version import Blob, Reason, Source, State
from tests.control_plane import BUCKET, ControlPlane, error
from tests.data_plane import Reply

UPLOADS = "/api/v1/uploads"
FILE = {"model": "digits", "file": "model.onnx", "size_bytes": 4, "sha256": "AB" * 32}


class Desk(ControlPlane):
    """Control plane with a caller of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.admin = {"x-api-key": self.create()["key"]}

    def key(self, *scopes: str, models: list[str] | None = None) -> dict[str, str]:
        return {"x-api-key": self.create(*scopes, models=models or ["*"])["key"]}

    def announce(self, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        return self.client.post(UPLOADS, {**FILE, **fields}, headers=headers or self.admin)

    def read(self, upload: str, headers: dict[str, str] | None = None) -> Any:
        return self.client.get(f"{UPLOADS}/{upload}", headers=headers or self.admin).json


@pytest.fixture
def desk() -> Desk:
    return Desk()


def event(name: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"events/{name}.json").read_text()))


def test_an_upload_is_announced_with_a_signed_url(desk: Desk) -> None:
    reply = desk.announce()

    assert reply.status == 201
    created = reply.json
    package = created["package"]
    assert created["key"] == f"models/digits/{package}/model.onnx"
    assert created["url"].startswith(f"https://{BUCKET}.example/{created['key']}")
    assert (created["method"], created["headers"]) == ("PUT", {"content-length": "4"})
    assert created["expires_at"] == "2026-11-22T08:47:10.000Z"
    upload = desk.read(created["id"])
    assert upload | {"created_by": "key"} == {
        "id": created["id"],
        "model": "digits",
        "file": "model.onnx",
        "package": package,
        "key": created["key"],
        "object_version": None,
        "state": "waiting",
        "done": False,
        "next_step": "PUT the file to the URL, with the headers that came with it",
        "version": None,
        "attempts": 0,
        "reason": None,
        "size_bytes": 4,
        "sha256": "ab" * 32,
        "created_at": "2026-11-22T08:32:10.000Z",
        "created_by": "key",
        "received_at": None,
        "expires_at": created["expires_at"],
    }


def test_a_repeated_announcement_has_a_new_url_for_the_same_upload(desk: Desk) -> None:
    headers = {**desk.admin, "idempotency-key": "k"}
    first = desk.announce(headers).json
    [stored] = [reply.body or "" for _, reply in desk.replies.stored.values()]
    assert "?signed" not in stored
    desk.clock.now += 600

    again = desk.announce(headers)
    assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json == {**first, "expires_at": "2026-11-22T08:57:10.000Z"}
    upload = desk.read(first["id"])
    assert (upload["state"], upload["expires_at"]) == ("waiting", again.json["expires_at"])
    assert len(desk.client.get(UPLOADS, headers=desk.admin).json["uploads"]) == 1


def test_a_repeat_after_the_upload_signs_and_changes_nothing(desk: Desk) -> None:
    headers = {**desk.admin, "idempotency-key": "k"}
    created = desk.announce(headers).json
    desk.registry.claim("digits", Source(BUCKET, created["key"], "v1"))
    before = desk.read(created["id"])
    desk.clock.now += 600

    assert error(desk.announce(headers))[:2] == (409, "STATE_CONFLICT")
    assert desk.read(created["id"]) == before


def test_a_repeat_of_a_stored_file_signs_nothing(desk: Desk) -> None:
    headers = {**desk.admin, "idempotency-key": "k"}
    created = desk.announce(headers).json
    desk.stored.add(created["key"])

    status, _, text = error(desk.announce(headers))
    assert (status, text) == (409, f"the file is stored already: read /uploads/{created['id']}")


def test_a_repeat_of_a_replaced_announcement_signs_nothing(desk: Desk) -> None:
    package = desk.announce(file="parts/a.bin").json["package"]
    headers = {**desk.admin, "idempotency-key": "k"}
    created = desk.announce(headers, package=package).json
    desk.announce(package=package, sha256="cd" * 32)

    status, _, text = error(desk.announce(headers, package=package))
    assert status == 409
    assert "another size or SHA-256" in text
    assert desk.read(created["id"])["sha256"] == "cd" * 32


def test_an_upload_ends_with_its_version_or_its_reason(desk: Desk) -> None:
    created = desk.announce().json
    version = desk.registry.claim("digits", Source(BUCKET, created["key"], "v1"))
    assert desk.read(created["id"])["state"] == "registering"
    blob = Blob("model.onnx", "ab" * 32, 4)
    desk.registry.finish(replace(version, state=State.READY, files=(blob,)))
    ready = desk.read(created["id"])
    assert (ready["state"], ready["version"], ready["done"]) == ("READY", 1, True)

    other = desk.announce().json
    version = desk.registry.claim("digits", Source(BUCKET, other["key"], "v1"))
    reason = Reason("NOT_ONNX", "this is no ONNX")
    desk.registry.finish(replace(version, state=State.REJECTED, reason=reason))
    rejected = desk.read(other["id"])
    assert (rejected["state"], rejected["version"]) == ("REJECTED", 2)
    assert rejected["reason"] == {"code": "NOT_ONNX", "message": "this is no ONNX"}


def test_files_of_a_package_share_a_folder(desk: Desk) -> None:
    part = desk.announce(file="parts/w.bin").json
    manifest = desk.announce(file="manifest.json", package=part["package"]).json

    assert manifest["key"] == f"models/digits/{part['package']}/manifest.json"
    assert manifest["id"] != part["id"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": "a/b"}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"file": "model.pt"}, "file"),
        ({"file": "readme.md"}, "file"),
        ({"file": "manifest.json"}, "package"),
        ({"file": ""}, "file"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"size_bytes": 5 * 1024**3 + 1}, "size_bytes"),
        ({"size_bytes": "4"}, None),  # pydantic reads it as 4
        ({"size_bytes": 4.5}, "size_bytes"),
        ({"sha256": "x"}, "sha256"),
        ({"package": "mine"}, "package"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_upload_is_answered_400_with_its_field(
    desk: Desk, fields: dict[str, Any], field: str | None
) -> None:
    items = len(desk.table.items)
    reply = desk.announce(**fields)

    if field is None:
        assert reply.status == 201
        return
    status, _, text = error(reply)
    assert (status, text.partition(":")[0]) == (400, field)
    assert len(desk.table.items) == items


def test_a_foreign_model_is_answered_as_one_that_does_not_exist(desk: Desk) -> None:
    caller = desk.key("deploy", models=["own*"])
    foreign, own = desk.announce().json["id"], desk.announce(caller, model="own-1").json["id"]

    assert error(desk.announce(caller))[:2] == (404, "MODEL_NOT_FOUND")
    read = desk.client.get(f"{UPLOADS}/{foreign}", headers=caller)
    unknown = desk.client.get(f"{UPLOADS}/{'0' * 32}", headers=caller)
    assert error(read)[:2] == error(unknown)[:2] == (404, "UPLOAD_NOT_FOUND")
    listed = desk.client.get(UPLOADS, headers=caller).json["uploads"]
    assert [upload["id"] for upload in listed] == [own]
    query = {"model": "digits"}
    assert desk.client.get(UPLOADS, headers=caller, query=query).json["uploads"] == []


def test_uploads_are_listed_by_model_over_pages_with_those_of_s3(desk: Desk) -> None:
    for n in range(3):
        desk.clock.now += 1
        desk.announce(file=f"{n}.onnx")
        desk.clock.now += 1
        desk.announce(model="faces")
    direct = Source(BUCKET, "models/digits/job/model.tar.gz", "v1")
    desk.clock.now += 1
    desk.registry.claim("digits", direct)
    files, query = [], {"model": "digits", "limit": "2"}
    for _ in range(5):
        page = desk.client.get(UPLOADS, headers=desk.admin, query=query).json
        files += [(upload["file"], upload["package"] is None) for upload in page["uploads"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]

    assert files == [
        ("job/model.tar.gz", True),
        ("2.onnx", False),
        ("1.onnx", False),
        ("0.onnx", False),
    ]
    bad = desk.client.get(UPLOADS, headers=desk.admin, query={"cursor": "?"})
    assert error(bad)[2].startswith("cursor: ")


def test_dead_letters_and_the_reconciler_are_answered_by_its_function(desk: Desk) -> None:
    letter = {
        "id": "m1", "sent_at": "2026-11-22T08:00:00.000Z", "key": "models/digits/model.onnx",
        "model": "digits", "version": 1, "state": "PENDING", "code": "UNAVAILABLE",
        "reason": "storage does not answer; try again",
    }  # fmt: skip
    desk.reconcile.reply = {"dead_letters": [letter]}
    listed = desk.client.get("/api/v1/dead-letters", headers=desk.admin)
    assert listed.json == {"dead_letters": [letter]}

    desk.reconcile.reply = {"task": "handle"}
    body = {"per_second": 5}
    redriven = desk.client.post("/api/v1/dead-letters/redrive", body, headers=desk.admin)
    assert (redriven.status, redriven.json) == (202, {"task": "handle"})
    assert desk.client.post("/api/v1/dead-letters/redrive", headers=desk.admin).status == 202
    assert desk.reconcile.events == [
        {"operation": "dead-letters"},
        {"operation": "redrive", "per_second": 5},
        {"operation": "redrive", "per_second": None},
    ]
    started = desk.client.post("/api/v1/reconcile", headers=desk.admin)
    assert (started.status, started.json) == (202, {"started": True})
    assert desk.reconcile.started == [{}]


def test_a_redrive_beside_another_and_a_failing_function_have_their_status(desk: Desk) -> None:
    path = "/api/v1/dead-letters/redrive"
    desk.reconcile.reply = StateConflict("the dead letters are being moved already")
    assert error(desk.client.post(path, headers=desk.admin))[:2] == (409, "STATE_CONFLICT")
    desk.reconcile.reply = Unavailable("the queue does not answer; try again")
    assert error(desk.client.post(path, headers=desk.admin))[:2] == (503, "UNAVAILABLE")
    wrong = desk.client.post(path, {"per_second": 0}, headers=desk.admin)
    assert error(wrong)[2].startswith("per_second: ")


def test_the_recorded_events_are_answered(desk: Desk) -> None:
    statuses = {}
    for name in (
        *("apigw_create_upload", "apigw_list_uploads"),
        *("apigw_dead_letters", "apigw_redrive", "apigw_reconcile"),
    ):
        sent = event(name)
        sent["headers"] |= desk.admin
        statuses[name] = desk.client.deliver(sent).status

    assert statuses == {
        "apigw_create_upload": 201,
        "apigw_list_uploads": 200,
        "apigw_dead_letters": 200,
        "apigw_redrive": 202,
        "apigw_reconcile": 202,
    }
