"""Test models in which requests create empty tensors that crash ONNX Runtime.

Each is accepted and served; its hostile request, which crashed the process, gets HTTP 400.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.hostile.cases import BOOL, FLOAT, INT64, constant, graph, helper, model, node, value
from tests.models import make_model

MICROSOFT = "com.microsoft"
Feeds = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Deadly:
    """Test model with a valid request and one that crashed the process."""

    name: str
    content: bytes
    good: Feeds
    hostile: Feeds
    operator: str  # that the error names

    def __str__(self) -> str:
        return self.name


def floats(*shape: int) -> Any:
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.float32) % 7 / 7).reshape(shape)


def weight(name: str, *shape: int) -> Any:
    return constant(name, floats(*shape) - 0.5)


def unsized(name: str) -> Any:
    return onnx.ValueInfoProto(name=name)


def compressed(operator: str, gates: int, axis: int) -> Deadly:
    """Return a GRU or LSTM behind Compress; an all-false mask empties it."""
    content = model(
        [
            node("Compress", "x keep", "steps", axis=axis),
            node("Transpose", "steps", "t", perm=[1, 0, 2]),
            node(operator, "t w r", "y", hidden_size=4),
        ],
        [value("x", FLOAT, ["batch", "time", 2]), value("keep", BOOL, ["n"])],
        [unsized("y")],
        weight("w", 1, 4 * gates, 2),
        weight("r", 1, 4 * gates, 4),
    )
    x = floats(3, 3, 2)
    return Deadly(
        f"{operator} after Compress",
        content,
        {"x": x, "keep": np.array([True, False, True])},
        {"x": x, "keep": np.zeros(3, bool)},
        operator,
    )


def pooled() -> Deadly:
    """Return a GRU behind MaxPool; a narrow image leaves it no steps."""
    content = model(
        [
            node("MaxPool", "x", "p", kernel_shape=[8, 4], strides=[8, 1]),
            node("Squeeze", "p two", "s"),
            node("Transpose", "s", "t", perm=[2, 0, 1]),
            node("GRU", "t w r", "y", hidden_size=4, direction="bidirectional"),
        ],
        [value("x", FLOAT, ["batch", 3, 8, "width"])],
        [unsized("y")],
        weight("w", 2, 12, 3),
        weight("r", 2, 12, 4),
        constant("two", [2], np.int64),
    )
    good, narrow = floats(1, 3, 8, 16), floats(1, 3, 8, 3)
    return Deadly("GRU after MaxPool", content, {"x": good}, {"x": narrow}, "GRU")


def looped() -> Deadly:
    """Return a GRU in a Loop; the request may choose zero steps."""
    body = graph(
        "body",
        [
            node("Slice", "x start count", "v"),
            node("GRU", "v w r", "all", hidden_size=4),
            node("ReduceSum", "all", "sum", keepdims=0),
            node("Identity", "go", "on"),
        ],
        [value("i", INT64, []), value("go", BOOL, [])],
        [value("on", BOOL, []), value("sum", FLOAT, None)],
    )
    content = model(
        [helper.make_node("Loop", ["two", ""], ["y"], body=body)],
        [value("x", FLOAT, ["time", "batch", 2]), value("count", INT64, [1])],
        [unsized("y")],
        weight("w", 1, 12, 2),
        weight("r", 1, 12, 4),
        constant("two", 2, np.int64),
        constant("start", [0], np.int64),
    )
    x = floats(3, 1, 2)
    return Deadly(
        "GRU in a Loop", content, {"x": x, "count": np.array([2])},
        {"x": x, "count": np.array([0])}, "GRU",
    )  # fmt: skip


def framed() -> Deadly:
    """Return an STFT model whose frame length the request chooses, even 0."""
    content = model(
        [helper.make_node("STFT", ["x", "step", "", "length"], ["y"])],
        [value("x", FLOAT, [1, 32, 1]), value("length", INT64, [])],
        [unsized("y")],
        constant("step", 4, np.int64),
    )
    x = floats(1, 32, 1)
    return Deadly(
        "STFT", content, {"x": x, "length": np.array(8)}, {"x": x, "length": np.array(0)}, "STFT"
    )


def deconvolved() -> Deadly:
    content = model(
        [node("ConvTranspose", "x w", "y")],
        [value("x", FLOAT, ["n", 1, "depth", "height", "width"])],
        [unsized("y")],
        weight("w", 1, 2, 3, 3, 3),
    )
    good, flat = floats(1, 1, 3, 4, 5), floats(1, 1, 0, 4, 5)
    return Deadly("ConvTranspose", content, {"x": good}, {"x": flat}, "ConvTranspose")


def kernel() -> Deadly:
    """Return a Conv model with the kernel as input; width 0 hangs."""
    content = model(
        [node("Conv", "x k", "y")],
        [value("x", FLOAT, [1, 1, 5, 5]), value("k", FLOAT, [1, 1, "height", "width"])],
        [unsized("y")],
    )
    x = floats(1, 1, 5, 5)
    return Deadly(
        "Conv", content, {"x": x, "k": floats(1, 1, 3, 3)}, {"x": x, "k": floats(1, 1, 3, 0)},
        "Conv",
    )  # fmt: skip


def vectorised() -> Deadly:
    content = model(
        [node("FeatureVectorizer", "a b", "y", domain="ai.onnx.ml", inputdimensions=[3, 2])],
        [value("a", FLOAT, ["n", 3]), value("b", FLOAT, ["n", 2])],
        [unsized("y")],
        opsets={"ai.onnx.ml": 1},
    )
    good = {"a": floats(2, 3), "b": floats(2, 2)}
    hostile = {"a": floats(0, 3), "b": floats(0, 2)}
    return Deadly("FeatureVectorizer", content, good, hostile, "FeatureVectorizer")


def unique() -> Deadly:
    content = model([node("Unique", "x", "y", axis=0)], [value("x", FLOAT, ["n", "m"])],
                    [unsized("y")])  # fmt: skip
    return Deadly("Unique", content, {"x": floats(3, 4)}, {"x": floats(3, 0)}, "Unique")


def blocked() -> Deadly:
    made = make_model(
        [node("QuantizeLinear", "x scale", "q", axis=1, block_size=2),
         node("Cast", "q", "y", to=FLOAT)],
        [value("x", FLOAT, ["n", "m"]), value("scale", FLOAT, ["n", "blocks"])],
        [unsized("y")],
    )  # fmt: skip
    made.opset_import[0].version = 21
    good = {"x": floats(2, 4), "scale": floats(2, 2) + 1}
    hostile = {"x": floats(3, 0), "scale": floats(3, 0)}
    return Deadly("QuantizeLinear", made.SerializeToString(), good, hostile, "QuantizeLinear")


def attention() -> Deadly:
    made = make_model(
        [node("Attention", "q k v", "y")],
        [value(name, FLOAT, ["n", "heads", f"{name} steps", 8]) for name in "qkv"],
        [unsized("y")],
    )
    made.opset_import[0].version = 23
    good = {name: floats(2, 3, 4, 8) for name in "qkv"}
    hostile = {name: floats(2, 0, 4, 8) for name in "qkv"}
    return Deadly("Attention", made.SerializeToString(), good, hostile, "Attention")


def ranked() -> Deadly:
    """Return an Attention model with zero heads and a request-chosen rank."""
    made = make_model(
        [node("Reshape", "x sizes", "q"),
         node("Attention", "q q q", "y", q_num_heads=0, kv_num_heads=0)],
        [value("x", FLOAT, ["n", "m"]), value("sizes", INT64, ["rank"])],
        [unsized("y")],
    )  # fmt: skip
    made.opset_import[0].version = 23
    good = {"x": floats(2, 2), "sizes": np.array([1, 1, 2, 2])}
    hostile = {"x": floats(2, 2), "sizes": np.array([1, 2, 2])}
    return Deadly("Attention of a rank", made.SerializeToString(), good, hostile, "Attention")


def hidden() -> Deadly:
    """Return a Loop whose GRU input shadows an outer constant."""
    body = graph(
        "body",
        [node("GRU", "k w r", "all", hidden_size=4), node("Identity", "k", "next"),
         node("Identity", "go", "on")],
        [value("i", INT64, []), value("go", BOOL, []), value("k", FLOAT, None)],
        [value("on", BOOL, []), value("next", FLOAT, None), unsized("all")],
    )  # fmt: skip
    content = model(
        [helper.make_node("Loop", ["one", "", "x"], ["last", "all_"], body=body),
         node("Add", "k shift", "moved"), node("ReduceSum", "moved", "sum", keepdims=0),
         node("Add", "all_ sum", "y")],
        [value("x", FLOAT, ["time", "batch", 2]), value("shift", FLOAT, ["n"])],
        [unsized("y")],
        constant("one", 1, np.int64), weight("k", 1, 1, 2),
        weight("w", 1, 12, 2), weight("r", 1, 12, 4),
    )  # fmt: skip
    shift = {"shift": floats(1)}
    return Deadly(
        "hidden", content, {"x": floats(3, 1, 2), **shift}, {"x": floats(0, 1, 2), **shift}, "GRU"
    )


def microsoft(
    operator: str,
    shapes: Mapping[str, tuple[int, ...]],
    empty: Mapping[str, tuple[int, ...]],
    **attributes: Any,
) -> Deadly:
    """Return a one-operator model of domain com.microsoft, with valid and empty inputs.

    `shapes` are those of a valid request, `empty` those that a hostile request changes.
    """
    good: dict[str, Any] = {name: floats(*shape) for name, shape in shapes.items()}
    hostile = good | {name: floats(*shape) for name, shape in empty.items()}
    for feeds in (good, hostile):
        feeds |= {name: at.astype(np.int32) for name, at in feeds.items() if name == "mask"}
    inputs = [
        value(name, 6 if name == "mask" else FLOAT, [f"{name}{at}" for at in range(len(shape))])
        for name, shape in shapes.items()
    ]
    made = helper.make_node(operator, list(shapes), ["y"], domain=MICROSOFT, **attributes)
    content = model([made], inputs, [unsized("y")], opsets={MICROSOFT: 1})
    return Deadly(operator, content, good, hostile, operator)  # fmt: skip


def pooled_last() -> Deadly:
    """Return a quantised average pooling; small images give an empty output."""
    content = model(
        [node("QuantizeLinear", "x scale zero", "q"),
         node("QLinearAveragePool", "q scale zero scale zero", "p", domain=MICROSOFT,
              kernel_shape=[2, 2], channels_last=1),
         node("DequantizeLinear", "p scale zero", "y")],
        [value("x", FLOAT, ["n", "height", "width", 4])],
        [unsized("y")],
        constant("scale", 0.01), constant("zero", 3, np.uint8),
        opsets={MICROSOFT: 1},
    )  # fmt: skip
    good, small = floats(1, 6, 6, 4), floats(1, 1, 6, 4)
    return Deadly("QLinearAveragePool", content, {"x": good}, {"x": small}, "QLinearAveragePool")


def all_deadly() -> Iterator[Deadly]:
    """Yield all test models that hostile requests crash."""
    yield compressed("GRU", 3, axis=1)
    yield compressed("LSTM", 4, axis=0)
    yield pooled()
    yield looped()
    yield framed()
    yield deconvolved()
    yield kernel()
    yield vectorised()
    yield unique()
    yield blocked()
    yield attention()
    yield ranked()
    yield hidden()
    yield pooled_last()
    rows = (2, 4, 8)
    yield microsoft(
        "MultiHeadAttention", {"q": rows, "k": rows, "v": rows}, {"v": (2, 4, 0)}, num_heads=2
    )
    yield microsoft(
        "SkipLayerNormalization", {"x": rows, "skip": rows, "gamma": (8,), "beta": (8,)},
        {"skip": (0, 4, 8)},
    )  # fmt: skip
    yield microsoft("SkipSimplifiedLayerNormalization", {"x": rows, "skip": rows, "gamma": (8,)},
                    {"skip": (0, 4, 8)})  # fmt: skip
    yield microsoft("FusedMatMul", {"a": (2, 2, 4), "b": (2, 4, 5)}, {"a": (0, 2, 4)},
                    transBatchA=1)  # fmt: skip
