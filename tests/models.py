"""Small ONNX models whose outputs prove that they ran."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 20, 10


def make_model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[Any] = (),
    metadata: Mapping[str, str] | None = None,
) -> Any:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="mayfly-tests",
    )
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def scale_model(factor: float = 2.0, manifest: Mapping[str, Any] | None = None) -> bytes:
    """Return a model of y = factor * x, both FP32 [-1, 3]; the output shows which version ran."""
    model = make_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
        {"mayfly.manifest": json.dumps(manifest)} if manifest is not None else None,
    )
    return model.SerializeToString()


def lookup_model(rows: int) -> bytes:
    """Return a model of y = i for an index i below `rows`; a larger one fails as it runs."""
    table = np.arange(rows, dtype=np.float32)
    return make_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(table, "table")],
    ).SerializeToString()


def dense_model(width: int, weight: float, manifest: Mapping[str, Any] | None = None) -> bytes:
    """Return a model of y = x @ W, both FP32 [-1, width], all weights equal.

    Large enough that a smaller variant is worthwhile.
    """
    weights = np.full((width, width), weight, np.float32)
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weights, "w")],
        {"mayfly.manifest": json.dumps(manifest)} if manifest is not None else None,
    )
    return model.SerializeToString()


def outside_weights_model(
    directory: Path, location: str = "model.onnx.data", size: int = 3
) -> tuple[bytes, bytes]:
    """Return a model of y = x + [0, 1, 2] and the file with its weights."""
    model = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(np.arange(size, dtype=np.float32), "w")],
    )
    path = directory / "outside.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path.read_bytes(), (directory / location).read_bytes()
