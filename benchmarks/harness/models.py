"""Benchmark workloads: ONNX models like ResNet-50 and BERT with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 20, 10
SEED = 20261122
BLOCKS = (3, 4, 6, 3)  # ResNet-50's blocks per stage
LAYERS, WIDTH, HEADS, TOKENS = 14, 768, 12, 16  # BERT-base has 12 layers


@dataclass(frozen=True, slots=True)
class Workload:
    """Benchmark model with one input and output, and its input values.

    `shape` is that of one row.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]
    input: str = "x"
    output: str = "y"

    def write(self, path: Path) -> None:
        """Write the model as an ONNX file."""
        path.write_bytes(self.build().SerializeToString())

    def values(self, rows: int = 1) -> np.ndarray:
        """Return random input values, (rows, *shape) float64 in [0, 1).

        Values have three decimals, as a client would write them in JSON.
        """
        return np.round(np.random.default_rng(SEED).random((rows, *self.shape)), 3)

    def write_values(self, path: Path, rows: int = 1) -> str:
        """Write the input values as raw float32; return the file path."""
        self.values(rows).astype(np.float32).tofile(path)
        return str(path)


@dataclass(slots=True)
class _Graph:
    """ONNX graph builder whose methods add nodes and return output names."""

    random: np.random.Generator
    nodes: list[Any]
    weights: list[Any]

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, *shape: int, gain: float = 2.0) -> str:
        """Add a random weight tensor that keeps a layer's input scale.

        Values are normally distributed; `gain` 2 makes up for the half that ReLU removes.
        """
        scale = np.float32(np.sqrt(gain / np.prod(shape[1:])))
        name = f"weight_{len(self.weights)}"
        array = self.random.standard_normal(shape, np.float32) * scale
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def bias(self, size: int) -> str:
        return self.weight(size, gain=0.01)

    def convolution(
        self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, gain: float = 2.0
    ) -> str:
        """Add a convolution node with bias; return its output's name.

        Exporters fold the batch normalisation into both.
        """
        inputs, outputs = channels
        weights = [self.weight(outputs, inputs, kernel, kernel, gain=gain), self.bias(outputs)]
        return self.node(
            "Conv",
            [x, *weights],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        return self.node("Gemm", [x, self.weight(outputs, inputs), self.bias(outputs)], transB=1)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """Add a dense layer as MatMul and Add, as exported transformers do."""
        product = self.node("MatMul", [x, self.weight(inputs, outputs, gain=1.0)])
        return self.node("Add", [product, self.bias(outputs)])

    def model(self, last: str, shape: Sequence[int], classes: int) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="mayfly-benchmarks",
        )


def tiny() -> onnx.ModelProto:
    """Build an ONNX perceptron of 784-128-10 units, 0.4 MB."""
    graph = _Graph(np.random.default_rng(SEED), [], [])
    hidden = graph.node("Relu", [graph.dense("x", 784, 128)])
    return graph.model(graph.dense(hidden, 128, 10), [784], 10)


def conv100() -> onnx.ModelProto:
    """Build ResNet-50 in ONNX: 53 convolutions, 25.5 million random weights, 102 MB."""
    graph = _Graph(np.random.default_rng(SEED), [], [])
    x = graph.node("Relu", [graph.convolution("x", (3, 64), 7, 2)])
    x = graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            width, stride = 64 << stage, 2 if stage and not block else 1
            x = _bottleneck(graph, x, (channels, width, 4 * width), stride)
            channels = 4 * width
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])])
    return graph.model(graph.dense(pooled, channels, 1000), [3, 224, 224], 1000)


def _bottleneck(graph: _Graph, x: str, channels: tuple[int, int, int], stride: int) -> str:
    inputs, width, outputs = channels
    inner = graph.node("Relu", [graph.convolution(x, (inputs, width), 1)])
    inner = graph.node("Relu", [graph.convolution(inner, (width, width), 3, stride)])
    # The gain is small, to keep the sum over 16 blocks bounded.
    inner = graph.convolution(inner, (width, outputs), 1, gain=0.1)
    if inputs != outputs or stride > 1:
        x = graph.convolution(x, (inputs, outputs), 1, stride, gain=1.0)
    return graph.node("Relu", [graph.node("Add", [inner, x])])


def encoder400() -> onnx.ModelProto:
    """Build 14 layers of BERT-base in ONNX: 99 million weights, 397 MB.

    Embeddings are left out.
    """
    graph = _Graph(np.random.default_rng(SEED), [], [])
    constants = {"heads": [0, 0, HEADS, WIDTH // HEADS], "flat": [0, 0, WIDTH], "tokens": [1]}
    graph.weights += [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in constants.items()
    ]
    numbers = {"scale": (WIDTH / HEADS) ** -0.5, "half": 0.5, "one": 1.0, "root": 2**0.5}
    graph.weights += [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in numbers.items()
    ]
    x = "x"
    for _ in range(LAYERS):
        x = _normalized(graph, graph.node("Add", [x, _attention(graph, x)]))
        hidden = _gelu(graph, graph.linear(x, WIDTH, 4 * WIDTH))
        hidden = graph.linear(hidden, 4 * WIDTH, WIDTH)
        x = _normalized(graph, graph.node("Add", [x, hidden]))
    pooled = graph.node("ReduceMean", [x, "tokens"], keepdims=0)
    return graph.model(graph.linear(pooled, WIDTH, 10), [TOKENS, WIDTH], 10)


def _normalized(graph: _Graph, x: str) -> str:
    parameters = [graph.bias(WIDTH), graph.bias(WIDTH)]
    return graph.node("LayerNormalization", [x, *parameters], axis=-1)


def _attention(graph: _Graph, x: str) -> str:
    def heads(axes: Sequence[int]) -> str:
        split = graph.node("Reshape", [graph.linear(x, WIDTH, WIDTH), "heads"])
        return graph.node("Transpose", [split], perm=axes)

    query, key, value = map(heads, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = graph.node("Mul", [graph.node("MatMul", [query, key]), "scale"])
    mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
    together = graph.node("Reshape", [graph.node("Transpose", [mixed], perm=[0, 2, 1, 3]), "flat"])
    return graph.linear(together, WIDTH, WIDTH)


def _gelu(graph: _Graph, x: str) -> str:
    phi = graph.node("Add", [graph.node("Erf", [graph.node("Div", [x, "root"])]), "one"])
    return graph.node("Mul", [graph.node("Mul", [x, phi]), "half"])


@cache
def workloads() -> dict[str, Workload]:
    """Return the small and medium benchmark models by name."""
    return {
        "tiny": Workload("tiny", tiny, (784,)),
        "conv100": Workload("conv100", conv100, (3, 224, 224)),
    }


@cache
def all_workloads() -> dict[str, Workload]:
    """Return all benchmark models by name."""
    return workloads() | {"encoder400": Workload("encoder400", encoder400, (TOKENS, WIDTH))}
