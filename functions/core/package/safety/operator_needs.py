"""Table of ONNX operator inputs that must not be empty or zero.

The table was found by tests/stress/hostile_values.py with onnxruntime 1.31.1. The decision:
docs/decisions/0033-values-that-crash.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.core.package.onnx_graph import Node

Attributes = Mapping[str, Any]

_MICROSOFT, _ML = "com.microsoft", "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class Need:
    """Requirement that an operator's input is not empty, or not zero.

    `axis` is the axis whose size must be at least `least`; if None, no axis may be empty. `like` is
    the position of an input that may be empty together with this one.
    """

    position: int
    axis: int | None = None
    least: int = 1
    like: int | None = None
    is_number: bool = False


def _pool(attributes: Attributes) -> tuple[Need, ...]:
    """Return a pooling operator's minimum input sizes, from kernel and padding."""
    kernel, pads = attributes.get("kernel_shape") or [], attributes.get("pads") or []
    padding_rule = str(attributes.get("auto_pad") or "NOTSET")
    if padding_rule.startswith("SAME"):
        return ()
    if padding_rule != "NOTSET":  # VALID: pads are ignored
        pads = []
    first = 1 if attributes.get("channels_last") else 2
    padded = [sum(pads[at :: len(kernel)]) for at in range(len(kernel))]
    least = [size - padding for size, padding in zip(kernel, padded, strict=True)]
    return tuple(Need(0, axis=first + at, least=size) for at, size in enumerate(least) if size > 1)


Guard = Callable[[Attributes], tuple[Need, ...]]


def _always(*needs: Need) -> Guard:
    return lambda _: needs


def _if(applies: Callable[[Attributes], bool], *needs: Need) -> Guard:
    return lambda attributes: needs if applies(attributes) else ()


_FIRST, _KERNEL, _SKIP = _always(Need(0)), _always(Need(1)), _always(Need(1, like=0))
_GUARDS: dict[tuple[str, str], Guard] = {
    ("", "Attention"): _if(
        lambda attributes: not (attributes.get("q_num_heads") and attributes.get("kv_num_heads")),
        Need(0, axis=1),
        Need(1, axis=1),
        Need(0, axis=3),  # three dimensions are divided by the number of heads
    ),
    ("", "Conv"): _KERNEL,
    ("", "ConvTranspose"): _always(Need(0), Need(1)),
    ("", "GRU"): _FIRST,
    ("", "InstanceNormalization"): _FIRST,
    ("", "LSTM"): _always(Need(0, axis=1)),
    ("", "QuantizeLinear"): _if(lambda attributes: bool(attributes.get("block_size")), Need(0)),
    ("", "STFT"): _always(Need(2), Need(3, is_number=True)),
    ("", "Unique"): _if(lambda attributes: "axis" in attributes, Need(0)),
    (_MICROSOFT, "DynamicQuantizeLSTM"): _always(Need(0, axis=1)),
    (_MICROSOFT, "FusedConv"): _KERNEL,
    (_MICROSOFT, "FusedMatMul"): _if(
        lambda attributes: bool(attributes.get("transBatchA") or attributes.get("transBatchB")),
        Need(0),
        Need(1),
    ),
    (_MICROSOFT, "GroupQueryAttention"): _always(Need(0), Need(1), Need(2)),
    (_MICROSOFT, "MultiHeadAttention"): _always(Need(0, axis=-1), Need(2, axis=-1)),
    (_MICROSOFT, "QAttention"): _always(Need(0, axis=0)),
    (_MICROSOFT, "QLinearAveragePool"): _pool,
    (_MICROSOFT, "RotaryEmbedding"): _always(Need(0, axis=-1)),
    (_MICROSOFT, "SkipLayerNormalization"): _SKIP,
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _SKIP,
    (_ML, "FeatureVectorizer"): _FIRST,
}
# Operators whose output is empty if their first input is, and only then.
_LIKE_FIRST = {
    "Attention", "BiasGelu", "Cast", "Erf", "FastGelu", "Flatten", "Gelu", "GroupQueryAttention",
    "Identity", "LayerNormalization", "MultiHeadAttention", "QuickGelu", "Relu", "Reshape",
    "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Squeeze",
    "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip
# The same of all inputs that are no constants.
_PRODUCTS = {"FusedMatMul", "MatMul"}
_LIKE_ALL = {"Add", "Mul", "Sub"} | _PRODUCTS


@dataclass(slots=True)
class Scope:
    """Constants of an ONNX graph, and tensors that are empty only together.

    `constants` maps non-empty constants to their ranks. `origins` maps a tensor to another that is
    empty if and only if it is.
    """

    constants: Mapping[str, int]
    origins: dict[str, str] = field(default_factory=dict)
    # (value, need, value that may be empty together with it) -> name of the guarded value
    guarded: dict[tuple[str, Need, str], str] = field(default_factory=dict)

    def is_open(self, node: Node, need: Need) -> bool:
        """Return True if an input requirement must be checked at run time."""
        name = node.inputs[need.position] if need.position < len(node.inputs) else ""
        if not name:
            return False
        if name in self.constants and not need.is_number:
            return (need.axis or 0) >= self.constants[name] > 0  # it lacks the axis
        if node.op == "ConvTranspose":  # it crashes in three dimensions
            return self.constants.get(node.inputs[1], 5) == 5
        if need.like is None:
            return True
        return self._origin(name) != self._origin(node.inputs[need.like])

    def follow(self, node: Node) -> None:
        """Record which tensor's emptiness a node's first output shares."""
        inputs = node.inputs[:1] if node.op in _LIKE_FIRST else node.inputs
        if node.op not in _LIKE_FIRST | _LIKE_ALL or not node.outputs:
            return
        if node.op == "Attention" and not self.constants.keys() >= {*node.inputs[1:3]} - {""}:
            return  # weights, or values, of no width would empty the output
        values = [self._origin(name) for name in inputs if name and name not in self.constants]
        if len(values) > 1 and node.op in _PRODUCTS:
            return  # [2, 0] times [0, 2] is [2, 2]
        if len(set(values)) == 1:
            self.origins[node.outputs[0]] = values[0]

    def _origin(self, name: str) -> str:
        return self.origins.get(name, name)


def may_need(node: Node) -> bool:
    """Return True if the table of input requirements lists a node's operator."""
    return (node.domain, node.op) in _GUARDS


def needs(node: Node) -> tuple[Need, ...]:
    """Return the requirements on a node's inputs, given its attributes."""
    guard = _GUARDS.get((node.domain, node.op))
    return guard(node.attributes) if guard else ()
