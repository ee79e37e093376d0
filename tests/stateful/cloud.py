"""Simulated AWS in which every call can fail, and workers that can stop or die at every call.

S3, DynamoDB and SQS are moto's, in this process. A worker runs in a thread of its own, but never
concurrently: it has the turn until it pauses before a planned call, ends or dies, and then gives
the turn back. So every interleaving can be produced, and reproduced.
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

from functions.adapters.clock import iso
from local.aws.provision import provision
from local.aws.server import s3_event
from local.template import Template

REGION = "us-east-1"
HOUR = 3600.0


class Killed(BaseException):
    """End of a worker, as by SIGKILL.

    Nothing in the code under test may catch it, and the worker makes no further call.
    """


class Fault(StrEnum):
    """Fault of one AWS call. Only the first two end the worker."""

    KILL_BEFORE = "the worker dies before it"
    KILL_AFTER = "it is applied, and the worker dies"
    PAUSE = "the worker stops before it, until it is resumed"
    LOST = "it is applied, and the reply is lost"
    UNREACHABLE = "it does not arrive"
    TWICE = "it is applied, the reply is lost, and the client sends it again"
    THROTTLED = "it is throttled"
    FAILED = "the service fails and does nothing"
    FAILED_AFTER = "the service applies it and fails"
    PARTIAL = "a truncated object; an incomplete read; a transaction that met another one"


@dataclass(frozen=True, slots=True)
class Stored:
    """Object version in a bucket; `content` is None for a delete marker."""

    key: str
    version_id: str
    content: bytes | None
    modified: float


class Worker:
    """Thread that runs `work` with the faults of a plan, one turn at a time.

    `plan` maps a call's number, from 1, or its operation to a fault.
    """

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
        """Give the worker the turn; `order` is a fault of the call it is paused before."""
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
        """Kill the worker if it is paused, so that its thread ends."""
        while self.state == "paused":
            self.run(Fault.KILL_BEFORE)

    def next_fault(self, operation: str) -> Fault | None:
        """Return the fault of the next call, after a pause if one is planned."""
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
        """End the worker in the middle of a call."""
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
    """Table, buckets and queue of the stack, with faults in the calls of workers.

    A worker's calls pass through its plan. `rows` and `objects` read the stored state directly.
    """

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
            # botocore calls every handler that is registered, so moto's has to go.
            client.meta.events.unregister("before-send", botocore_stubber)
            client.meta.events.register("before-send", self._send)
        self.worker: Worker | None = None
        self.time = 0.0
        self.tried: collections.Counter[tuple[str, str]] = collections.Counter()  # operation, fault
        self.applied: Callable[[str], None] = _ignore  # gets the operation after each write
        self._s3 = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        self._dynamodb = get_backend("dynamodb")[DEFAULT_ACCOUNT_ID][REGION]
        self._queue = get_backend("sqs")[DEFAULT_ACCOUNT_ID][REGION].queues[queue]
        self._s3.buckets[
            self.artifacts
        ].notification_configuration = None  # the test delivers events

    def clear(self) -> None:
        """Empty table, buckets and queue; restart the clock and the sequence of version ids."""
        mock_random.seed(0)
        self.time = 1_800_000_000.0
        self._dynamodb.tables[self.table_name].items = collections.defaultdict(dict)
        self.take_sent()
        for bucket in (self.artifacts, self.serving):
            self._s3.buckets[bucket].keys = type(self._s3.buckets[bucket].keys)()
        for key in moto.s3.models.FakeKey.instances_tracked:  # moto keeps every object ever made
            key.dispose()
        reset_model_data()

    # --- actions of people

    def put(self, key: str, content: bytes) -> Stored:
        """Advance the clock by 0.25 seconds and upload an object to S3.

        S3 reports whole seconds, while moto sorts an object's versions by the exact time.
        """
        self.time += 0.25
        self._s3.put_object(self.artifacts, key, content)
        return self.objects(self.artifacts)[key][-1]

    def delete(self, key: str, version_id: str | None = None) -> None:
        """Delete one version of an object, or put a delete marker on the object."""
        self.time += 1
        self._s3.delete_object(self.artifacts, key, version_id=version_id)

    def event(self, key: str, version_id: str) -> dict[str, Any]:
        """Return S3's notification of an upload."""
        bucket = self._s3.buckets[self.artifacts]
        [version] = [v for v in bucket.keys.getlist(key) if v.version_id == version_id]
        return s3_event("s3:ObjectCreated:Put", bucket, version, "uploads")

    def take_sent(self) -> list[str]:
        """Remove and return the bodies that were sent to the registration queue."""
        bodies = [message.body for message in self._queue._messages]
        self._queue._messages.clear()
        return bodies

    # --- stored state, read without the code under test

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the table's items: pk → sk → item."""
        partitions = self._dynamodb.tables[self.table_name].items.items()
        return {
            pk.value: {sk.value: _row(item) for sk, item in rows.items()}
            for pk, rows in partitions
            if rows
        }

    def objects(self, bucket: str) -> dict[str, list[Stored]]:
        """Return a bucket's object versions, oldest first, by key."""
        return {
            key: [_stored(key, version) for version in versions]
            for key, versions in self._s3.buckets[bucket].keys.lists()
            if versions
        }

    # --- calls

    def now(self) -> str:
        """Return the simulated time of day, as the code under test sees it."""
        return self.ago(0)

    def ago(self, seconds: float) -> str:
        """Return the simulated time of day some seconds ago."""
        return iso(round((self.time - seconds) * 1000))

    def utcnow(self) -> datetime:
        """Return the simulated time of day, as moto sees it."""
        return datetime.fromtimestamp(self.time, UTC).replace(tzinfo=None)

    def _send(self, event_name: str, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        operation = event_name.rpartition(".")[2]
        worker = self.worker
        if worker is None:
            return self._apply(request, operation)
        fault = worker.next_fault(operation)
        self.tried[operation, fault.name if fault else ""] += 1
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
        """Return a read's first or last key as unprocessed, so that the next call reads it."""
        body = json.loads(request.body)
        keys = body["RequestItems"][self.table_name]["Keys"]
        if len(keys) == 1:
            return self._apply(request, "BatchGetItem")
        last = keys.pop(-(len(keys) % 2))
        request.body = json.dumps(body).encode()
        reply = json.loads(self._apply(request, "BatchGetItem").content)
        reply["UnprocessedKeys"] = {self.table_name: {"Keys": [last], "ConsistentRead": True}}
        return _answer(request, 200, json.dumps(reply).encode())


WRITES_OF_DYNAMODB = "TransactWriteItems PutItem UpdateItem DeleteItem BatchWriteItem"
WRITES_OF_S3 = "PutObject CopyObject CompleteMultipartUpload DeleteObject DeleteObjects"
WRITES = {*WRITES_OF_DYNAMODB.split(), *WRITES_OF_S3.split()}


@contextmanager
def cloud() -> Iterator[Cloud]:
    """Provide an empty Cloud within the block."""
    with ExitStack() as stack:
        stack.enter_context(mock_aws())
        simulated = Cloud()
        copier = SimpleNamespace(deepcopy=_snapshot)
        stack.enter_context(mock.patch.object(moto.s3.models, "utcnow", simulated.utcnow))
        stack.enter_context(mock.patch.object(moto.dynamodb.models, "copy", copier))
        simulated.clear()
        yield simulated
        simulated.clear()


def _ignore(_: str) -> None:
    pass


def _stored(key: str, version: Any) -> Stored:
    content = getattr(version, "value", None)
    return Stored(key, version.version_id, content, version.last_modified.timestamp())


def _snapshot(thing: Any) -> Any:
    """Copy a table for moto's rollback; items are not copied, because puts replace them."""
    if not hasattr(thing, "hash_key_attr"):
        return copy.deepcopy(thing)
    table = copy.copy(thing)
    table.items = collections.defaultdict(
        dict, {pk: dict(rows) for pk, rows in thing.items.items()}
    )
    return table


def _in_this_thread(upload: Any) -> Any:
    """Make boto3 upload in the calling thread: in its thread pool, Killed would be lost."""
    config = TransferConfig(use_threads=False)
    return lambda *arguments, **options: upload(*arguments, **{"Config": config, **options})


def _row(item: Any) -> dict[str, Any]:
    """Return an item's plain values, which are cached: puts replace items."""
    if not hasattr(item, "plain"):
        item.plain = {name: _plain(value) for name, value in item.attrs.items()}
    row: dict[str, Any] = item.plain
    return row


def _plain(value: Any) -> Any:
    match value.type:
        case "M":
            return {name: _plain(member) for name, member in value.value.items()}
        case "L":
            return [_plain(member) for member in value.value]
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
    body = {"__type": code, "message": "planned fault", **details}
    return _answer(request, status, json.dumps(body).encode())


def _s3_error(request: AWSPreparedRequest, operation: str, status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>planned fault</Message></Error>".encode()
    return _answer(request, status, b"" if operation == "HeadObject" else body)
