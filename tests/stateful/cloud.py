"""S3, DynamoDB and SQS in this process, whose every call can fail, and workers that can stop or die at every call.

A worker runs in a thread of its own, but never beside anything else: it has the turn until it pauses before a call of
its choice, ends or dies, and gives the turn back. So any interleaving can be had, and the same one again.
"""

import collections
import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import SimpleNamespace
from typing import Any
from unittest import mock

import boto3
import moto.dynamodb.models
import moto.s3.models
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError
from moto import mock_aws
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.botocore_stubber import MockRawResponse
from moto.core.model_instances import reset_model_data
from moto.core.models import botocore_stubber
from moto.moto_api._internal import mock_random

from local.aws.provision import provision
from local.aws.server import s3_event
from local.template import Template

REGION = "us-east-1"
HOUR = 3600.0


class Killed(BaseException):
    """The end of a worker, as by SIGKILL: nothing in the code may catch it, and it makes no further call."""


class Fault(StrEnum):
    """What can happen to one AWS call. The worker lives on but for the first two."""

    KILL_BEFORE = "the worker dies before it"
    KILL_AFTER = "it is applied, and the worker dies"
    PAUSE = "the worker stops before it, until it is resumed"
    LOST = "it is applied, and the reply is lost"
    UNREACHABLE = "it does not arrive"
    TWICE = "it is applied, the reply is lost, and the client sends it again"
    THROTTLED = "it is throttled"
    FAILED = "the service fails and does nothing"
    FAILED_AFTER = "the service applies it and fails"
    PARTIAL = "half of an object; some items of a read; a transaction that met another one"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object version as it lies in a bucket; `content` is None for a delete marker."""

    key: str
    version_id: str
    content: bytes | None
    modified: float


class Worker:
    """Runs `work` until a call that `plan` (its number from 1, or its operation → fault) stops it at, or to its end."""

    def __init__(self, cloud: "Cloud", work: Callable[[], Any], plan: Mapping[Any, Fault]) -> None:
        self._cloud = cloud
        self._work = work
        self._plan = dict(plan)
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._order: Fault | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self.calls: list[str] = []
        self.since = cloud.time
        self.state = "new"  # paused, ended, died
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, order: Fault | None = None) -> None:
        """Give it the turn. `order`, one of the faults, happens to the call that it is paused before."""
        outer, self._cloud.worker = self._cloud.worker, self
        self._order = order
        if self.state == "new":
            self._thread.start()
        self.state = "running"
        self._go.release()
        self._back.acquire()
        self._cloud.worker = outer
        if self.state != "paused":
            self._thread.join()

    def end(self) -> None:
        """Let go of its thread."""
        while self.state == "paused":
            self.run(Fault.KILL_BEFORE)

    def next_fault(self, operation: str) -> Fault | None:
        """What happens to the call that it is about to make."""
        if self.state == "died":
            raise Killed
        self.calls.append(operation)
        fault = self._plan.get(len(self.calls)) or self._plan.get(operation)
        if fault is Fault.PAUSE:
            self.state = "paused"
            self._back.release()
            self._go.acquire()
            fault = self._order
        return fault

    def die(self) -> None:
        self.state = "died"
        raise Killed

    def _main(self) -> None:
        self._go.acquire()
        try:
            self.result = self._work()
            self.state = "ended"
        except Killed:
            self.state = "died"
        except BaseException as error:
            self.error, self.state = error, "ended"
        finally:
            self._back.release()


class Cloud:
    """The stack's table and buckets. Calls of a worker pass through its plan; reads below see what is stored."""

    def __init__(self) -> None:
        deployed = provision(Template.load("template.yaml"), boto3.Session(region_name=REGION))
        self.table_name = deployed.outputs["RegistryTableName"]
        self.artifacts = deployed.outputs["ArtifactsBucketName"]
        self.serving = deployed.environment["RegisterFunction"]["SERVING_BUCKET"]
        config = Config(retries={"total_max_attempts": 1})  # a retry is a fault of its own: TWICE
        self.dynamodb = boto3.client("dynamodb", region_name=REGION, config=config)
        self.s3 = boto3.client("s3", region_name=REGION, config=config)
        self.s3.upload_fileobj = _in_this_thread(self.s3.upload_fileobj)
        self.sqs = boto3.client("sqs", region_name=REGION, config=config)
        queue = deployed.template.physical_name("RegistrationQueue")
        self.queue_url = self.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        for client in (self.dynamodb, self.s3, self.sqs):
            client.meta.events.unregister(
                "before-send", botocore_stubber
            )  # botocore calls every handler
            client.meta.events.register("before-send", self._send)
        self.worker: Worker | None = None
        self.time = 0.0
        self.met: collections.Counter[tuple[str, str]] = (
            collections.Counter()
        )  # (operation, fault), to see what is tried
        self.applied: Callable[[str], None] = lambda _: (
            None
        )  # called with the operation after each write
        self._s3 = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        self._dynamodb = get_backend("dynamodb")[DEFAULT_ACCOUNT_ID][REGION]
        self._queue = get_backend("sqs")[DEFAULT_ACCOUNT_ID][REGION].queues[queue]
        self._s3.buckets[self.artifacts].notification_configuration = None  # events are the test's

    def clear(self) -> None:
        """An empty table and empty buckets, and the same version ids as last time."""
        mock_random.seed(0)
        self.time = 1_800_000_000.0
        self._dynamodb.tables[self.table_name].items = collections.defaultdict(dict)
        self.sent()
        for bucket in (self.artifacts, self.serving):
            self._s3.buckets[bucket].keys = type(self._s3.buckets[bucket].keys)()
        for (
            one
        ) in moto.s3.models.FakeKey.instances_tracked:  # moto keeps every object that ever was
            one.dispose()
        reset_model_data()

    # --- what people do ---------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> Stored:
        """Upload an object, a second after whatever was before: moto sorts an object's versions by their time."""
        self.time += 1
        self._s3.put_object(self.artifacts, key, content)
        return self.objects(self.artifacts)[key][-1]

    def delete(self, key: str, version_id: str | None = None) -> None:
        """Delete a version of an object, or put a marker on top of them all."""
        self.time += 1
        self._s3.delete_object(self.artifacts, key, version_id=version_id)

    def event(self, key: str, version_id: str) -> dict[str, Any]:
        """S3's notification of an upload."""
        bucket = self._s3.buckets[self.artifacts]
        [found] = [one for one in bucket.keys.getlist(key) if one.version_id == version_id]
        return s3_event("s3:ObjectCreated:Put", bucket, found, "uploads")

    def sent(self) -> list[str]:
        """Take what was sent to the registration queue."""
        bodies = [message.body for message in self._queue._messages]
        self._queue._messages.clear()
        return bodies

    # --- what is stored, past the code under test -------------------------------------------------------------------

    def rows(self) -> dict[str, dict[str, Any]]:
        """pk → sk → item."""
        partitions = self._dynamodb.tables[self.table_name].items.items()
        return {
            pk.value: {sk.value: _row(item) for sk, item in rows.items()}
            for pk, rows in partitions
            if rows
        }

    def objects(self, bucket: str) -> dict[str, list[Stored]]:
        """key → its versions, oldest first."""
        return {
            key: [
                Stored(
                    key, one.version_id, getattr(one, "value", None), one.last_modified.timestamp()
                )
                for one in versions
            ]
            for key, versions in self._s3.buckets[bucket].keys.lists()
            if versions
        }

    # --- calls ------------------------------------------------------------------------------------------------------

    def now(self) -> str:
        return (
            datetime.fromtimestamp(self.time, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )

    def utcnow(self) -> datetime:
        return datetime.fromtimestamp(self.time, UTC).replace(tzinfo=None)

    def _send(self, event_name: str, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        operation = event_name.rpartition(".")[2]
        worker = self.worker
        if worker is None:
            return self._apply(request, operation)
        fault = worker.next_fault(operation)
        self.met[operation, fault.name if fault else ""] += 1
        if fault is Fault.KILL_BEFORE:
            worker.die()
        if fault is Fault.UNREACHABLE:
            raise EndpointConnectionError(endpoint_url=request.url)
        if fault is Fault.THROTTLED:
            return _throttled(request, operation)
        if fault is Fault.FAILED:
            return _failed(request, operation)
        if fault is Fault.PARTIAL and operation == "TransactWriteItems":
            return _cancelled(request, "TransactionConflict")
        if fault is Fault.PARTIAL and operation == "BatchGetItem":
            return self._without_one_item(request)
        response = self._apply(request, operation)
        if fault is Fault.KILL_AFTER:
            worker.die()
        if fault is Fault.LOST:
            raise ConnectionClosedError(endpoint_url=request.url)
        if fault is Fault.TWICE:
            if hasattr(request.body, "seek"):
                request.body.seek(0)
            return self._apply(request, operation)
        if fault is Fault.FAILED_AFTER:
            return _failed(request, operation)
        if fault is Fault.PARTIAL and operation == "GetObject" and response.status_code == 200:
            return _answer(request, 200, response.raw.read()[:-7], dict(response.headers))
        return response

    def _apply(self, request: AWSPreparedRequest, operation: str) -> AWSResponse:
        response = botocore_stubber("before-send", request)
        assert response is not None, f"moto does not know {request.url}"
        if operation in WRITES:
            self.applied(operation)
        return response

    def _without_one_item(self, request: AWSPreparedRequest) -> AWSResponse:
        """DynamoDB hands back the first or the last key of a read as unprocessed: the next call reads it later."""
        body = json.loads(request.body)
        keys = body["RequestItems"][self.table_name]["Keys"]
        if len(keys) == 1:
            return self._apply(request, "BatchGetItem")
        last = keys.pop(-(len(keys) % 2))
        request.body = json.dumps(body).encode()
        reply = json.loads(self._apply(request, "BatchGetItem").content)
        reply["UnprocessedKeys"] = {self.table_name: {"Keys": [last], "ConsistentRead": True}}
        return _answer(request, 200, json.dumps(reply).encode())


WRITES = {"TransactWriteItems", "PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem",
          "PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject", "DeleteObjects"}  # fmt: skip


@contextmanager
def cloud() -> Iterator[Cloud]:
    """A Cloud within the block."""
    with ExitStack() as stack:
        stack.enter_context(mock_aws())
        made = Cloud()
        stack.enter_context(mock.patch.object(moto.s3.models, "utcnow", made.utcnow))
        stack.enter_context(
            mock.patch.object(moto.dynamodb.models, "copy", SimpleNamespace(deepcopy=_snapshot))
        )
        made.clear()
        yield made
        made.clear()


def _snapshot(thing: Any) -> Any:
    """A copy for moto's rollback of a transaction: puts replace items, so the items themselves need none."""
    if not hasattr(thing, "hash_key_attr"):
        return copy.deepcopy(thing)
    table = copy.copy(thing)
    table.items = collections.defaultdict(
        dict, {pk: dict(rows) for pk, rows in thing.items.items()}
    )
    return table


def _in_this_thread(upload: Any) -> Any:
    """boto3 uploads from a pool of threads, where Killed would be lost."""
    config = TransferConfig(use_threads=False)
    return lambda *arguments, **options: upload(*arguments, **{"Config": config, **options})


def _row(item: Any) -> dict[str, Any]:
    """An item in plain values; a put replaces it, so this is done once."""
    if not hasattr(item, "plain"):
        item.plain = {name: _plain(value) for name, value in item.attrs.items()}
    row: dict[str, Any] = item.plain
    return row


def _plain(value: Any) -> Any:
    match value.type:
        case "M":
            return {name: _plain(one) for name, one in value.value.items()}
        case "L":
            return [_plain(one) for one in value.value]
        case "NULL":
            return None
        case "N":
            return int(value.value) if value.value.lstrip("-").isdigit() else float(value.value)
    return value.value


def _answer(
    request: AWSPreparedRequest, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> AWSResponse:
    return AWSResponse(request.url, status, dict(headers or {}), MockRawResponse(body))


def _throttled(request: AWSPreparedRequest, operation: str) -> AWSResponse:
    match _service(request):
        case "dynamodb":
            return _json_error(
                request,
                400,
                "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
            )
        case "sqs":
            return _json_error(request, 403, "com.amazonaws.sqs#RequestThrottled")
    return _s3_error(request, operation, 503, "SlowDown")


def _failed(request: AWSPreparedRequest, operation: str) -> AWSResponse:
    if _service(request) == "s3":
        return _s3_error(request, operation, 500, "InternalError")
    return _json_error(request, 500, "InternalServerError")


def _cancelled(request: AWSPreparedRequest, code: str) -> AWSResponse:
    reasons = [{"Code": code}] + [{"Code": "None"}] * (
        len(json.loads(request.body)["TransactItems"]) - 1
    )
    return _json_error(request, 400, "TransactionCanceledException", CancellationReasons=reasons)


def _service(request: AWSPreparedRequest) -> str:
    host = request.url.split("/")[2]
    return next((name for name in ("dynamodb", "sqs") if host.startswith(name)), "s3")


def _json_error(request: AWSPreparedRequest, status: int, code: str, **details: Any) -> AWSResponse:
    body = {"__type": code, "message": "as planned", **details}
    return _answer(request, status, json.dumps(body).encode())


def _s3_error(request: AWSPreparedRequest, operation: str, status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
    return _answer(request, status, b"" if operation == "HeadObject" else body)
