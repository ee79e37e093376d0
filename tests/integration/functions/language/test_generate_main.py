"""Generate function as Lambda starts it: preloading, and what its first request finds."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs
from functions.adapters.clock import utc_now
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.registration.digests import hash_files
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Source, State, Version
from tests.language_models import (
    CONTEXT,
    EOS,
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    decoder_files,
)

DECODER = LanguageSpec(
    kind=Kind.DECODER,
    vocabulary=300,
    context=CONTEXT,
    eos=(EOS,),
    layers=LAYERS,
    kv_heads=KV_HEADS,
    head_size=HEAD_SIZE,
)
MODULE = "functions.generate.main"


@pytest.fixture
def start(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Any]]:
    """Return a function that imports the entry point anew, with moto's server as its AWS."""
    monkeypatch.setenv("AUTH", "none")
    # INIT may take 60 s, whatever the age of this process.
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "provisioned-concurrency")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    started: list[Any] = []

    def begin() -> Any:
        sys.modules.pop(MODULE, None)
        with monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            started.append(importlib.import_module(MODULE))
        return started[-1]

    try:
        yield begin
    finally:
        for main in started:
            main.environment.dynamodb.close()
            main.environment.blobs.close()
        server.stop()
        sys.modules.pop(MODULE, None)


@pytest.fixture
def register(
    function_environment: dict[str, dict[str, str]], tmp_path: Path
) -> Callable[..., Version]:
    """Return a function that records and stores a version, as the register function does."""
    variables = function_environment["GenerateFunction"]
    registry = Registry(DynamoTable(boto3.client("dynamodb"), variables["REGISTRY_TABLE"]), utc_now)
    store = S3Blobs(boto3.client("s3"), variables["SERVING_BUCKET"])

    def record(model: str, spec: LanguageSpec | None = DECODER, **changes: Any) -> Version:
        blobs: list[Blob] = []
        for name, data in decoder_files(position_ids=bool(changes)).items():  # other bytes
            path = tmp_path / name
            path.write_bytes(data)
            [blob] = hash_files([path])
            store.store(blob, path)
            blobs.append(blob)
        graph = next(blob for blob in blobs if blob.name == "model.onnx")
        claimed = registry.claim(model, Source("up", f"models/{model}/x.tar.gz", graph.sha256))
        version = replace(claimed, state=State.READY, files=(graph,), **changes)
        if spec is not None:
            assets = tuple(blob for blob in blobs if blob is not graph)
            version = replace(
                version, language=json.loads(json.dumps(spec.to_record())), assets=assets
            )
        return registry.finish(version)

    return record


def complete(main: Any, model: str) -> Any:
    body = {"model": model, "prompt": "A cat", "max_tokens": 2, "temperature": 0}
    event = {
        "httpMethod": "POST",
        "path": "/v1/completions",
        "body": json.dumps(body),
        "requestContext": {"requestId": "r"},
    }
    return main.lambda_handler(event, None)


def test_the_first_request_finds_a_preloaded_model(
    start: Callable[[], Any],
    register: Callable[..., Version],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    version = register("tiny")
    register("other")
    monkeypatch.setenv("PRELOAD_MODELS", "tiny, other:latest")
    main = start()

    assert main.models.holds(version)
    assert main.init_s == 0  # environments that are kept started bill no INIT
    reply = complete(main, "tiny")
    assert (reply.status, json.loads(b"".join(reply.chunks))["usage"]["completion_tokens"]) == (
        200,
        2,
    )
    assert "MODEL_LOADING" not in caplog.text
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [line] = [line for line in lines if line["message"] == "request"]
    assert line["stages_ms"]["load"] < line["latency_ms"]


def test_the_environment_starts_without_models_that_cannot_be_preloaded(
    start: Callable[[], Any],
    register: Callable[..., Version],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register("plain", None)
    register("huge", measured={"resident_mb": 100_000.0})
    good = register("tiny")
    monkeypatch.setenv("PRELOAD_MODELS", "nobody,plain,huge,NOT A NAME,tiny:nowhere,tiny")
    main = start()

    assert main.models.holds(good)
    lines = {
        line.split(": ")[1]: line
        for record in caplog.records
        if (line := record.getMessage()).startswith("not preloaded")
    }
    assert len(lines) == 5
    assert all("\n" not in line for line in lines.values())
    assert "no language model" in lines["plain"]
    assert "MB are kept for models; give this function more" in lines["huge"]
    assert complete(main, "tiny").status == 200
    assert complete(main, "plain").status == 400
