"""Tests that models with input checks answer 400 to crashing requests."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.hostile.emptiness import Deadly, all_deadly
from tests.platform import Platform

EMPTY_BATCH = {"MultiHeadAttention", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
DATATYPES = {"f": "FP32", "i": "INT64", "b": "BOOL"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    sandbox = ProcessSandbox(spare=True)
    yield sandbox
    sandbox.close()


def request(feeds: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": name,
                "datatype": "INT32" if array.dtype == np.int32 else DATATYPES[array.dtype.kind],
                "shape": list(array.shape),
                "data": array.reshape(-1).tolist(),
            }
            for name, array in feeds.items()
        ]
    }


@pytest.mark.parametrize("deadly", [*all_deadly()], ids=str)
def test_a_request_that_ended_the_process_is_400(
    tmp_path: Path, sandbox: ProcessSandbox, deadly: Deadly
) -> None:
    platform = Platform(tmp_path, sandbox)
    version = platform.upload(deadly.content)
    assert version.state is State.READY, version.reason
    infer = "/v2/models/demo/infer"

    refused = platform.client.post(infer, request(deadly.hostile))
    assert refused.status == 400, refused.json
    assert f"{deadly.operator}: " in refused.json["error"]
    assert " must not " in refused.json["error"]

    [output] = platform.client.post(infer, request(deadly.good)).json["outputs"]
    session = ort.InferenceSession(deadly.content, providers=["CPUExecutionProvider"])
    [expected] = session.run(["y"], dict(deadly.good))
    assert output["shape"] == list(expected.shape)
    np.testing.assert_allclose(output["data"], expected.reshape(-1), rtol=1e-5)


def empty_batch(deadly: Deadly) -> dict[str, Any]:
    """Return a valid request's inputs with the batch dimension reduced to zero."""
    rows = next(iter(deadly.good.values())).shape[0]
    return {
        name: array[:0] if array.ndim > 1 and array.shape[0] == rows else array
        for name, array in deadly.good.items()
    }


@pytest.mark.parametrize(
    "deadly",
    [deadly for deadly in all_deadly() if deadly.name in EMPTY_BATCH],
    ids=str,
)
def test_empty_tensors_that_the_runtime_computes_with_are_answered(
    tmp_path: Path, sandbox: ProcessSandbox, deadly: Deadly
) -> None:
    platform = Platform(tmp_path, sandbox)
    assert platform.upload(deadly.content).state is State.READY
    feeds = empty_batch(deadly)

    reply = platform.client.post("/v2/models/demo/infer", request(feeds))
    session = ort.InferenceSession(deadly.content, providers=["CPUExecutionProvider"])
    [expected] = session.run(["y"], feeds)

    assert reply.status == 200, reply.json
    assert reply.json["outputs"][0]["shape"] == list(expected.shape)
    assert 0 in expected.shape
