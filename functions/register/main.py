"""Lambda entry point: reads the environment, picks real adapters. Runs once, during INIT."""

import os
from functools import partial

import boto3
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from botocore.config import Config

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import CONNECTIONS, S3Blobs, S3Uploads
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import threads_for
from functions.adapters.sandbox import Limits, ProcessSandbox
from functions.core.registration.executor import Background
from functions.core.registration.registration import Registration
from functions.core.registry.dead_letters import note_failure
from functions.core.registry.registry import Registry
from functions.register.handler import make_handler
from functions.register.manifest import read_manifest

OWN_MB = 300  # of this function's memory: this process, Lambda's own, page tables

retries = {"mode": "standard", "max_attempts": 4}
config = Config(
    retries=retries, connect_timeout=3, read_timeout=20, max_pool_connections=CONNECTIONS
)
memory_mb = max(256, int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]) - OWN_MB)
infer_memory_mb = int(os.environ["INFER_MEMORY_MB"])
s3 = boto3.client("s3", config=config)
logger = Logger()
registry = Registry(
    DynamoTable(boto3.client("dynamodb", config=config), os.environ["REGISTRY_TABLE"]),
    utc_now,
    audit_log=lambda record: logger.info("audit", audit=dict(record)),
)
sandbox = ProcessSandbox(
    Limits(memory_mb), library_path=os.environ.get("LD_LIBRARY_PATH", ""), spare=True
)
registration = Registration(
    registry=registry,
    uploads=S3Uploads(s3),
    blobs=S3Blobs(s3, os.environ["SERVING_BUCKET"]),
    sandbox=sandbox,
    read_manifest=read_manifest,
    memory_mb=infer_memory_mb,
    threads=threads_for(infer_memory_mb),
    background=Background(4),
)
lambda_handler = make_handler(
    registration, logger, Metrics(), partial(note_failure, registry), sandbox.refill
)
