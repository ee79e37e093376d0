"""Lambda entry point: reads the environment, picks real adapters. Runs once, during INIT."""

import os
import tempfile
from pathlib import Path

import boto3
from botocore.config import Config

from functions.adapters.clock import utc_now
from functions.adapters.dynamodb import DynamoTable
from functions.adapters.limits import ceiling_bytes, limit_memory, models_bytes, threads_for
from functions.adapters.onnx import OnnxRuntime
from functions.adapters.s3 import S3Blobs
from functions.core.inference import InferenceService
from functions.core.registry import Registry
from functions.core.resolution import Resolver
from functions.core.serving import ModelCache
from functions.core.statistics import Statistics
from functions.infer.handler import make_handler

UNLIMITED_MB = 3008  # taken for the size of the function where nobody says it, e.g. in a test

missing = [name for name in ("SERVING_BUCKET", "REGISTRY_TABLE") if not os.environ.get(name)]
if missing:
    raise LookupError(f"environment variables are missing: {', '.join(missing)}; template.yaml sets them")

memory_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
size_mb = int(memory_mb or UNLIMITED_MB)
if memory_mb:
    limit_memory(ceiling_bytes(size_mb))

directory = tempfile.TemporaryDirectory(prefix="models-")  # removed with this process
config = Config(retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=1, read_timeout=5)
registry = Registry(DynamoTable(boto3.client("dynamodb", config=config), os.environ["REGISTRY_TABLE"]), utc_now)
models = ModelCache(
    S3Blobs(boto3.client("s3", config=config), os.environ["SERVING_BUCKET"]),
    OnnxRuntime(threads_for(size_mb)),
    memory_bytes=models_bytes(size_mb),
    directory=Path(directory.name),
)
resolver = Resolver(registry, float(os.environ.get("ALIAS_CACHE_SECONDS", "5")))
lambda_handler = make_handler(InferenceService(registry, resolver, models, Statistics()))
