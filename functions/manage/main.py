"""Lambda entry point for the control plane: read environment, wire adapters.

Runs once, during INIT.
"""

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from aws_lambda_powertools.logging import Logger
from botocore.config import Config

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.idempotency import DynamoReplies
from functions.adapters.aws.lambda_function import LambdaFunction
from functions.adapters.aws.presigned import URL_S, S3PresignedPuts
from functions.adapters.aws.samples import S3Samples
from functions.adapters.aws.step_functions import StateMachine
from functions.adapters.clock import Elapsed, utc_ago, utc_now
from functions.core.access.auth import parse_auth
from functions.core.access.cors import parse_origins
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.key_store import KeyStore
from functions.core.canary.arms import read_canary_arms
from functions.core.canary.canaries import Canaries
from functions.core.catalog.catalog import Catalog
from functions.core.catalog.decisions import Decisions
from functions.core.catalog.trail import Trail
from functions.core.intake.upload_log import UploadLog
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.usage.prices import make_tariff
from functions.manage.caller import Entrance
from functions.manage.console.site import Console
from functions.manage.handler import ManageHandler
from functions.manage.keys import KeysApi
from functions.manage.parts import Parts, make_router
from functions.manage.repeats import Repeats
from functions.manage.routes.canaries import CanaryParts
from functions.manage.routes.uploads import Uploads
from functions.manage.usage import UsageApi

config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=3, read_timeout=8)
# A signed URL names the bucket's own host in its region; an emulator has none.
style = "auto" if os.environ.get("AWS_ENDPOINT_URL") else "virtual"
signing = config.merge(Config(signature_version="s3v4", s3={"addressing_style": style}))
# The reconcile function answers at once, but for the long polls of many dead letters.
invoking = Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=25)
bucket = os.environ["ARTIFACTS_BUCKET"]

logger = Logger()
dynamodb = boto3.client("dynamodb", config=config)
table = DynamoTable(dynamodb, os.environ["REGISTRY_TABLE"])


def log_audit(record: Mapping[str, Any]) -> None:
    """Write an audit record to the log."""
    logger.info("audit", audit=dict(record))


store = KeyStore(table, utc_now, audit_log=log_audit)
gate = Gate(partial(read_grant, table), float(os.environ.get("KEY_CACHE_SECONDS", "60")), Elapsed())
tariff = make_tariff(
    json.loads(Path(__file__).with_name("prices.json").read_text(encoding="utf-8")),
    os.environ.get("AWS_REGION", ""),
    os.environ["INFER_ARCHITECTURE"],
    memory_mb=int(os.environ["INFER_MEMORY_MB"]),
    tmp_mb=int(os.environ["INFER_TMP_MB"]),
    provisioned=int(os.environ["PROVISIONED_CONCURRENCY"]),
)
usage = UsageApi(table, tariff, float(os.environ["USAGE_FLUSH_SECONDS"]), time.time)
releases = Releases(table, utc_now, audit_log=log_audit)
machine = StateMachine(
    boto3.client("stepfunctions", config=config), os.environ["CANARY_STATE_MACHINE"]
)
registry = Registry(table, utc_now, audit_log=log_audit)
s3 = boto3.client("s3", config=signing)
puts = S3PresignedPuts(s3, bucket, os.environ["BUCKET_OWNER"])
reconcile = LambdaFunction(
    boto3.client("lambda", config=invoking), os.environ["RECONCILE_FUNCTION"]
)
parts = Parts(
    keys=KeysApi(store, time.time, usage.month_of_key),
    catalog=Catalog(table),
    trail=Trail(table),
    releases=releases,
    decisions=Decisions(table, utc_now, audit_log=log_audit),
    usage=usage,
    canary=CanaryParts(
        Canaries(releases, utc_now), machine.start, partial(read_canary_arms, table), utc_now
    ),
    uploads=Uploads(
        log=UploadLog(table, registry, bucket, utc_now, puts.is_stored),
        puts=puts,
        end=partial(utc_ago, -URL_S),
    ),
    reconcile=reconcile,
    samples=S3Samples(s3, os.environ["SERVING_BUCKET"]),
)
entrance = Entrance(parse_auth(os.environ.get("AUTH", "none")), gate)
repeats = Repeats(DynamoReplies(dynamodb, os.environ["REGISTRY_TABLE"]))
cors = parse_origins(os.environ.get("CORS_ORIGINS", ""))
console = Console(puts.origin)
lambda_handler = ManageHandler(parts, make_router(parts), entrance, repeats, console, cors, logger)
