"""Lambda entry point for language models: read the environment, wire the adapters.

Everything is imported while Lambda starts the environment: most of a first request's time goes to
the files of its model (docs/decisions/0053-the-generate-function.md).
"""

import gc

# Until the end: collections would take 5 ms of the imports, which leave no garbage.
gc.disable()

import os

from functions.adapters.lambda_size import (
    ceiling_bytes,
    idle_bytes,
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
auth = parse_auth(os.environ.get("AUTH", "none"))
# Connections are made while the rest is imported.
dynamodb.preconnect()
blobs.preconnect()

import sys
from functools import partial
from pathlib import Path

from functions.adapters.aws_http.dynamodb import DynamoCalls
from functions.adapters.clock import Elapsed, process_age_s, utc_now
from functions.adapters.dynamodb_table import ItemTable
from functions.adapters.language.grammar import OVERTIME
from functions.adapters.language.model import LanguageModel
from functions.adapters.scratch import Scratch
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.openai.service import LanguageService
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.serving.cors import parse_origins
from functions.core.serving.request_log import warning_line
from functions.core.usage.meter import Meter
from functions.generate.handler import GenerateHandler
from functions.generate.text_models import TextModels

scratch = Scratch(Path(os.environ.get("TMPDIR") or "/tmp"), "models-")  # noqa: S108 (made private)
table = ItemTable(DynamoCalls(dynamodb), os.environ["REGISTRY_TABLE"])
registry = Registry(table, utc_now)
models = TextModels(
    blobs,
    LanguageModel.load,
    threads=threads_for(size_mb),
    memory_bytes=models_bytes(size_mb),
    directory=scratch.path,
)
resolver = Resolver(registry, float(os.environ.get("ALIAS_CACHE_SECONDS", "5")), Elapsed())
gate: Gate | None = None
if auth is Auth.KEYS:
    key_seconds = float(os.environ.get("KEY_CACHE_SECONDS", "60"))
    gate = Gate(partial(read_grant, table), key_seconds, Elapsed())


def end_if_starved(code: str) -> None:
    """End the environment unless its memory and processors are free.

    Raises:
        EndEnvironment: they are not.
    """
    from functions.runtime.context import EndEnvironment

    if code == OVERTIME:
        raise EndEnvironment("this environment ends: the compilation of a JSON schema goes on")
    if not is_restored(idle_bytes(size_mb, models.held_bytes()[0])):
        raise EndEnvironment("this environment ends, short of memory")


meter = Meter(
    table,
    float(os.environ.get("USAGE_FLUSH_SECONDS", "10")),
    int(os.environ.get("USAGE_RETENTION_DAYS", "400")),
    clock=Elapsed(),
    start_s=lambda: init_s,
    warn=lambda text: sys.stdout.write(warning_line(text) + "\n"),
)
origins = os.environ.get("CORS_ORIGINS", "")
lambda_handler = GenerateHandler(
    LanguageService(registry, resolver, models),
    meter=meter,
    gate=gate,
    cors=parse_origins(origins) if origins else None,
    after_shortage=end_if_starved,
)
gc.freeze()  # imports stay, so no collection has to look at them
gc.enable()
init_s: float = process_age_s()  # Lambda bills INIT by the millisecond
