"""Uploads through the control plane: announce, PUT, poll to the end; dead letters; repeats."""

import hashlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Api, Reply, _direct
from tests.models import scale_model

UPLOADS = "/api/v1/uploads"


def announce(api: Api, model: str, content: bytes, **fields: Any) -> dict[str, Any]:
    request = {
        "model": model,
        "file": "model.onnx",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **fields,
    }
    reply = api.call("POST", UPLOADS, request)
    assert reply.status == 201, reply.body
    return dict(reply.json)


def put(upload: dict[str, Any], content: bytes) -> int:
    request = urllib.request.Request(
        upload["url"], content, upload["headers"], method=upload["method"]
    )
    try:
        with _direct.open(request, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_done(api: Api, upload: dict[str, Any]) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        document = api.get(f"{UPLOADS}/{upload['id']}").json
        return dict(document) if document["done"] else None

    return dict(api.wait(done, f"the end of the upload to {upload['key']}"))


def test_a_model_is_uploaded_by_url_polled_and_called(api: Api, model: str) -> None:
    content = scale_model(2.0)
    upload = announce(api, model, content)
    assert api.get(f"{UPLOADS}/{upload['id']}").json["state"] == "waiting"
    assert put(upload, content) == 200

    end = wait_done(api, upload)
    assert (end["state"], end["version"], end["reason"]) == ("READY", 1, None)
    api.wait_ready(model)
    assert api.infer(model, [1, 2, 3]).json["outputs"][0]["data"] == [2, 4, 6]
    assert put(upload, content) == 412  # the URL works once


def test_a_bad_model_ends_with_its_reason(api: Api, model: str) -> None:
    upload = announce(api, model, b"no model")
    put(upload, b"no model")

    end = wait_done(api, upload)
    assert (end["state"], end["version"]) == ("REJECTED", 1)
    assert end["reason"]["code"] == "NOT_ONNX"


def test_a_package_in_parts_is_uploaded_by_urls(api: Api, model: str) -> None:
    content = scale_model(3.0)
    part = announce(api, model, content, file="parts/model.onnx")
    put(part, content)
    received = wait_done(api, part)
    assert (received["state"], received["version"]) == ("received", None)
    entry = {
        "path": "parts/model.onnx",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest = json.dumps({"schema": 1, "files": [entry]}).encode()
    last = announce(api, model, manifest, file="manifest.json", package=part["package"])
    put(last, manifest)

    assert wait_done(api, last)["state"] == "READY"
    api.wait_ready(model)
    assert api.infer(model, [1, 2, 3]).json["outputs"][0]["data"] == [3, 6, 9]


def test_uploads_by_s3_alone_are_listed_with_their_end(api: Api, model: str) -> None:
    api.upload(f"models/{model}/model.onnx", scale_model())
    api.upload(f"models/{model}/model.pt", b"x")
    announced = announce(api, model, scale_model())

    def ended() -> list[dict[str, Any]]:
        rows = api.get(f"{UPLOADS}?model={model}").json["uploads"]
        states = {row["file"]: row["state"] for row in rows if row["package"] is None}
        return rows if states == {"model.onnx": "READY", "model.pt": "ignored"} else []

    rows = api.wait(ended, "both uploads")
    assert announced["id"] in {row["id"] for row in rows}
    assert {row["model"] for row in rows} == {model}
    [ignored] = [row for row in rows if row["state"] == "ignored"]
    assert ignored["reason"]["code"] == "FOREIGN_FORMAT"
    assert api.get(f"{UPLOADS}/{ignored['id']}").json == ignored


def test_a_lost_event_is_found_by_the_reconciler(
    api: Api, model: str, upload_silently: Callable[[str, bytes], str | None]
) -> None:
    """UploadGraceSeconds is 0 here; S3 sends no event for this object."""
    content = scale_model()
    upload = announce(api, model, content)
    upload_silently(upload["key"], content)
    assert api.get(f"{UPLOADS}/{upload['id']}").json["state"] == "received"

    def reconciled() -> bool:
        assert api.call("POST", "/api/v1/reconcile").status == 202
        return bool(api.get(f"{UPLOADS}/{upload['id']}").json["done"])

    api.wait(reconciled, "the lost upload")
    assert api.get(f"{UPLOADS}/{upload['id']}").json["state"] == "READY"


def test_dead_letters_are_listed_and_redriven(api: Api) -> None:
    def listed() -> Reply | None:
        """Return None while other tests' runs of the reconciler use all its environments."""
        reply = api.get("/api/v1/dead-letters")
        return None if reply.status == 503 else reply

    reply = api.wait(listed, "an environment of the reconcile function")
    assert (reply.status, set(reply.json)) == (200, {"dead_letters"})
    redriven = api.call("POST", "/api/v1/dead-letters/redrive", {"per_second": 5})
    # 409 while the redrive of another test is running
    assert redriven.status in (202, 409), redriven.body
    assert "task" in redriven.json or "moved already" in redriven.json["error"]


def test_a_repeated_change_is_made_once(api: Api) -> None:
    headers = {"idempotency-key": str(uuid.uuid4())}
    body = {"name": f"once-{headers['idempotency-key']}", "scopes": ["read"]}

    def create(**fields: Any) -> Reply:
        return api.call("POST", "/api/v1/keys", {**body, **fields}, headers)

    first, again, other = create(), create(), create(name="another")
    assert again.json == {**first.json, "key": None}
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status, other.json["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
