"""Lambda entry point for the judge: read environment, wire adapters.

Runs once, during INIT.
"""

import os
from functools import partial

import boto3
from aws_lambda_powertools.logging import Logger
from botocore.config import Config

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.clock import utc_now
from functions.core.canary.arms import read_canary_arms
from functions.core.canary.canaries import Canaries
from functions.core.registry.releases import Releases
from functions.judge.handler import JudgeHandler

config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=3, read_timeout=8)
logger = Logger()
table = DynamoTable(boto3.client("dynamodb", config=config), os.environ["REGISTRY_TABLE"])
releases = Releases(
    table, utc_now, audit_log=lambda record: logger.info("audit", audit=dict(record))
)
canaries = Canaries(releases, utc_now)
lambda_handler = JudgeHandler(canaries, partial(read_canary_arms, table), utc_now, logger)
