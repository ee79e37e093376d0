"""Infer function as Lambda starts it: wiring, imports, environment variables; moto for AWS."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs
from functions.adapters.clock import utc_now
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.access.grants import Scope
from functions.core.access.key_store import KeyStore
from functions.core.registration.digests import hash_files
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Source, State
from tests.data_plane import Client, rows
from tests.models import dense_model, scale_model

WIDTH = 600  # of a model with 1.4 MB of weights: two ranges
# Third-party packages that a cold start imports.
IMPORTS = {
    "functions",
    "orjson",
    "pybase64",
}


def run_alone(
    script: str, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a script in a new Python process with these environment variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**inherited, "PYTHONPATH": ".", **environment},
        check=False,
    )


@pytest.fixture
def start(
    function_environment: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Return a function that imports functions.infer.main anew, with moto's server as its AWS.

    Callers need no key, unless a test sets AUTH.
    """
    monkeypatch.setenv("AUTH", "none")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()

    def begin() -> Any:
        sys.modules.pop("functions.infer.main", None)
        with monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            main = importlib.import_module("functions.infer.main")
        started.append(main)
        return main

    started: list[Any] = []
    try:
        yield begin
    finally:
        for main in started:
            main.environment.dynamodb.close()
            main.environment.blobs.close()
        server.stop()
        sys.modules.pop("functions.infer.main", None)


def register(environment: dict[str, str], model: str, content: bytes, directory: Path) -> Blob:
    """Record and store a version as the register function does; return its file."""
    path = directory / "model.onnx"
    path.write_bytes(content)
    registry = Registry(
        DynamoTable(boto3.client("dynamodb"), environment["REGISTRY_TABLE"]), utc_now
    )
    [blob] = hash_files([path])
    S3Blobs(boto3.client("s3"), environment["SERVING_BUCKET"]).store(blob, path)
    claimed = registry.claim(model, Source("up", f"models/{model}/x.onnx", blob.sha256))
    signature = OnnxRuntime().load(path).signature(path)
    registry.finish(replace(claimed, state=State.READY, files=(blob,), signature=signature))
    return blob


@pytest.mark.parametrize("memory_mb", ["512", "3008"])  # imports end within INIT, or after it
def test_callers_need_a_key(
    start: Callable[[], Any],
    memory_mb: str,
    function_environment: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("functions.adapters.aws_http.environment.limit_memory", lambda _: None)
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_mb)
    monkeypatch.setenv("AUTH", "keys")
    table = DynamoTable(
        boto3.client("dynamodb"), function_environment["InferFunction"]["REGISTRY_TABLE"]
    )
    register(function_environment["InferFunction"], "demo", scale_model(2.0), tmp_path)
    _, key = KeyStore(table, utc_now).create(
        "ci", scopes=[Scope.INFER], models=["demo"], actor="anna"
    )
    client = Client(start().lambda_handler)
    infer = partial(client.post, "/v2/models/demo/infer", rows([1, 2, 3]))

    assert infer(headers={"authorization": f"Bearer {key}"}).status == 200
    assert infer().status == 401
    assert infer(headers={"x-api-key": key[:-1]}).status == 401


@pytest.mark.parametrize("memory_mb", ["512", "3008"])
def test_a_registered_model_answers(
    start: Callable[[], Any],
    memory_mb: str,
    function_environment: dict[str, dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "functions.adapters.aws_http.environment.limit_memory", lambda _: None
    )  # not in this process
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_mb)
    main = start()
    register(function_environment["InferFunction"], "demo", scale_model(2.0), tmp_path)
    register(function_environment["InferFunction"], "demo", scale_model(3.0), tmp_path)
    client = Client(main.lambda_handler)

    first = client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    second = client.post("/v2/models/demo/versions/latest/infer", rows([1, 2, 3]))

    assert first.json["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    assert second.json["outputs"][0]["data"] == [3.0, 6.0, 9.0]
    assert client.get("/v2/health/ready").status == 200
    assert client.get("/v2/models").json == {"models": ["demo"]}
    assert client.post("/v2/repository/models/demo/unload").status == 200
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 503
    assert client.post("/v2/repository/models/demo/load").status == 200
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == [
        200, 200, 200, 200, 200, 503, 200,
    ]  # fmt: skip
    assert list(main.environment.scratch.path.iterdir()) == []


def test_each_range_of_a_large_model_is_verified(
    start: Callable[[], Any],
    function_environment: dict[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    environment, content = function_environment["InferFunction"], dense_model(WIDTH, 1.0)
    blob = register(environment, "wide", content, tmp_path)
    assert blob.range_bytes < blob.size_bytes
    client = Client(start().lambda_handler)
    row = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [1.0] * WIDTH}

    stored = {"Bucket": environment["SERVING_BUCKET"], "Key": blob.key}
    damaged = content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]
    boto3.client("s3").put_object(**stored, Body=damaged)
    refusal = client.post("/v2/models/wide/infer", {"inputs": [row]})
    assert (refusal.status, refusal.json["code"]) == (503, "BLOB_CORRUPTED")

    boto3.client("s3").put_object(**stored, Body=content)
    assert client.post("/v2/repository/models/wide/load").status == 200
    reply = client.post("/v2/models/wide/infer", {"inputs": [row]})
    assert reply.json["outputs"][0]["data"] == [WIDTH] * WIDTH


def test_models_are_preloaded_and_failures_logged(
    start: Callable[[], Any],
    function_environment: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(function_environment["InferFunction"], "demo", scale_model(2.0), tmp_path)
    register(function_environment["InferFunction"], "other", scale_model(3.0), tmp_path)
    monkeypatch.setenv("PRELOAD_MODELS", "demo,nobody, other:latest")
    # INIT may take 60 s, whatever the age of this process.
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "provisioned-concurrency")
    main = start()

    versions = [main.resolver.resolve(model, None).version for model in ("demo", "other")]
    assert [main.models.holds(version) for version in versions] == [True, True]
    reply = Client(main.lambda_handler).post("/v2/models/other/infer", rows([1, 2, 3]))
    assert reply.json["outputs"][0]["data"] == [3.0, 6.0, 9.0]
    [line] = [record.getMessage() for record in caplog.records if "preload" in record.getMessage()]
    assert "nobody" in line


@pytest.mark.parametrize(("kind", "hooks"), [("snap-start", "1 1"), ("on-demand", "0 0")])
def test_snapshot_hooks_are_registered_only_for_snap_start(kind: str, hooks: str) -> None:
    script = """
import functions.infer.main
import snapshot_restore_py as hooks
print(len(hooks.get_before_snapshot()), len(hooks.get_after_restore()))
for function, args, kwargs in (*hooks.get_before_snapshot(), *hooks.get_after_restore()):
    function(*args, **kwargs)
"""
    done = run_alone(
        script, SERVING_BUCKET="b", REGISTRY_TABLE="t", AWS_LAMBDA_INITIALIZATION_TYPE=kind
    )

    assert (done.stderr, done.stdout.strip()) == ("", hooks)


# Modules of the standard library that take 2 ms and more, with those that they import.
SLOW = ("asyncio", "email", "http.client", "inspect", "logging", "platform", "ssl", "tempfile")
SCRIPT = """
import json, os, sys
before = set(sys.modules)
import functions.infer.main
packages = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(json.dumps(sorted(name for name in packages if not name.startswith("_"))))
print(json.dumps([name for name in sys.argv[1:] if name in set(sys.modules) - before]))
import resource
print(resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**20)
"""


def test_a_cold_start_imports_few_packages_and_limits_memory() -> None:
    done = run_alone(
        SCRIPT,
        *SLOW,
        SERVING_BUCKET="b",
        REGISTRY_TABLE="t",
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE="512",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",  # without TLS
    )

    assert done.stderr == ""
    imported, slow, ceiling_mb = map(json.loads, done.stdout.splitlines())
    assert set(imported) == IMPORTS
    assert slow == []
    assert ceiling_mb == 384


def test_garbage_is_collected_once_the_handler_is_made() -> None:
    script = """
import gc
import functions.infer.main as main
main.prefetching.wait()
print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""
    done = run_alone(script, SERVING_BUCKET="b", REGISTRY_TABLE="t")

    assert (done.stderr, done.stdout) == ("", "True True\n")


def test_nothing_heavy_is_imported_before_the_first_event() -> None:
    tree = ast.parse(Path("functions/infer/main.py").read_text())
    imports = "\n".join(
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    script = imports + "\nServingEnvironment(os.environ)\nimport sys\nprint(*sys.modules)"

    done = run_alone(
        script, SERVING_BUCKET="b", REGISTRY_TABLE="t", AWS_ENDPOINT_URL="http://127.0.0.1:9"
    )

    assert not {
        "functions.core.protocol.infer_request",
        "orjson",
        "boto3",
        "ssl",
        "http.client",
        "email",
    } & set(done.stdout.split())


def test_the_handler_imports_no_aws_sdk_and_no_runtime() -> None:
    done = run_alone("import sys, functions.infer.handler; print(*sys.modules)")

    assert not {
        "boto3",
        "botocore",
        "numpy",
        "onnxruntime",
        "aws_lambda_powertools",
        "functions.adapters.onnx.sessions",
    } & set(done.stdout.split())


@pytest.mark.parametrize("missing", ["SERVING_BUCKET", "REGISTRY_TABLE"])
def test_a_missing_variable_is_named(missing: str) -> None:
    variables = {"SERVING_BUCKET": "b", "REGISTRY_TABLE": "t", missing: ""}

    done = run_alone("import functions.infer.main", **variables)

    assert done.returncode != 0
    assert f"environment variables are missing: {missing}" in done.stderr.splitlines()[-1]


def test_the_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """It starts no thread and writes no file, although only the adapter disables telemetry."""
    (tmp_path / "x.onnx").write_bytes(scale_model())
    script = f"""
import os
from pathlib import Path
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.protocol.tensors import Tensor
session = OnnxRuntime().load(Path({str(tmp_path / "x.onnx")!r}))
session.run({{"x": Tensor("FP32", (1, 3), bytes(12))}}, ["y"], 30)
tasks = Path("/proc/self/task").iterdir()
print(*sorted((task / "comm").read_text().strip() for task in tasks))
"""
    (tmp_path / "home").mkdir()

    done = run_alone(script, HOME=str(tmp_path / "home"), OPENBLAS_NUM_THREADS="1")

    assert done.stderr == ""
    assert len(done.stdout.split()) == 2  # the main thread and the watchdog
    assert list((tmp_path / "home").rglob("*")) == []
