"""The register function on the events it really gets: the files in events/, which `sam local invoke -e` sends too."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics

from functions.core.errors import Unavailable
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.version import State
from functions.register.handler import Handler, make_handler
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import scale_model
from tests.sandbox import MemorySandbox

BUCKET = "mayfly-artifacts"


@dataclass
class Context:
    """What Lambda hands over beside the event."""

    remaining_ms: int = 120_000
    aws_request_id: str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


class Uploads(MemoryUploads):
    """Gives an object the version id that the event names."""

    def add(self, key: str, content: bytes, version_id: str) -> None:
        self._objects.setdefault((BUCKET, key), {})[version_id] = content


def load(name: str) -> dict[str, Any]:
    return json.loads((Path("events") / f"{name}.json").read_text())


@pytest.fixture
def uploads() -> Uploads:
    uploads = Uploads()
    uploads.add("models/demo/model.onnx", scale_model(), "096fKKXTRTtl3on89fVO.nfljtsv6qko")
    uploads.add(
        "models/demo/my first model(v1).onnx", scale_model(3.0), "096fKKXTRTtl3on89fVO.nfljtsv6qko"
    )
    uploads.add("models/demo/notes.onnx", b"just text", "0")
    uploads.add("models/demo/second.onnx", scale_model(4.0), "current")
    return uploads


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(
    uploads: Uploads, registry: Registry, log: io.StringIO, request: pytest.FixtureRequest
) -> Handler:
    registration = Registration(registry, uploads, MemoryBlobs(), MemorySandbox(), read_manifest)
    return make_handler(
        registration,
        Logger(service=request.node.name, stream=log),
        Metrics(namespace="Test", service="test"),
    )


@pytest.mark.parametrize("name", ["x.onnx", "model.tar.gz", "manifest.json"])
def test_a_model_without_a_folder_is_told_where_to_go(
    handler: Handler, log: io.StringIO, name: str
) -> None:
    event = load("eventbridge_put_model")
    event["detail"]["object"] = {"key": f"models/{name}"}

    assert handler(event, Context()) == {"versions": []}

    [line] = [json.loads(line) for line in log.getvalue().splitlines() if "models/<model>/" in line]
    assert (line["level"], line["key"]) == ("WARNING", f"models/{name}")


@pytest.mark.parametrize(
    ("name", "number"), [("model.onnx", 1), ("notes.onnx", 1), ("gone.onnx", 0)]
)
def test_whatever_became_of_an_upload_the_next_one_is_prepared_for(
    uploads: Uploads, registry: Registry, log: io.StringIO, name: str, number: int
) -> None:
    seen: list[int] = []
    registration = Registration(registry, uploads, MemoryBlobs(), MemorySandbox(), read_manifest)
    handler = make_handler(
        registration,
        Logger(service="after", stream=log),
        Metrics(namespace="Test", service="test"),
        after=lambda: seen.append(
            len([one for one in registry.versions("demo") if one.finished_at])
        ),
    )
    event = load("eventbridge_put_model")
    event["detail"]["object"] = {"key": f"models/demo/{name}"}

    handler(event, Context())

    assert seen == [number]  # versions that were finished by then


@pytest.mark.parametrize("event", ["s3_put_model", "eventbridge_put_model"])
def test_a_bare_event_answers_with_the_version(handler: Handler, event: str) -> None:
    assert handler(load(event), Context()) == {
        "versions": [{"model": "demo", "version": 1, "state": "READY"}]
    }


def test_an_encoded_key_is_decoded_once(handler: Handler, registry: Registry) -> None:
    handler(load("s3_put_model_encoded_key"), Context())

    assert registry.version("demo", 1).source.key == "models/demo/my first model(v1).onnx"


def test_a_message_registers_its_upload_and_leaves_the_queue(
    handler: Handler, registry: Registry
) -> None:
    assert handler(load("sqs_put_model"), Context()) == {"batchItemFailures": []}
    assert registry.version("demo", 1).state is State.READY


def test_one_bad_upload_of_a_batch_is_rejected_and_the_others_register(
    handler: Handler, registry: Registry
) -> None:
    assert handler(load("sqs_put_batch"), Context()) == {"batchItemFailures": []}
    assert [version.state for version in registry.versions("demo")] == [
        State.READY,
        State.REJECTED,
        State.READY,
    ]
    assert registry.aliases("demo") == {"latest": 3, "prod": 1}


def test_a_failing_dependency_sends_only_its_message_back(
    handler: Handler, uploads: Uploads, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = uploads.pin

    def failing(bucket: str, key: str, version_id: str | None) -> Any:
        if key == "models/demo/second.onnx":
            raise Unavailable("storage does not answer; try again")
        return pin(bucket, key, version_id)

    monkeypatch.setattr(uploads, "pin", failing)
    event = load("sqs_put_batch")

    failures = handler(event, Context())["batchItemFailures"]

    assert failures == [{"itemIdentifier": event["Records"][2]["messageId"]}]
    assert len(registry.versions("demo")) == 2


def test_a_bug_sends_the_message_back_too(
    handler: Handler, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(uploads), "add")
    monkeypatch.setattr(uploads, "_objects", None)

    assert len(handler(load("sqs_put_model"), Context())["batchItemFailures"]) == 1


def test_a_bare_event_whose_dependency_fails_raises_so_that_lambda_tries_again(
    handler: Handler, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise Unavailable("storage does not answer; try again")

    monkeypatch.setattr(uploads, "pin", failing)

    with pytest.raises(Unavailable):
        handler(load("s3_put_model"), Context())


def test_an_upload_is_not_begun_when_time_is_short(handler: Handler, registry: Registry) -> None:
    assert (
        len(handler(load("sqs_put_model"), Context(remaining_ms=84_000))["batchItemFailures"]) == 1
    )
    assert registry.versions("demo") == []


@pytest.mark.parametrize(
    "event",
    ["s3_test_event", "sqs_garbage", "s3_put_archive", "s3_put_manifest", "s3_put_model_gone"],
)
def test_what_registers_nothing_is_acknowledged_or_rejected_and_blocks_nothing(
    handler: Handler, event: str
) -> None:
    assert handler(load(event), Context()) in (
        {"versions": []},
        {"batchItemFailures": []},
        {"versions": [{"model": "demo", "version": 1, "state": "REJECTED", "code": "OBJECT_GONE",
                       "reason": "the object was deleted before it could be read; upload it again"}]},
    )  # fmt: skip


def test_every_upload_leaves_one_log_line_without_its_content(
    handler: Handler, log: io.StringIO, capsys: pytest.CaptureFixture
) -> None:
    handler(load("sqs_put_batch"), Context())

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = [(line["message"], line["model"], line["version"]) for line in lines]
    assert told == [("registered", "demo", 1), ("rejected", "demo", 2), ("registered", "demo", 3)]
    assert lines[1]["code"] in {"NOT_ONNX", "TRUNCATED"}
    assert json.loads(capsys.readouterr().out)["UploadsRegistered"] == [1.0, 1.0]  # the EMF record
