"""Operators that ONNX Runtime cannot interrupt, under our runtime client and Lambda's limits."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.integration.functions.serving.test_starvation import (
    Caller,
    Cloud,
    cloud,  # noqa: F401 (a fixture)
    numbers,
    scalar,
)
from tests.models import make_model, scale_model

TIMEOUT_S = 6
MEMORY_MB = 3008

CONSTANTS = {
    "one": np.array([1]),
    "four": np.array([4]),
    "box": np.array([[[0, 0, 1, 1]]], np.float32),
    "score": np.array([[[0.9]]], np.float32),
    "number": np.array([[0.5]], np.float32),
    "pixel": np.array([[[[1]]]], np.float32),
    "never": np.array([1], np.float32),  # no overlap is larger: every box is kept
    "none": np.array([0], np.float32),
    "image_shape": np.array([1, 1, 8, 8]),
    "flat": np.array([1, 1]),
}
node = helper.make_node
# Graphs from the INT64 scalar n to a value, and a harmless and a stuck n.
STUCK: dict[str, tuple[list[onnx.NodeProto], int, int]] = {
    "suppression": (  # compares n boxes with each other: n²/2 comparisons
        [
            node("Reshape", ["n", "one"], ["count"]),
            node("Concat", ["one", "count", "four"], ["boxes_shape"], axis=0),
            node("Concat", ["one", "one", "count"], ["scores_shape"], axis=0),
            node("Expand", ["box", "boxes_shape"], ["boxes"]),
            node("Expand", ["score", "scores_shape"], ["scores"]),
            node("NonMaxSuppression", ["boxes", "scores", "count", "never", "none"], ["value"]),
        ],
        10,
        300_000,
    ),
    "convolution": (  # never ends if its kernel, of n x n, is empty
        [
            node("Reshape", ["n", "one"], ["count"]),
            node("Concat", ["flat", "count", "count"], ["kernel_shape"], axis=0),
            node("Expand", ["pixel", "kernel_shape"], ["kernel"]),
            node("Expand", ["pixel", "image_shape"], ["image"]),
            node("Conv", ["image", "kernel"], ["value"]),
        ],
        3,
        0,
    ),
    "multiplication": (  # of two matrices of n x n: 2 n³ operations
        [
            node("Reshape", ["n", "one"], ["count"]),
            node("Concat", ["count", "count"], ["matrix_shape"], axis=0),
            node("Expand", ["number", "matrix_shape"], ["matrix"]),
            node("MatMul", ["matrix", "matrix"], ["value"]),
        ],
        2,
        11_000,
    ),
}


def model(nodes: list[onnx.NodeProto]) -> bytes:
    """Return a model of n whose output is the number of the value's elements."""
    used = {name for each in nodes for name in each.input}
    value = helper.make_tensor_value_info
    made = make_model(
        [*nodes, node("Size", ["value"], ["y"])],
        [value("n", TensorProto.INT64, [])],
        [value("y", TensorProto.INT64, [])],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used],
    )
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("operator", STUCK)
def test_a_stuck_operator_is_answered_and_the_next_request_served(
    cloud: Cloud,  # noqa: F811
    operator: str,
) -> None:
    nodes, harmless, stuck = STUCK[operator]
    cloud.register("stuck", model(nodes))
    cloud.register("scale", scale_model())

    async def call_all() -> None:
        pool = cloud.pool()
        pool.function = replace(pool.function, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
        caller = Caller(pool)
        try:
            status, reply = await caller.infer("stuck", scalar(harmless))
            assert status == 200, reply
            status, reply = await caller.infer("stuck", scalar(stuck))
            assert (status, reply["code"], reply["request_id"]) == (504, "TIMED_OUT", "r")
            status, reply = await caller.infer("scale", numbers([1, 3], [1, 2, 3]))
            assert (status, reply["outputs"][0]["data"]) == (200, [2, 4, 6])
        finally:
            await pool.stop()

    asyncio.run(call_all())
    log = cloud.log.path.read_text()
    assert "Task timed out" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines if line["level"] == "ERROR"] == [
        "request",
        "late reply",
    ]
