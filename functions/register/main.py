"""Lambda entry point for registration: read the environment, wire the adapters."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import boto3
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from botocore.config import Config

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import CONNECTIONS, S3Blobs, S3Uploads, expect_owner
from functions.adapters.aws.sqs import SqsQueue
from functions.adapters.aws.step_functions import StateMachine
from functions.adapters.child_process import Limits
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import threads_for
from functions.adapters.last_answer import answer_and_exit
from functions.adapters.sandbox import ProcessSandbox
from functions.core.canary.release import PolicyRelease
from functions.core.registration.registration import Registration
from functions.core.registry.dead_letters import note_failure
from functions.core.registry.registry import Registry
from functions.register.handler import RegisterHandler
from functions.register.manifest import read_manifest

OWN_MB = 300  # MB of this function's memory: its own process, Lambda's runtime, page tables

memory_mb = max(256, int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]) - OWN_MB)
infer_memory_mb = int(os.environ["INFER_MEMORY_MB"])
library_path = os.environ.get("LD_LIBRARY_PATH", "")
runtime_api = os.environ.get("AWS_LAMBDA_RUNTIME_API", "")  # empty outside a Lambda environment

logger = Logger()
config = Config(
    retries={"mode": "standard", "max_attempts": 4},
    connect_timeout=3,
    read_timeout=20,
    max_pool_connections=CONNECTIONS,
)
s3 = expect_owner(boto3.client("s3", config=config), os.environ["BUCKET_OWNER"])
dynamodb = boto3.client("dynamodb", config=config)
queue = SqsQueue(boto3.client("sqs", config=config), os.environ["REGISTRATION_QUEUE_URL"])
registry = Registry(
    DynamoTable(dynamodb, os.environ["REGISTRY_TABLE"]),
    utc_now,
    audit_log=lambda record: logger.info("audit", audit=dict(record)),
)
machine = StateMachine(
    boto3.client("stepfunctions", config=config), os.environ["CANARY_STATE_MACHINE"]
)
sandbox = ProcessSandbox(Limits(memory_mb), library_path=library_path, spare=True)
registration = Registration(
    registry=registry,
    uploads=S3Uploads(s3),
    blobs=S3Blobs(s3, os.environ["SERVING_BUCKET"]),
    sandbox=sandbox,
    read_manifest=read_manifest,
    memory_mb=infer_memory_mb,
    language_memory_mb=int(os.environ["GENERATE_MEMORY_MB"]),
    threads=threads_for(infer_memory_mb),
    run_all=ThreadPoolExecutor(4).map,  # model, weights, manifest and sample
    release=PolicyRelease(machine.start, utc_now),
)


def end_if_suspect(reply: dict[str, Any], request_id: str) -> None:
    """Reply and end the Lambda environment if an upload compromised its sandbox."""
    if sandbox.suspect and runtime_api:
        logger.warning("this environment ends: an upload crashed, hung or misused the sandbox")
        with suppress(OSError):  # this environment goes on, and tries again after the next upload
            answer_and_exit(runtime_api, reply, request_id)


lambda_handler = RegisterHandler(
    registration,
    logger,
    Metrics(),
    bucket=os.environ["ARTIFACTS_BUCKET"],
    note_failure=partial(note_failure, registry),
    note_ignored=registry.note_ignored,
    note_part=registry.note_part,
    send=queue.send,
    before_upload=sandbox.wait_at_most,
    after_upload=sandbox.refill,
    before_reply=end_if_suspect,
)
