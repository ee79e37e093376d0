"""Reconciler and dead letters, on the buckets, queue and table of template.yaml."""

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from botocore.stub import Stubber

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs, S3Uploads
from functions.adapters.aws.s3_listing import S3BlobListing, S3UploadListing
from functions.adapters.aws.sqs import SqsDeadLetters, SqsQueue
from functions.adapters.clock import iso
from functions.core.errors import InvalidRequest, StateConflict, Unavailable
from functions.core.registration.registration import Registration
from functions.core.registry.dead_letters import UNKNOWN, explain, note_failure
from functions.core.registry.reconciler import Reconciler, upload_event
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.version import Blob, Reason, Source, State
from functions.core.uploads import Upload
from functions.reconcile.handler import ReconcileHandler
from functions.register.handler import RegisterHandler
from functions.register.manifest import read_manifest
from local.aws.provision import Deployed
from tests.models import scale_model
from tests.sandbox import MemorySandbox

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Context:
    aws_request_id = "request"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 300_000


class World:
    """Stack whose clock can be advanced, and whose upload events are delivered by the test."""

    def __init__(self, deployed: Deployed) -> None:
        self.s3, self.sqs = boto3.client("s3"), boto3.client("sqs")
        self.ahead = timedelta(0)
        variables = deployed.environment["ReconcileFunction"]
        self.artifacts, self.serving = variables["ARTIFACTS_BUCKET"], variables["SERVING_BUCKET"]
        self.queue_url, self.dead_url = (
            variables["REGISTRATION_QUEUE_URL"],
            variables["DEAD_LETTERS_URL"],
        )
        table = DynamoTable(boto3.client("dynamodb"), variables["REGISTRY_TABLE"])
        self.registry = Registry(table, self.now, lambda _: None)
        self.releases = Releases(table, self.now, lambda _: None)
        self.blobs = S3Blobs(self.s3, self.serving, self.now)
        self.registration = Registration(
            self.registry, S3Uploads(self.s3), self.blobs, MemorySandbox(), read_manifest
        )
        self.reconciler = Reconciler(
            self.registry,
            S3UploadListing(self.s3, self.artifacts),
            S3BlobListing(self.s3, self.serving),
            SqsQueue(self.sqs, self.queue_url).send,
            self.ago,
        )
        self.letters = SqsDeadLetters(self.sqs, self.dead_url, variables["DEAD_LETTERS_ARN"])

    def now(self) -> str:
        return self.ago(0)

    def ago(self, seconds: float) -> str:
        return iso(round((time.time() + self.ahead.total_seconds() - seconds) * 1000))

    def upload(self, key: str, content: bytes | None = None) -> Upload:
        reply = self.s3.put_object(Bucket=self.artifacts, Key=key, Body=content or scale_model())
        return Upload(self.artifacts, key, reply["VersionId"])

    def source(self, upload: Upload) -> Source:
        return Source(upload.bucket, upload.key, upload.version_id or "")

    def lose_events(self) -> None:
        self.sqs.purge_queue(QueueUrl=self.queue_url)

    def deliver(self) -> list[str]:
        """Deliver the queue to register; return the state of each upload, in order."""
        handler = RegisterHandler(
            self.registration,
            Logger(stream=io.StringIO()),
            Metrics(namespace="t", service="t"),
            self.artifacts,
        )
        states = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.queue_url, MaxNumberOfMessages=10
        ).get("Messages"):
            for message in messages:
                versions = handler(json.loads(message["Body"]), Context())["versions"]
                states += [version["state"] for version in versions]
                self.sqs.delete_message(
                    QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return states

    def limit(self, **limits: Any) -> None:
        self.reconciler.limits = dataclasses.replace(self.reconciler.limits, **limits)


@pytest.fixture
def world(deployed: Deployed) -> World:
    return World(deployed)


@pytest.fixture
def small_pages(world: World) -> None:
    """S3 lists two object versions at a time."""
    world.s3.meta.events.register(
        "provide-client-params.s3.ListObjectVersions", lambda params, **_: {**params, "MaxKeys": 2}
    )


# --- lost events


def test_an_upload_whose_event_was_lost_registers_once(world: World) -> None:
    world.upload("models/m/a b+ü.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR

    assert world.reconciler.run().lost_uploads == 1
    assert world.reconciler.run().lost_uploads == 1  # nothing is a version yet; twice does no harm
    assert world.deliver() == ["READY", "READY"]
    assert [version.state for version in world.registry.versions("m")] == [State.READY]
    assert world.reconciler.run().lost_uploads == 0


def test_lost_uploads_of_one_key_register_in_upload_order(world: World) -> None:
    uploads = [world.upload("models/m/x.onnx", scale_model(factor)) for factor in (2.0, 3.0)]
    world.lose_events()
    world.ahead = 2 * HOUR

    world.reconciler.run()
    world.deliver()

    assert [version.source for version in world.registry.versions("m")] == [
        world.source(upload) for upload in uploads
    ]


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (0, 3, 2, 1), (1, 2, 0, 3)], ids=str)
def test_latest_is_the_last_upload_when_lost_events_come_in_any_order(
    world: World, order: tuple[int, ...]
) -> None:
    uploads = [world.upload("models/m/x.onnx", scale_model(float(n))) for n in range(4)]
    world.lose_events()
    world.ahead = 2 * HOUR
    for index in order[:2]:  # the events of the others are lost
        world.registration.register(uploads[index])

    assert world.reconciler.run().lost_uploads == 2
    world.deliver()

    newest = world.registry.resolve("m", "latest").version
    assert newest.source == world.source(uploads[-1])
    assert len(world.registry.versions("m")) == 4


def test_uploads_under_events_without_a_version_are_found(world: World) -> None:
    uploads = [world.upload("models/m/x.onnx", scale_model(float(n))) for n in range(3)]
    world.lose_events()
    for upload in uploads:
        world.registration.register(Upload(upload.bucket, upload.key))
    assert len(world.registry.versions("m")) == 1
    world.ahead = 2 * HOUR

    assert world.reconciler.run().lost_uploads == 2
    world.deliver()

    sources = {version.source for version in world.registry.versions("m")}
    assert sources == {world.source(upload) for upload in uploads}
    newest = world.registry.resolve("m", "latest").version
    assert newest.source == world.source(uploads[-1])


def test_recent_deleted_and_other_objects_are_not_resent(world: World) -> None:
    world.upload("models/m/deleted.onnx")
    world.s3.delete_object(Bucket=world.artifacts, Key="models/m/deleted.onnx")
    world.upload("models/m/notes.txt")
    world.upload("models/Bad Name/x.onnx")
    world.upload("models/m/parts/x.onnx")
    world.upload("checkpoints/m/x.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR
    assert world.reconciler.run().lost_uploads == 0

    world.ahead = timedelta(0)
    world.upload("models/m/young.onnx")
    assert world.reconciler.run().lost_uploads == 0


@pytest.mark.usefixtures("small_pages")
def test_a_run_is_bounded_and_the_next_continues_there(world: World) -> None:
    for number in range(5):
        world.upload(f"models/m{number}/x.onnx")
    for _ in range(3):  # the delete marker and the versions are on different pages
        world.upload("models/m2/gone.onnx")
    world.s3.delete_object(Bucket=world.artifacts, Key="models/m2/gone.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR
    world.limit(upload_pages=1)

    assert [world.reconciler.run().lost_uploads for _ in range(5)] == [2, 0, 0, 2, 1]
    assert world.registry.bookmark("uploads") == ""
    world.deliver()
    assert [world.reconciler.run().lost_uploads for _ in range(5)] == [0] * 5
    assert all(world.registry.aliases(f"m{number}") for number in range(5))


def test_an_upload_that_always_failed_waits_for_a_redrive(world: World) -> None:
    upload = world.upload("models/m/x.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR
    world.limit(tries=2)
    for _ in range(2):
        note_failure(
            world.registry, upload, Reason("ACCESS_DENIED", "access to the bucket is denied")
        )

    findings = world.reconciler.run()

    assert (findings.lost_uploads, findings.stuck_uploads) == (0, 1)


# --- dead workers


def test_a_version_whose_worker_died_is_registered_by_another(world: World) -> None:
    upload = world.upload("models/m/x.onnx")
    world.registry.claim("m", world.source(upload))
    world.lose_events()
    world.ahead = HOUR
    assert world.reconciler.run().resumed_versions == 0  # the queue may still deliver it again

    world.ahead = 3 * HOUR
    assert world.reconciler.run().resumed_versions == 1
    assert world.deliver() == ["READY"]

    version = world.registry.version("m", 1)
    assert (version.state, version.attempts) == (State.READY, 2)
    assert version.claimed_at > version.created_at
    assert world.reconciler.run().resumed_versions == 0


def test_an_upload_that_kills_every_worker_is_rejected(world: World) -> None:
    upload = world.upload("models/m/x.onnx")
    world.limit(deaths=3)
    for _ in range(3):
        world.registry.claim("m", world.source(upload))
    world.ahead = 3 * HOUR

    assert world.reconciler.run().given_up_versions == 1

    version = world.registry.version("m", 1)
    assert version.state is State.REJECTED
    assert version.reason.code == "REGISTRATION_DIED"
    assert version.reason.message.startswith("3 workers began this upload and none came to its end")
    assert world.registry.audit("m")[-1]["actor"] == "reconcile"


def test_failures_of_storage_do_not_count_as_dead_workers(world: World) -> None:
    upload = world.upload("models/m/x.onnx")
    world.limit(deaths=3)
    for _ in range(9):
        world.registry.claim("m", world.source(upload))
        note_failure(
            world.registry, upload, Reason("UNAVAILABLE", "storage does not answer; try again")
        )
    world.ahead = 3 * HOUR

    findings = world.reconciler.run()

    assert (findings.resumed_versions, findings.given_up_versions) == (1, 0)


# --- blobs without a reference


def store(world: World, content: bytes, directory: Path, name: str = "model.onnx") -> Blob:
    path = directory / name
    path.write_bytes(content)
    blob = Blob(name, hashlib.sha256(content).hexdigest(), len(content))
    world.blobs.store(blob, path)
    return blob


def keys(world: World) -> set[str]:
    return {
        stored["Key"]
        for stored in world.s3.list_objects_v2(Bucket=world.serving).get("Contents", [])
    }


def test_a_blob_without_a_version_is_collected_after_a_day(world: World, tmp_path: Path) -> None:
    world.registration.register(world.upload("models/m/x.onnx"))
    world.registration.register(world.upload("models/m/x.onnx", scale_model(3.0)))
    world.releases.move_alias("m", "prod", 2, actor="ann")
    world.releases.archive("m", 1, actor="ann")
    kept = keys(world)
    orphan = store(world, b"from a worker that died", tmp_path)
    world.s3.put_object(Bucket=world.serving, Key="blobs/readme.txt", Body=b"no blob")
    world.ahead = DAY - HOUR
    assert world.reconciler.run().collected_blobs == 0

    world.ahead = DAY + HOUR
    assert world.reconciler.run().collected_blobs == 1

    assert orphan.key not in keys(world)
    assert keys(world) == kept | {"blobs/readme.txt"}
    assert kept  # those of the READY and of the ARCHIVED version


def test_a_registration_under_way_keeps_the_old_blob_it_relies_on(
    world: World, tmp_path: Path
) -> None:
    """The worker stores the blob between the reconciler's listing and its removal."""
    orphan = store(world, b"weights", tmp_path)
    world.ahead = DAY + HOUR
    page, _ = world.reconciler.blobs.page("")

    store(world, b"weights", tmp_path)
    for stored in page:
        world.reconciler.blobs.remove(stored)

    assert orphan.key in keys(world)


def test_a_fresh_blob_is_not_stored_twice(world: World, tmp_path: Path) -> None:
    for _ in range(2):
        store(world, b"weights", tmp_path)

    assert len(world.s3.list_object_versions(Bucket=world.serving)["Versions"]) == 1


# --- damage


@pytest.fixture
def blob(world: World) -> Blob:
    version = world.registration.register(world.upload("models/m/x.onnx"))
    assert version is not None
    return version.files[0]


def damage(world: World) -> str | None:
    return world.registry.version("m", 1).damaged


def test_a_missing_blob_flags_its_version_until_it_is_restored(world: World, blob: Blob) -> None:
    content = world.s3.get_object(Bucket=world.serving, Key=blob.key)["Body"].read()
    world.s3.delete_object(Bucket=world.serving, Key=blob.key)

    for _ in range(2):
        assert world.reconciler.run().damaged == {"m#0000000001"}
    assert damage(world) == f"{blob.name} is missing in storage"
    assert world.registry.version("m", 1).state is State.READY
    with pytest.raises(StateConflict, match="damaged"):
        world.releases.move_alias("m", "canary", 1, actor="ann")

    world.s3.put_object(Bucket=world.serving, Key=blob.key, Body=content)
    assert world.reconciler.run().counts()["damaged"] == 0
    assert damage(world) is None
    assert [record["action"] for record in world.registry.audit("m")] == [
        "claim",
        "finish",
        "damaged",
        "mended",
    ]


def test_a_blob_of_another_size_is_found_without_reading_it(world: World, blob: Blob) -> None:
    world.s3.put_object(Bucket=world.serving, Key=blob.key, Body=b"short")
    world.limit(digest_bytes=0)

    world.reconciler.run()

    assert damage(world) == f"{blob.name} has 5 bytes in storage instead of {blob.size_bytes}"


def test_altered_content_stays_flagged_while_only_sizes_are_checked(
    world: World, blob: Blob
) -> None:
    world.s3.put_object(Bucket=world.serving, Key=blob.key, Body=b"x" * blob.size_bytes)

    world.reconciler.run()
    assert damage(world).startswith(f"{blob.name} is not what was registered: its sha256 is ")
    world.limit(digest_bytes=0)

    assert world.reconciler.run().damaged == {"m#0000000001"}
    assert damage(world).startswith(f"{blob.name} is not what was registered: its sha256 is ")


def test_digest_checks_are_bounded_and_start_over_after_the_end(world: World) -> None:
    for number in range(3):
        world.registration.register(
            world.upload(f"models/m{number}/x.onnx", scale_model(float(number)))
        )
    world.limit(digest_bytes=1)  # one version in each run
    read = []
    world.s3.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: read.append(params["url_path"])
    )

    bookmarks = []
    for _ in range(4):
        world.reconciler.run()
        bookmarks.append(world.registry.bookmark("digests"))

    assert bookmarks == ["m0#0000000001", "m1#0000000001", "m2#0000000001", ""]
    assert len(set(read)) == 3


# --- the function


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(
    world: World, log: io.StringIO, request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    logger = Logger(service=request.node.name, stream=log)
    metrics = Metrics(namespace="Mayfly", service="reconcile")
    return partial(
        ReconcileHandler(world.reconciler, world.letters, logger, metrics, lambda _: 3),
        context=Context(),
    )


def event(name: str) -> dict[str, Any]:
    return json.loads(Path(f"events/{name}.json").read_text())


def test_usage_that_cannot_be_summed_fails_the_run_at_its_end(world: World) -> None:
    def fail(_: object) -> int:
        raise Unavailable("the registry is throttled; try again")

    log = io.StringIO()
    logger, metrics = Logger(service="sums", stream=log), Metrics(namespace="Mayfly")
    handler = ReconcileHandler(world.reconciler, world.letters, logger, metrics, fail)
    world.upload("models/m/x.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR

    with pytest.raises(Unavailable, match="sum_usage: the registry is throttled"):
        handler(event("schedule_reconcile"), Context())
    assert json.loads(log.getvalue())["found"]["lost_uploads"] == 1


def test_a_scheduled_run_reports_its_findings_as_metrics(
    world: World,
    handler: Callable[..., dict[str, Any]],
    log: io.StringIO,
    capsys: pytest.CaptureFixture,
) -> None:
    world.upload("models/m/x.onnx")
    world.lose_events()
    world.ahead = 2 * HOUR

    counts = handler(event("schedule_reconcile"))

    assert counts["lost_uploads"] == 1
    assert counts["summed_hours"] == 3
    emf = json.loads(capsys.readouterr().out)
    assert emf["Reconciled"] == [1.0]
    assert not {"Damaged", "Stuck", "BlobsCollected"} & emf.keys()
    [line] = [json.loads(line) for line in log.getvalue().splitlines()]
    assert line["found"] == counts


def test_a_run_that_finds_nothing_emits_no_metric(
    world: World, handler: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture
) -> None:
    """Check that an idle stack has no metrics: CloudWatch charges those with data in an hour."""
    handler(event("schedule_reconcile"))

    assert capsys.readouterr().out == ""


def test_a_task_that_fails_stops_no_other_and_is_raised(
    world: World,
    handler: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    blob: Blob,
) -> None:
    def failing(_: str) -> Any:
        raise Unavailable("storage does not answer; try again")

    monkeypatch.setattr(world.reconciler.uploads, "page", failing)
    world.s3.delete_object(Bucket=world.serving, Key=blob.key)

    with pytest.raises(Unavailable, match="resend_lost_uploads: storage does not answer"):
        handler({})
    assert damage(world)


def test_an_unknown_operation_is_refused(handler: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequest, match="'drop' is no operation"):
        handler({"operation": "drop"})


# --- dead letters


def test_every_dead_letter_has_its_reason(
    world: World, handler: Callable[..., dict[str, Any]]
) -> None:
    """Uploads with and without a claim or a note, and a message that is no upload event."""
    denied, died, never, late = (
        world.upload(f"models/m/{name}.onnx") for name in ("denied", "died", "never", "late")
    )
    note_failure(world.registry, denied, Reason("ACCESS_DENIED", "access to the bucket is denied"))
    for _ in range(5):
        world.registry.claim("m", world.source(died))
    world.registration.register(late)
    while messages := world.sqs.receive_message(
        QueueUrl=world.queue_url, MaxNumberOfMessages=10
    ).get("Messages"):
        for message in messages:
            if "TestEvent" not in message["Body"]:
                world.sqs.send_message(QueueUrl=world.dead_url, MessageBody=message["Body"])
    world.sqs.send_message(QueueUrl=world.dead_url, MessageBody="no json")

    for _ in range(2):  # listing removes nothing from the queue
        letters = handler(event("reconcile_dead_letters"))["dead_letters"]
        listed = {
            letter["key"]: (letter["version"], letter["state"], letter["code"])
            for letter in letters
        }
        assert listed == {
            denied.key: (None, None, "ACCESS_DENIED"),
            died.key: (1, "PENDING", "REGISTRATION_DIED"),
            never.key: (None, None, "UNKNOWN"),
            late.key: (2, "READY", "REGISTERED"),
            "": (None, None, "NOT_AN_UPLOAD_EVENT"),
        }
    assert json.dumps(letters)
    assert [letter["reason"] for letter in letters if letter["code"] == "UNKNOWN"] == [UNKNOWN]
    assert len(explain(world.letters.peek(2), world.registry)) == 2


class ScatteredQueue:
    """SQS with a message on each of several servers, of which a short poll asks an empty one."""

    def __init__(self, messages: int) -> None:
        self.hidden: list[str] = []
        self.visible = [f"m{number}" for number in range(messages)]

    def receive_message(self, **request: Any) -> dict[str, Any]:
        if not request.get("WaitTimeSeconds") or not self.visible:
            return {}
        name = self.visible.pop()
        self.hidden.append(name)
        attributes = {"SentTimestamp": "0"}
        message = {"MessageId": name, "Body": "{}", "ReceiptHandle": name, "Attributes": attributes}
        return {"Messages": [message]}

    def change_message_visibility(self, ReceiptHandle: str, **_: Any) -> None:  # noqa: N803
        self.hidden.remove(ReceiptHandle)


@pytest.mark.parametrize(("limit", "listed"), [(100, 12), (5, 5)])
def test_dead_letters_on_every_server_of_sqs_are_listed(limit: int, listed: int) -> None:
    queue = ScatteredQueue(messages=12)

    messages = SqsDeadLetters(queue, "url", "arn").peek(limit)

    assert len({message.id for message in messages}) == listed
    assert not queue.hidden


def test_the_dead_letter_of_an_ignored_upload_says_why_it_was_ignored(
    world: World, handler: Callable[..., dict[str, Any]]
) -> None:
    ignored = Source("up", "models/m/model.pkl", "v1")
    world.sqs.send_message(QueueUrl=world.dead_url, MessageBody=json.dumps(upload_event(ignored)))

    [letter] = handler(event("reconcile_dead_letters"))["dead_letters"]

    assert (letter["key"], letter["code"]) == ("models/m/model.pkl", "FOREIGN_FORMAT")


def test_what_was_not_begun_is_in_the_queue_at_once_and_received_for_the_first_time(
    world: World,
) -> None:
    sources = [world.source(world.upload(f"models/m/{name}.onnx")) for name in "abc"]
    world.lose_events()
    records = [record for source in sources for record in upload_event(source)["Records"]]
    register = RegisterHandler(
        world.registration,
        Logger(stream=io.StringIO()),
        Metrics(namespace="t", service="t"),
        world.artifacts,
        send=SqsQueue(world.sqs, world.queue_url).send,
    )
    sqs = {
        "Records": [
            {
                "messageId": "1",
                "body": json.dumps({"Records": records}),
                "eventSource": "aws:sqs",
            }
        ]
    }

    class Late(Context):
        @staticmethod
        def get_remaining_time_in_millis() -> int:
            return 84_000

    assert register(sqs, Late()) == {"batchItemFailures": []}

    messages = world.sqs.receive_message(
        QueueUrl=world.queue_url,
        MaxNumberOfMessages=10,
        VisibilityTimeout=0,
        MessageSystemAttributeNames=["ApproximateReceiveCount"],
    )["Messages"]
    assert [message["Attributes"]["ApproximateReceiveCount"] for message in messages] == ["1"] * 3
    assert world.deliver() == ["READY"] * 3


def test_register_notes_why_an_upload_failed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = world.upload("models/m/x.onnx")

    def failing(*_: object) -> Any:
        raise Unavailable("access to the bucket up is denied", code="ACCESS_DENIED")

    monkeypatch.setattr(world.registration.uploads, "pin", failing)
    register = RegisterHandler(
        world.registration,
        Logger(stream=io.StringIO()),
        Metrics(namespace="t", service="t"),
        world.artifacts,
        partial(note_failure, world.registry),
    )
    body = json.dumps(upload_event(world.source(upload)))
    sqs = {"Records": [{"messageId": "1", "body": body, "eventSource": "aws:sqs"}]}

    assert register(sqs, Context()) == {"batchItemFailures": [{"itemIdentifier": "1"}]}

    [(version, failure)] = world.registry.lookup_uploads([("m", world.source(upload))])
    assert version is None
    assert (failure.reason.code, failure.attempts) == ("ACCESS_DENIED", 1)


def test_a_redrive_moves_every_dead_letter(
    world: World, handler: Callable[..., dict[str, Any]]
) -> None:
    upload = world.upload("models/m/x.onnx")
    world.lose_events()
    world.sqs.send_message(
        QueueUrl=world.dead_url, MessageBody=json.dumps(upload_event(world.source(upload)))
    )

    assert handler(event("reconcile_redrive"))["task"]

    assert world.deliver() == ["READY"]
    assert handler(event("reconcile_dead_letters")) == {"dead_letters": []}


def test_a_redrive_sends_the_request_that_sqs_expects(
    world: World, handler: Callable[..., dict[str, Any]]
) -> None:
    """Checked against botocore's model, as moto does not implement StartMessageMoveTask."""
    with Stubber(world.sqs) as stub:
        arn = "arn:aws:sqs:us-east-1:123456789012:mayfly-RegistrationDeadLetters"
        stub.add_response(
            "start_message_move_task",
            {"TaskHandle": "handle"},
            {"SourceArn": arn, "MaxNumberOfMessagesPerSecond": 5},
        )
        assert handler(event("reconcile_redrive")) == {"task": "handle"}
        stub.add_client_error(
            "start_message_move_task", "AWS.SimpleQueueService.UnsupportedOperation"
        )
        with pytest.raises(StateConflict, match="moved already"):
            world.letters.redrive()
