"""Lambda entry point: reads the environment, picks real adapters. Runs once, during INIT."""

import os
import time

import boto3
from botocore.config import Config

from functions.adapters.clock import Elapsed, utc_now
from functions.adapters.dynamodb import DynamoTable
from functions.adapters.limits import ceiling_bytes, init_seconds, limit_memory, models_bytes, threads_for
from functions.adapters.onnx import OnnxRuntime
from functions.adapters.s3 import S3Blobs
from functions.adapters.scratch import Scratch
from functions.core.inference import InferenceService
from functions.core.preload import parse_names, preload
from functions.core.registry import Registry
from functions.core.resolution import Resolver
from functions.core.serving import ModelCache
from functions.core.statistics import Statistics
from functions.infer.handler import make_handler
from functions.infer.snapshot import prepare

UNLIMITED_MB = 3008  # taken for the size of the function where nobody says it, e.g. in a test

missing = [name for name in ("SERVING_BUCKET", "REGISTRY_TABLE") if not os.environ.get(name)]
if missing:
    raise LookupError(f"environment variables are missing: {', '.join(missing)}; template.yaml sets them")

memory_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
size_mb = int(memory_mb or UNLIMITED_MB)
if memory_mb:
    limit_memory(ceiling_bytes(size_mb))

scratch = Scratch("models-")
config = Config(retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=1, read_timeout=5)
dynamodb, s3 = (boto3.client(name, config=config) for name in ("dynamodb", "s3"))
registry = Registry(DynamoTable(dynamodb, os.environ["REGISTRY_TABLE"]), utc_now)
models = ModelCache(
    S3Blobs(s3, os.environ["SERVING_BUCKET"]),
    OnnxRuntime(threads_for(size_mb)),
    memory_bytes=models_bytes(size_mb),
    directory=scratch.path,
)
resolver = Resolver(registry, float(os.environ.get("ALIAS_CACHE_SECONDS", "5")), Elapsed())
initialization = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
if initialization == "snap-start":
    prepare(resolver, (dynamodb.close, s3.close))
preload(
    parse_names(os.environ.get("PRELOAD_MODELS", "")), resolver, models, time.monotonic() + init_seconds(initialization)
)
lambda_handler = make_handler(
    InferenceService(registry, resolver, models, Statistics()),
    sample_rate=float(os.environ.get("LOG_SAMPLE_RATE", "1")),
)
