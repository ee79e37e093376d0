"""Tests that Lambda environments survive memory-hungry requests or are replaced.

The environments are processes of the local stack, with Lambda's runtime client and its limits.
"""

import asyncio
import base64
import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import onnx.parser
import psutil
import pytest
from moto.server import ThreadedMotoServer
from onnx import helper, numpy_helper

from functions.adapters.aws.dynamodb import DynamoTable
from functions.adapters.aws.s3 import S3Blobs
from functions.adapters.clock import utc_now
from functions.adapters.lambda_size import idle_bytes
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.registry.registry import Registry
from functions.core.registry.version import Blob, Source, State
from functions.core.serving.model_cache import MB
from local.aws.provision import Deployed
from local.execution.environment import Place
from local.execution.logs import FunctionLog
from local.execution.pool import FunctionPool
from local.execution.processes import Janitor
from tests.data_plane import reply_body
from tests.models import make_model, scale_model

MEMORY_MB = 512
WIDE_MB = 60
REFUSED = [(413, "OUT_OF_MEMORY"), (413, "PAYLOAD_TOO_LARGE"), (400, "INVALID_REQUEST")]

# Models whose output grows with the INT64 input n.
GREEDY = {
    "loop": """(int64 n) => (float[] y) <float[1] x = {1}> { y = Loop(n, , x) <body = b
        (int64 k, bool go, float[] v) => (bool on, float[] w)
        { on = Identity(go) w = Concat <axis = 0> (v, v) }> }""",
    "loop-of-rows": """(int64 n) => (float[] y) <float[1] x = {1}, int64[1] size = {20000}>
        { z = Expand(x, size) c = Cast <to = 9> (n) y = Loop(n, c) <body = b
        (int64 k, bool go) => (bool on, float[] row)
        { on = Identity(go) row = Identity(z) }> }""",
    "fill": """(int64 n) => (float[] y) <int64[1] one = {1}>
        { m = Reshape(n, one) y = ConstantOfShape(m) }""",
    "expand": """(int64 n) => (float[] y) <float[1] x = {1}, int64[1] one = {1}>
        { m = Reshape(n, one) y = Expand(x, m) }""",
    "tile": """(int64 n) => (float[] y) <float[1] x = {1}, int64[1] one = {1}>
        { m = Reshape(n, one) y = Tile(x, m) }""",
    "strings": """(int64 n) => (string[] y) <int64[1] one = {1}>
        { m = Reshape(n, one) s = Cast <to = 8> (m) y = Expand(s, m) }""",
}


def greedy_model(text: str) -> bytes:
    graph = onnx.parser.parse_graph(f"greedy {text}")
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def wide_model(size_mb: float) -> bytes:
    """Return a model of y = sum(x @ W), where W takes `size_mb`."""
    weights = np.ones((3, int(size_mb * MB) // 12), np.float32)
    value = helper.make_tensor_value_info
    return bytes(
        make_model(
            [
                helper.make_node("MatMul", ["x", "w"], ["all"]),
                helper.make_node("ReduceSum", ["all", "axis"], ["y"]),
            ],
            [value("x", 1, ["batch", 3])],
            [value("y", 1, ["batch", 1])],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "axis")],
        ).SerializeToString()
    )


@dataclass
class Cloud:
    """Registry and buckets in moto, for the local stack's infer function."""

    deployed: Deployed
    place: Place
    log: FunctionLog
    directory: Path

    def register(self, model: str, content: bytes) -> None:
        """Record and store a version as the register function does."""
        environment = self.deployed.environment["InferFunction"]
        path = self.directory / "up.onnx"
        path.write_bytes(content)
        table = DynamoTable(boto3.client("dynamodb"), environment["REGISTRY_TABLE"])
        registry = Registry(table, utc_now)
        blob = Blob("model.onnx", hashlib.sha256(content).hexdigest(), len(content))
        S3Blobs(boto3.client("s3"), environment["SERVING_BUCKET"]).store(blob, path)
        claimed = registry.claim(model, Source("up", f"models/{model}/x.onnx", "1"))
        signature = OnnxRuntime().load(path).signature(path)
        registry.finish(replace(claimed, state=State.READY, files=(blob,), signature=signature))

    def pool(self) -> FunctionPool:
        function = self.deployed.template.functions["InferFunction"]
        environment = {**function.environment, "AUTH": "none"}
        function = replace(function, memory_mb=MEMORY_MB, environment=environment)
        return FunctionPool(function, self.place, self.log)


@pytest.fixture
def cloud(deployed: Deployed, tmp_path: Path) -> Iterator[Cloud]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    janitor = Janitor()
    (tmp_path / "work").mkdir()
    log = FunctionLog(tmp_path, "InferFunction")
    host, port = server.get_host_and_port()
    place = Place(f"http://{host}:{port}", tmp_path / "work", janitor)
    try:
        yield Cloud(deployed, place, log, tmp_path)
    finally:
        janitor.close()
        log.close()
        server.stop()


class Caller:
    """Client that invokes local Lambda environments and reads their memory use."""

    def __init__(self, pool: FunctionPool) -> None:
        self.pool = pool

    async def infer(
        self, model: str, body: object, encoding: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        event = {
            "httpMethod": "POST",
            "path": f"/v2/models/{model}/infer",
            "headers": {"content-encoding": encoding} if encoding else {},
            "body": base64.b64encode(raw).decode(),
            "isBase64Encoded": True,
            "requestContext": {"requestId": "r"},
        }
        result = await self.pool.invoke(json.dumps(event).encode())
        assert not result.error, result.payload
        reply = json.loads(result.payload)
        return reply["statusCode"], json.loads(reply_body(reply))

    async def check_well(self, held_bytes: int) -> None:
        """Check that the environment is at its level, or gone, and that any model is served."""
        await self.pool.settle()
        for environment in self.pool._environments:
            used = psutil.Process(environment.pid).memory_info().data
            assert used <= idle_bytes(MEMORY_MB, held_bytes), f"{used // MB} MB"
        for model, y in (("scale", [2, 4, 6]), ("wide", [6 * WIDE_MB * MB / 12])):
            status, reply = await self.infer(model, numbers([1, 3], [1, 2, 3]))
            assert status == 200, reply
            assert reply["outputs"][0]["data"] == y


def scalar(n: int) -> dict[str, Any]:
    return {"inputs": [{"name": "n", "datatype": "INT64", "shape": [], "data": [n]}]}


def numbers(shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]}


def bomb(piece: bytes, count: int, shape: list[int]) -> bytes:
    """Return a gzip-compressed request that expands to `count` copies of `piece`."""
    head, tail = json.dumps(numbers(shape, ["data"])).encode().split(b'"data"]')
    return gzip.compress(head + (piece * count)[:-1] + b"]" + tail, 6)


def test_an_environment_without_memory_is_well_or_replaced(cloud: Cloud) -> None:
    models = {
        "scale": scale_model(),
        "wide": wide_model(WIDE_MB),
        "outer": wide_model(4096 * 12 / MB),
        **{name: greedy_model(text) for name, text in GREEDY.items()},
    }
    for name, content in models.items():
        cloud.register(name, content)
    held_bytes = sum(2 * len(content) + 2 * MB for content in models.values())
    sizes = {"loop": 40, "loop-of-rows": 10**6}
    greedy = [(name, scalar(sizes.get(name, 10**9)), None) for name in GREEDY]
    batch = json.dumps(numbers([40_000, 3], [1] * 120_000)).encode()
    bombs = [
        ("outer", batch, None),  # 625 MB between the two operators
        ("scale", bomb(b"[],", 20_000_000, [20_000_000, 0]), "gzip"),
        ("scale", bomb(b"[0.5],", 10_000_000, [10_000_000, 1]), "gzip"),
        ("scale", bomb(b"[1,2,3],", 8_000_000, [8_000_000, 3]), "gzip"),
        ("scale", bomb(b"0.5,", 15_000_000, [5_000_000, 3]), "gzip"),
        ("scale", bomb(b"NaN,", 15_000_000, [5_000_000, 3]), "gzip"),
        ("scale", bomb(b'"a long string",', 4_000_000, [1, 3]), "gzip"),
    ]

    async def call_all() -> None:
        pool = cloud.pool()
        caller = Caller(pool)
        try:
            await caller.check_well(held_bytes)
            for model, body, encoding in greedy + bombs:
                status, reply = await caller.infer(model, body, encoding)
                assert (status, reply["code"]) in REFUSED, (model, reply)
                await caller.check_well(held_bytes)
        finally:
            await pool.stop()

    asyncio.run(call_all())
    assert "Status: error" not in cloud.log.path.read_text()


ENDING = """
import http.server, threading, sys, json
posted = []

class RuntimeApi(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        print("posted", self.path, json.loads(body), flush=True)
        self.send_response(202)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RuntimeApi)
threading.Thread(target=server.serve_forever, daemon=True).start()
import os
from types import SimpleNamespace as Context
os.environ["AWS_LAMBDA_RUNTIME_API"] = f"127.0.0.1:{server.server_port}"
from functions.infer import main

main.prefetching.wait()
main.end_if_starved({"statusCode": 413}, Context(aws_request_id="first"))
print("goes on", flush=True)
leak = bytearray(200 * 2**20)
main.end_if_starved({"statusCode": 413}, Context(aws_request_id="second"))
print("never here", flush=True)
"""


def test_an_environment_without_its_memory_answers_and_ends() -> None:
    variables = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", "REGISTRY_TABLE": "t"}
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ".", "SERVING_BUCKET": "b", **variables},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "this environment ends, short of memory\n")
    assert done.stdout.splitlines() == [
        "goes on",
        "posted /2018-06-01/runtime/invocation/second/response {'statusCode': 413}",
    ]
