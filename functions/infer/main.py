"""Lambda entry point for inference: read the environment, wire the adapters.

Only what the first AWS calls need is imported here; the rest is imported by `make()`. See
prefetch.py.
"""

import gc

# Until `make` ends: collections would take 5 ms of the imports, which leave no garbage.
gc.disable()

import os

from functions.adapters.lambda_size import (
    MB_PER_CPU,
    ceiling_bytes,
    idle_bytes,
    init_seconds,
    models_bytes,
    threads_for,
)
from functions.adapters.memory import is_restored, limit_memory

DEFAULT_MEMORY_MB = 3008  # MB assumed without Lambda's variable, e.g. in a test

missing = [name for name in ("SERVING_BUCKET", "REGISTRY_TABLE") if not os.environ.get(name)]
if missing:
    raise LookupError(
        f"environment variables are missing: {', '.join(missing)}; template.yaml sets them"
    )

memory_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
size_mb = int(memory_mb or DEFAULT_MEMORY_MB)
if memory_mb:
    limit_memory(ceiling_bytes(size_mb))

from functions.adapters.aws_http.blobs import BlobReader
from functions.adapters.aws_http.client import Client
from functions.adapters.aws_http.settings import Settings
from functions.core.access.auth import Auth, parse_auth

settings = Settings.from_environment(os.environ)
dynamodb = Client(settings, "dynamodb")
blobs = BlobReader.from_settings(
    settings, os.environ["SERVING_BUCKET"], os.environ.get("BUCKET_OWNER")
)
initialization = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
auth = parse_auth(os.environ.get("AUTH", "none"))
# Connections are made while the rest is imported. They do not survive a snapshot.
if initialization != "snap-start":
    dynamodb.preconnect()
    blobs.preconnect()

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.clock import Elapsed, process_age_s, utc_now
from functions.adapters.dynamodb_table import ItemTable
from functions.adapters.lazy_modules import defer_imports_of_orjson
from functions.adapters.onnx.lazy import LazyRuntime
from functions.adapters.scratch import Scratch
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.serving.model_cache import ModelCache
from functions.infer.prefetch import Handler, PrefetchingHandler

if TYPE_CHECKING:
    from functions.infer.exchange import Exchange

scratch = Scratch(Path(os.environ.get("TMPDIR") or "/tmp"), "models-")  # noqa: S108 (made private)
runtime = LazyRuntime(threads_for(size_mb))
table = ItemTable(DynamoCalls(dynamodb), os.environ["REGISTRY_TABLE"])
registry = Registry(table, utc_now)
models = ModelCache(blobs, runtime, memory_bytes=models_bytes(size_mb), directory=scratch.path)
resolver = Resolver(registry, float(os.environ.get("ALIAS_CACHE_SECONDS", "5")), Elapsed())
gate: Gate | None = None
if auth is Auth.KEYS:
    key_seconds = float(os.environ.get("KEY_CACHE_SECONDS", "60"))
    gate = Gate(partial(read_grant, table), key_seconds, Elapsed())


def has_its_memory() -> bool:
    """Return True if only the loaded models and the process take memory."""
    return is_restored(idle_bytes(size_mb, models.held_bytes()[0]))


def check_memory() -> None:
    """End the Lambda environment unless its memory was freed.

    Raises:
        EndEnvironment: it was not.
    """
    from functions.runtime.context import EndEnvironment  # there under our runtime client

    if not has_its_memory():
        raise EndEnvironment("this environment ends, short of memory")


def end_if_starved(reply: dict[str, Any] | bytes, context: Any) -> None:
    """End the Lambda environment after its reply if memory was not freed.

    Our runtime client posts the reply first. AWS's cannot act after it: then the reply is posted
    here.
    """
    if hasattr(context, "after"):
        context.after(check_memory)
        return
    runtime_api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if not runtime_api or has_its_memory():
        return
    with suppress(OSError, MemoryError):  # this environment goes on, and tries again another time
        import logging  # neither module at the top: a cold start does not need them

        from functions.adapters.last_answer import answer_and_exit

        logging.getLogger(__name__).warning("this environment ends, short of memory")
        answer_and_exit(runtime_api, reply, context.aws_request_id)


def make() -> Handler:
    """Import the remaining modules and return the inference handler."""
    defer_imports_of_orjson()
    runtime.import_runtime()
    from functions.core.serving.cors import parse_origins
    from functions.core.serving.request_log import warning_line
    from functions.core.serving.service import InferenceService
    from functions.core.serving.statistics import Statistics
    from functions.core.usage.meter import Meter
    from functions.infer.handler import InferHandler

    meter = Meter(
        table,
        float(os.environ.get("USAGE_FLUSH_SECONDS", "10")),
        int(os.environ.get("USAGE_RETENTION_DAYS", "400")),
        clock=Elapsed(),
        start_s=lambda: init_s,
        warn=lambda text: sys.stdout.write(warning_line(text) + "\n"),
    )

    def run_copy(exchange: "Exchange", context: Any) -> None:
        """Run a request's copy on its shadow version, after the reply."""
        from functions.infer import shadow  # few aliases have one

        if not shadow.run_copy(exchange, context, models, meter.count_shadow):
            context.after(check_memory)

    service = InferenceService(registry, resolver, models, Statistics(table, meter))
    sample_rate = float(os.environ.get("LOG_SAMPLE_RATE", "1"))
    origins = os.environ.get("CORS_ORIGINS", "")
    handler = InferHandler(
        service,
        meter=meter,
        gate=gate,
        cors=parse_origins(origins) if origins else None,
        sample_rate=sample_rate,
        model_metrics=int(os.environ.get("MODEL_METRICS", "0")),
        after_shortage=end_if_starved,
        run_copy=run_copy,
    )
    gc.freeze()  # imports stay, so no collection has to look at them
    gc.enable()
    return handler


prefetching = PrefetchingHandler(make, resolver, models, gate, table.read_ahead)
if initialization == "snap-start":
    from functions.infer.snapshot import register_hooks

    caches = (resolver, gate) if gate else (resolver,)
    register_hooks((dynamodb.close, blobs.close), [cache.invalidate for cache in caches])
names = os.environ.get("PRELOAD_MODELS", "")
if names:
    from functions.core.serving.preload import parse_names, preload

    preload(parse_names(names), resolver, models, time.monotonic() + init_seconds(initialization))
# Lambda gives INIT full CPU, so small functions and pre-provisioned environments finish importing
# before INIT ends.
imports_in_init = initialization != "on-demand" or size_mb < MB_PER_CPU or bool(names)
if imports_in_init:
    prefetching.wait()
lambda_handler = prefetching
# Lambda bills INIT by the millisecond, unless environments are started ahead.
init_s = process_age_s() if initialization == "on-demand" else 0.0
