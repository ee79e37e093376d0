"""Tests that input values a model cannot compute with get HTTP 400."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).with_name("hostile_values.txt")
LINES = [line for line in CORPUS.read_text().splitlines() if not line.startswith("#")]
STATUS = {name: int(status) for name, status, _ in (line.split(" ", 2) for line in LINES)}

# Serves every line's graph in one process with a memory limit, and prints a reply for each.
SERVING = """
import itertools, json, sys
from pathlib import Path
import numpy as np
import onnx.parser
from functions.adapters.memory import limit_memory
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.serving.model_cache import MB, ModelCache
from functions.core.serving.service import InferenceService
from functions.infer.handler import InferHandler
from onnx import helper
from tests.data_plane import Client, Context, DataPlane

limit_memory(1024 * MB)
directory = Path(sys.argv[2])
world, runtime = DataPlane(directory), OnnxRuntime(1)
models = ModelCache(world.blobs, runtime, memory_bytes=256 * MB, directory=directory)
service = InferenceService(world.registry, world.resolver, models, world.statistics)
client = Client(InferHandler(service, write=lambda _: None))

def register(name, text):
    graph = onnx.parser.parse_graph(f"{name} {text}")
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    path = directory / "model.onnx"
    path.write_bytes(model)
    signature = runtime.load(path).signature(path)
    world.register(name, model, signature=signature)
    return signature

def tensor(spec, data):
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(np.shape(data)),
            "data": np.ravel(np.array(data, object)).tolist()}

for line in Path(sys.argv[1]).read_text().splitlines():
    if line.startswith("#"):
        continue
    name, _, rest = line.split(" ", 2)
    text, _, values = rest.rpartition(" # ")
    signature, values = register(name, text), json.loads(values)
    body = {"inputs": [tensor(spec, values[spec.name]) for spec in signature.inputs]}
    reply = client.post(f"/v2/models/{name}/infer", body, context=Context(60_000))
    print(json.dumps([name, reply.status, reply.json]), flush=True)
"""


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SERVING, str(CORPUS), str(tmp_path_factory.mktemp("models"))],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": ".", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(rows)) == (0, len(LINES)), f"it ended after {rows[-1:]}"
    return {name: (status, document) for name, status, document in rows}


@pytest.mark.parametrize("name", STATUS)
def test_values_no_model_can_compute_with_are_the_callers_mistake(
    replies: dict[str, tuple[int, Any]], name: str
) -> None:
    status, document = replies[name]

    assert status == STATUS[name], document
    if status == 200:
        return
    text = document["error"]
    assert len(text) <= 300
    assert text.isprintable()
    if status == 413:
        assert document["code"] == "OUT_OF_MEMORY"
    else:
        assert document["code"] in ("EXECUTION_FAILED", "INVALID_REQUEST")
        assert re.search(r"the model failed on these values: [A-Z]\w+: \S", text)
        assert not re.search(r"::|\.cc|\.h:|onnxruntime|(^| )/\w|was false|Status Message", text)


def test_the_corpus_covers_at_least_100_operators_and_values() -> None:
    operators = set(re.findall(r"= (\w+)", CORPUS.read_text()))

    assert len(STATUS) == len(LINES) > 150
    assert len(operators) > 75
