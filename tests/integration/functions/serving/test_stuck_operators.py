"""Operators that ONNX Runtime cannot interrupt, under our runtime client and Lambda's limits."""

import asyncio
import json
from dataclasses import replace

import numpy as np
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
BOXES = 300_000


def suppression_model() -> bytes:
    """Return a model that compares n boxes with each other: n²/2 comparisons in one operator."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Reshape", ["n", "one"], ["count"]),
        helper.make_node("Concat", ["one", "count", "four"], ["boxes_shape"], axis=0),
        helper.make_node("Concat", ["one", "one", "count"], ["scores_shape"], axis=0),
        helper.make_node("Expand", ["box", "boxes_shape"], ["boxes"]),
        helper.make_node("Expand", ["score", "scores_shape"], ["scores"]),
        helper.make_node(
            "NonMaxSuppression", ["boxes", "scores", "count", "never", "none"], ["kept"]
        ),
        helper.make_node("Shape", ["kept"], ["y"]),
    ]
    constants = {
        "one": np.array([1]),
        "four": np.array([4]),
        "box": np.array([[[0, 0, 1, 1]]], np.float32),
        "score": np.array([[[0.9]]], np.float32),
        "never": np.array([1], np.float32),  # no overlap is larger: every box is kept
        "none": np.array([0], np.float32),
    }
    model = make_model(
        nodes,
        [value("n", TensorProto.INT64, [])],
        [value("y", TensorProto.INT64, [2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return bytes(model.SerializeToString())


def test_a_stuck_operator_is_answered_and_the_next_request_served(
    cloud: Cloud,  # noqa: F811
) -> None:
    cloud.register("boxes", suppression_model())
    cloud.register("scale", scale_model())

    async def call_all() -> None:
        pool = cloud.pool()
        pool.function = replace(pool.function, timeout_s=TIMEOUT_S)
        caller = Caller(pool)
        try:
            status, reply = await caller.infer("boxes", scalar(10))
            assert (status, reply["outputs"][0]["data"]) == (200, [10, 3])
            status, reply = await caller.infer("boxes", scalar(BOXES))
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
