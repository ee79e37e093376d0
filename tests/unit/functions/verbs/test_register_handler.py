"""Register handler on the recorded events in events/, which `sam local invoke -e` sends, too."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics

from functions.core.errors import Unavailable
from functions.core.registration.registration import Registration
from functions.core.registry.registry import Registry
from functions.core.registry.version import Reason, State
from functions.core.uploads import Upload, uploads_in
from functions.register.handler import STORE_S, RegisterHandler
from functions.register.manifest import read_manifest
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import scale_model
from tests.sandbox import MemorySandbox

BUCKET = "mayfly-artifactsbucket"  # of the recorded events, and of the local stack
UPLOAD = Upload(BUCKET, "models/demo/model.onnx", "v1")


@dataclass
class Context:
    """Lambda context with a chosen remaining time."""

    remaining_ms: int = 120_000
    times: list[int] = field(default_factory=list)  # answers of the first calls; the last stays
    aws_request_id: str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"

    def get_remaining_time_in_millis(self) -> int:
        if self.times:
            self.remaining_ms = self.times.pop(0)
        return self.remaining_ms


class Uploads(MemoryUploads):
    """Bucket in memory whose objects have chosen version ids."""

    def add(self, key: str, content: bytes, version_id: str) -> None:
        self.put(BUCKET, key, content, version_id)


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


def failing_for(key: str, pin: Callable[..., Any]) -> Callable[..., Any]:
    """Return `pin` with a storage failure for one object key."""

    def failing(bucket: str, object_key: str, version_id: str | None) -> Any:
        if object_key == key:
            raise Unavailable("storage does not answer; try again")
        return pin(bucket, object_key, version_id)

    return failing


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(
    uploads: Uploads, registry: Registry, log: io.StringIO, request: pytest.FixtureRequest
) -> RegisterHandler:
    registration = Registration(registry, uploads, MemoryBlobs(), MemorySandbox(), read_manifest)
    return RegisterHandler(
        registration,
        Logger(service=request.node.name, stream=log),
        Metrics(namespace="Test", service="test"),
        BUCKET,
    )


def several(*keys: str) -> dict[str, Any]:
    """Return an S3 notification with one record for each key."""
    event = load("s3_put_model")
    [record] = event["Records"]
    record["s3"]["object"].pop("versionId")
    for key in keys:
        event["Records"].append(copy.deepcopy(record))
        event["Records"][-1]["s3"]["object"]["key"] = key
    return {"Records": event["Records"][1:]}


def message(notification: dict[str, Any]) -> dict[str, Any]:
    """Return an SQS batch of one message that wraps an S3 notification."""
    event = load("sqs_put_model")
    event["Records"][0]["body"] = json.dumps(notification)
    return event


def logged(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_what_was_not_begun_goes_to_the_queue_at_once_each_by_itself(
    handler: RegisterHandler, registry: Registry, log: io.StringIO
) -> None:
    sent: list[Any] = []
    queueing = replace(handler, send=sent.extend)
    keys = ["models/demo/model.onnx", "models/demo/second.onnx", "models/demo/notes.onnx"]
    context = Context(times=[120_000, 84_000])

    assert queueing(message(several(*keys)), context) == {"batchItemFailures": []}

    assert [version.source.key for version in registry.versions("demo")] == keys[:1]
    assert [[upload.key for upload in uploads_in(event)] for event in sent] == [
        ["models/demo/second.onnx"],
        ["models/demo/notes.onnx"],
    ]
    assert [(line["message"], line["key"]) for line in logged(log)] == [
        ("registered", keys[0]),
        ("not begun: queued again", keys[1]),
        ("not begun: queued again", keys[2]),
    ]
    for event in sent:
        queueing(message(event), Context())
    assert {version.source.key for version in registry.versions("demo")} == set(keys)


def test_a_direct_event_names_the_uploads_that_were_queued(handler: RegisterHandler) -> None:
    queueing = replace(handler, send=lambda _: None)
    event = several("models/demo/model.onnx", "models/demo/second.onnx")

    assert queueing(event, Context(times=[120_000, 84_000]))["versions"] == [
        {"model": "demo", "version": 1, "state": "READY"},
        {"key": "models/demo/second.onnx", "state": "QUEUED"},
    ]


def test_what_was_not_begun_is_retried_and_logged_if_the_queue_fails(
    handler: RegisterHandler, log: io.StringIO
) -> None:
    def failing(_: object) -> None:
        raise Unavailable("the queue cannot be reached; try again")

    event = message(several("models/demo/model.onnx", "models/demo/second.onnx"))

    failures = replace(handler, send=failing)(event, Context(remaining_ms=84_000))

    assert len(failures["batchItemFailures"]) == 1
    lines = [(line["message"], line["reason"]) for line in logged(log) if "key" in line]
    assert lines == [("to be tried again", "the queue cannot be reached; try again")] * 2


def test_a_failing_upload_keeps_no_neighbour_in_its_message_from_being_registered(
    handler: RegisterHandler, uploads: Uploads, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "pin", failing_for("models/demo/model.onnx", uploads.pin))
    event = message(several("models/demo/model.onnx", "models/demo/second.onnx"))

    assert len(handler(event, Context())["batchItemFailures"]) == 1
    assert [version.source.key for version in registry.versions("demo")] == [
        "models/demo/second.onnx"
    ]


def test_a_malformed_record_hides_no_neighbour(handler: RegisterHandler, log: io.StringIO) -> None:
    event = several("models/demo/model.onnx")
    event["Records"].insert(0, {"eventName": "ObjectCreated:Put"})

    assert len(handler(event, Context())["versions"]) == 1
    assert [line["message"] for line in logged(log)] == ["ignored: no upload event", "registered"]


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("models/demo/model.h5", "FOREIGN_FORMAT"),
        ("models/My Model/x.onnx", "BAD_MODEL_NAME"),
        ("models/x.onnx", "NO_MODEL_FOLDER"),
    ],
)
def test_an_ignored_upload_is_logged_counted_and_listed(
    handler: RegisterHandler, registry: Registry, log: io.StringIO, capsys: Any, key: str, code: str
) -> None:
    noting = replace(handler, note_ignored=registry.note_ignored)

    assert noting(message(several(key)), Context()) == {"batchItemFailures": []}

    [line] = logged(log)
    assert (line["level"], line["message"], line["code"]) == ("WARNING", "ignored", code)
    assert registry.ignored() == [(key, line["reason"])]
    assert json.loads(capsys.readouterr().out)["UploadsIgnored"] == [1.0]


def test_an_ignored_upload_is_delivered_again_if_it_cannot_be_listed(
    handler: RegisterHandler,
) -> None:
    def failing(*_: object) -> None:
        raise Unavailable("the registry cannot be reached; try again")

    noting = replace(handler, note_ignored=failing)

    failures = noting(message(several("models/demo/model.h5")), Context())["batchItemFailures"]
    assert len(failures) == 1


@pytest.mark.parametrize("name", ["x.onnx", "model.tar.gz", "manifest.json"])
def test_a_model_without_a_folder_is_logged_with_the_right_folder(
    handler: RegisterHandler, log: io.StringIO, name: str
) -> None:
    event = load("eventbridge_put_model")
    event["detail"]["object"] = {"key": f"models/{name}"}

    assert handler(event, Context()) == {"versions": []}

    [line] = [json.loads(line) for line in log.getvalue().splitlines() if "models/<model>/" in line]
    assert (line["level"], line["key"]) == ("WARNING", f"models/{name}")


@pytest.mark.parametrize("name", ["s3_put_model", "eventbridge_put_model", "sqs_put_model"])
def test_an_upload_to_another_bucket_is_not_even_read(
    handler: RegisterHandler, log: io.StringIO, name: str, uploads: Uploads
) -> None:
    text = json.dumps(load(name)).replace(BUCKET, "somebody-elses")
    uploads.put("somebody-elses", "models/demo/model.onnx", scale_model())

    reply = handler(json.loads(text), Context())

    assert reply in ({"versions": []}, {"batchItemFailures": []})
    assert handler.registration.registry.versions("demo") == []
    [line] = logged(log)
    assert line["message"] == "ignored: another bucket"
    assert (line["bucket"], line["reason"]) == ("somebody-elses", f"upload to {BUCKET}")


@pytest.mark.parametrize(
    ("name", "number"), [("model.onnx", 1), ("notes.onnx", 1), ("gone.onnx", 0)]
)
def test_after_upload_is_called_once_the_version_is_finished(
    uploads: Uploads, registry: Registry, log: io.StringIO, name: str, number: int
) -> None:
    finished: list[int] = []
    registration = Registration(registry, uploads, MemoryBlobs(), MemorySandbox(), read_manifest)
    handler = RegisterHandler(
        registration,
        Logger(service="after", stream=log),
        Metrics(namespace="Test", service="test"),
        BUCKET,
        after_upload=lambda: finished.append(
            len([version for version in registry.versions("demo") if version.finished_at])
        ),
    )
    event = load("eventbridge_put_model")
    event["detail"]["object"] = {"key": f"models/demo/{name}"}

    handler(event, Context())

    assert finished == [number]


def test_before_reply_is_called_with_the_reply(handler: RegisterHandler) -> None:
    replies: list[tuple[dict[str, Any], str]] = []
    handler = replace(handler, before_reply=lambda *reply: replies.append(reply))

    reply = handler(load("s3_put_model"), Context())

    assert replies == [(reply, Context.aws_request_id)]


@pytest.mark.parametrize("event", ["s3_put_model", "eventbridge_put_model"])
def test_a_direct_event_is_answered_with_the_version(handler: RegisterHandler, event: str) -> None:
    assert handler(load(event), Context()) == {
        "versions": [{"model": "demo", "version": 1, "state": "READY"}]
    }


def test_an_encoded_key_is_decoded_once(handler: RegisterHandler, registry: Registry) -> None:
    handler(load("s3_put_model_encoded_key"), Context())

    assert registry.version("demo", 1).source.key == "models/demo/my first model(v1).onnx"


def test_a_message_registers_its_upload_and_leaves_the_queue(
    handler: RegisterHandler, registry: Registry
) -> None:
    assert handler(load("sqs_put_model"), Context()) == {"batchItemFailures": []}
    assert registry.version("demo", 1).state is State.READY


def test_one_bad_upload_of_a_batch_is_rejected_and_the_others_register(
    handler: RegisterHandler, registry: Registry
) -> None:
    assert handler(load("sqs_put_batch"), Context()) == {"batchItemFailures": []}
    assert [version.state for version in registry.versions("demo")] == [
        State.READY,
        State.REJECTED,
        State.READY,
    ]
    assert registry.aliases("demo") == {"latest": 3, "prod": 1}


def test_a_failing_dependency_sends_only_its_message_back(
    handler: RegisterHandler, uploads: Uploads, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "pin", failing_for("models/demo/second.onnx", uploads.pin))
    event = load("sqs_put_batch")

    failures = handler(event, Context())["batchItemFailures"]

    assert failures == [{"itemIdentifier": event["Records"][2]["messageId"]}]
    assert len(registry.versions("demo")) == 2


def test_a_bug_sends_the_message_back(
    handler: RegisterHandler, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(uploads), "add")
    monkeypatch.setattr(uploads, "_objects", None)

    assert len(handler(load("sqs_put_model"), Context())["batchItemFailures"]) == 1


def test_a_direct_event_raises_if_a_dependency_fails(
    handler: RegisterHandler, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise Unavailable("storage does not answer; try again")

    monkeypatch.setattr(uploads, "pin", failing)

    with pytest.raises(Unavailable):
        handler(load("s3_put_model"), Context())


def test_an_upload_is_not_started_with_too_little_time_left(
    handler: RegisterHandler, registry: Registry
) -> None:
    assert (
        len(handler(load("sqs_put_model"), Context(remaining_ms=84_000))["batchItemFailures"]) == 1
    )
    assert registry.versions("demo") == []


def test_an_upload_may_take_the_time_left_less_that_to_store_it(handler: RegisterHandler) -> None:
    limits: list[float] = []

    replace(handler, before_upload=limits.append)(load("sqs_put_model"), Context(120_000))

    assert limits == [120 - STORE_S]


@pytest.mark.parametrize(
    "event",
    ["s3_test_event", "sqs_garbage", "s3_put_archive", "s3_put_manifest", "s3_put_model_gone"],
)
def test_events_without_a_valid_upload_are_acknowledged(
    handler: RegisterHandler, event: str
) -> None:
    gone = {
        "model": "demo",
        "version": 1,
        "state": "REJECTED",
        "code": "OBJECT_GONE",
        "reason": "the object was deleted before it could be read; upload it again",
    }
    acknowledged = [{"versions": []}, {"batchItemFailures": []}, {"versions": [gone]}]

    assert handler(load(event), Context()) in acknowledged


def test_every_upload_leaves_one_log_line_without_its_content(
    handler: RegisterHandler, log: io.StringIO, capsys: pytest.CaptureFixture
) -> None:
    handler(load("sqs_put_batch"), Context())

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    logged = [(line["message"], line["model"], line["version"]) for line in lines]
    assert logged == [("registered", "demo", 1), ("rejected", "demo", 2), ("registered", "demo", 3)]
    assert lines[1]["code"] in {"NOT_ONNX", "TRUNCATED"}
    assert json.loads(capsys.readouterr().out)["UploadsRegistered"] == [1.0, 1.0]  # the EMF record


def test_the_reason_for_a_retry_is_recorded(handler: RegisterHandler) -> None:
    failures: list[tuple[Upload, Reason]] = []
    recording = replace(handler, note_failure=lambda *failure: failures.append(failure))

    recording.log_retry(UPLOAD, Unavailable("storage does not answer; try again"))
    recording.log_bug(UPLOAD, KeyError("x"))

    assert failures == [
        (UPLOAD, Reason("UNAVAILABLE", "storage does not answer; try again")),
        (UPLOAD, Reason("INTERNAL", "register failed with KeyError; its log has more")),
    ]


def test_an_unreachable_registry_does_not_hide_the_failure(
    handler: RegisterHandler, log: io.StringIO
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("the registry cannot be reached; try again")

    replace(handler, note_failure=fail).record_failure(UPLOAD, Reason("UNAVAILABLE", "x"))

    [line] = [json.loads(line) for line in log.getvalue().splitlines()]
    assert (line["message"], line["key"]) == ("no note", UPLOAD.key)
