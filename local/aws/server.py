"""Local AWS server: moto, patched to behave more like AWS.

    python -m local.aws.server --port 5000

Prints {"port": …} once it listens. `local.aws.training_jobs` makes SageMaker jobs run, and
`local.aws.state_machines` Step Functions.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock
from urllib.parse import quote_plus

from functions.adapters.memory import keep_one_heap, mmap_large_allocations
from local.aws import state_machines
from local.aws.stack_descriptions import StackDescriptions

HOST = "127.0.0.1"
OBJECT_BYTES_IN_MEMORY = 64 * 1024  # a larger object is a file in TMPDIR without a name
_sequence = itertools.count(time.time_ns())  # for S3 event sequencers, which grow with each change


def s3_event(event_name: str, bucket: Any, key: Any, notification_id: str) -> dict[str, Any]:
    """Return S3's event notification (structure 2.1) for one object change.

    `bucket` and `key` are moto's objects.
    """
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    details: dict[str, Any] = {
        "key": quote_plus(key.name, safe="/"),
        "size": key.size,
        "eTag": key.etag.strip('"'),
    }
    if bucket.is_versioned:
        details["versionId"] = key.version_id
    details["sequencer"] = f"{next(_sequence):018X}"
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": bucket.region_name,
        "eventTime": f"{seconds}.{int(now * 1000) % 1000:03d}Z",
        "eventName": str(getattr(event_name, "value", event_name)).removeprefix("s3:"),
        "userIdentity": {"principalId": "AWS:LOCAL"},
        "requestParameters": {"sourceIPAddress": HOST},
        "responseElements": {"x-amz-request-id": f"{next(_sequence):016X}", "x-amz-id-2": "local"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": notification_id,
            "bucket": {
                "name": bucket.name,
                "ownerIdentity": {"principalId": "LOCAL"},
                "arn": bucket.arn,
            },
            "object": details,
        },
    }
    return {"Records": [record]}


@contextlib.contextmanager
def as_aws_notifies() -> Iterator[None]:
    """Patch moto to send S3 events as AWS does.

    With versionId and sequencer, and only one event for a multipart upload.
    """
    from moto.s3 import notifications

    send_event = notifications.send_event

    def send_once(account_id: str, event_name: Any, bucket: Any, key: Any) -> None:
        put = notifications.S3NotificationEvent.OBJECT_CREATED_PUT_EVENT
        if event_name == put and key.multipart is not None:
            return  # moto calls put_object to complete a multipart upload
        send_event(account_id, event_name, bucket, key)

    with mock.patch.multiple(notifications, _get_s3_event=s3_event, send_event=send_once):
        yield


@contextlib.contextmanager
def moves_messages() -> Iterator[None]:
    """Patch moto's SQS with StartMessageMoveTask, which moves messages at once."""
    from moto.core.responses import ActionResult
    from moto.sqs.responses import SQSResponse

    def start_message_move_task(response: Any) -> Any:
        backend = response.sqs_backend
        dead = backend.get_queue(response._get_param("SourceArn").rpartition(":")[2])
        [source] = backend.list_dead_letter_source_queues(dead.name)
        for message in [message for message in dead._messages if message.visible]:
            dead._messages.remove(message)
            backend.send_message(source.name, message.body)
        return ActionResult({"TaskHandle": f"{next(_sequence):X}"})

    with mock.patch.object(
        SQSResponse, "start_message_move_task", start_message_move_task, create=True
    ):
        yield


@contextlib.contextmanager
def one_table_request_at_a_time() -> Iterator[None]:
    """Patch moto's DynamoDB to handle one request at a time.

    A failed transaction in moto restores the whole table, and would undo concurrent writes.
    """
    from moto.dynamodb.responses import DynamoHandler

    call_action = DynamoHandler.call_action
    lock = threading.Lock()

    def call_serially(handler: Any) -> Any:
        with lock:
            return call_action(handler)

    with mock.patch.object(DynamoHandler, "call_action", call_serially):
        yield


@contextlib.contextmanager
def objects_on_disk() -> Iterator[None]:
    """Keep S3 objects in files, not in the memory of this process.

    moto keeps up to 5 MB of each version of each object in memory, and malloc keeps what requests
    have freed: after 1.6 GB of 4 MB objects it held 1.8 GB. One descriptor stays open for each
    object in a file.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    variables = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(OBJECT_BYTES_IN_MEMORY)}
    keep_one_heap()
    with mock.patch.dict(os.environ, variables), mmap_large_allocations():
        yield


def main() -> None:
    """Serve AWS on loopback until the process is killed."""
    parser = argparse.ArgumentParser(
        prog="python -m local.aws.server", description="Serve AWS on loopback with moto."
    )
    parser.add_argument("--port", type=int, default=0, help="[a free one]")
    arguments = parser.parse_args()

    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line per request
    app = StackDescriptions(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        HOST, arguments.port, app, threaded=True, request_handler=MotoRequestHandler
    )
    # Training jobs inherit these variables.
    os.environ["AWS_ENDPOINT_URL"] = f"http://{HOST}:{server.server_port}"
    os.environ["MOTO_PORT"] = str(server.server_port)
    with objects_on_disk(), as_aws_notifies(), moves_messages(), one_table_request_at_a_time():
        state_machines.install()
        if importlib.util.find_spec("local.aws.training_jobs"):
            importlib.import_module("local.aws.training_jobs").install()
        print(json.dumps({"port": server.server_port}), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
