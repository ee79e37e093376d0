"""Lambda entry point: reads the environment, picks real adapters. Runs once, during INIT."""

import os

import boto3
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics
from botocore.config import Config

from functions.adapters.clock import utc_now
from functions.adapters.dynamodb import DynamoTable
from functions.adapters.onnx import inspect_signature
from functions.adapters.s3 import S3Blobs, S3Uploads
from functions.core.registration import Registration
from functions.core.registry import Registry
from functions.register.handler import make_handler
from functions.register.manifest import read_manifest

config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=3, read_timeout=20)
s3 = boto3.client("s3", config=config)
registration = Registration(
    registry=Registry(DynamoTable(boto3.client("dynamodb", config=config), os.environ["REGISTRY_TABLE"]), utc_now),
    uploads=S3Uploads(s3),
    blobs=S3Blobs(s3, os.environ["SERVING_BUCKET"]),
    inspect=inspect_signature,
    read_manifest=read_manifest,
)
lambda_handler = make_handler(registration, Logger(), Metrics())
