"""Lambda entry point for reconciliation: read the environment, wire the adapters.

Runs once, during INIT.
"""

import os
import time

import boto3
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from botocore.config import Config

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import expect_owner
from functions.adapters.aws.s3_listing import S3BlobListing, S3UploadListing
from functions.adapters.aws.sqs import SqsDeadLetters, SqsQueue
from functions.adapters.clock import utc_ago, utc_now
from functions.core.registry.reconciler import Limits, Reconciler
from functions.core.registry.registry import Registry
from functions.core.usage.fold import fold
from functions.reconcile.handler import ReconcileHandler

config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=3, read_timeout=20)
s3 = expect_owner(boto3.client("s3", config=config), os.environ["BUCKET_OWNER"])
sqs = boto3.client("sqs", config=config)
logger = Logger()
table = DynamoTable(boto3.client("dynamodb", config=config), os.environ["REGISTRY_TABLE"])
registry = Registry(
    table,
    utc_now,
    audit_log=lambda record: logger.info("audit", audit=dict(record)),
)
reconciler = Reconciler(
    registry=registry,
    uploads=S3UploadListing(s3, os.environ["ARTIFACTS_BUCKET"]),
    blobs=S3BlobListing(s3, os.environ["SERVING_BUCKET"]),
    send=SqsQueue(sqs, os.environ["REGISTRATION_QUEUE_URL"]).send,
    ago=utc_ago,
    limits=Limits(
        upload_grace_s=float(os.environ["UPLOAD_GRACE_SECONDS"]),
        pending_grace_s=float(os.environ["PENDING_GRACE_SECONDS"]),
        blob_grace_s=float(os.environ["BLOB_GRACE_SECONDS"]),
    ),
)
dead_letters = SqsDeadLetters(sqs, os.environ["DEAD_LETTERS_URL"], os.environ["DEAD_LETTERS_ARN"])
lambda_handler = ReconcileHandler(
    reconciler,
    dead_letters,
    logger,
    Metrics(),
    lambda time_left: fold(table, time.time(), time_left),
)
