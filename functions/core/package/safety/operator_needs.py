"""Inputs that operators need to have elements, or the process ends.

The table was found by tests/stress/hostile_values.py with onnxruntime 1.31.1. The decision:
docs/decisions/0033-values-that-crash.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from functions.core.package.onnx_graph import Node

Attributes = Mapping[str, int]

_MICROSOFT, _ML = "com.microsoft", "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class Need:
    """Input of an operator that must not be empty, or 0.

    `axis` is the one that needs a size, None for all. `like` is the position of an input that may
    be empty together with this one.
    """

    position: int
    axis: int | None = None
    like: int | None = None
    is_number: bool = False


def _always(_: Attributes) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Guard:
    """Needs of an operator, and the attributes with which it has them."""

    needs: tuple[Need, ...]
    applies: Callable[[Attributes], bool] = _always


_FIRST, _KERNEL, _SKIP = Guard((Need(0),)), Guard((Need(1),)), Guard((Need(1, like=0),))
_GUARDS = {
    ("", "Attention"): Guard(
        (Need(0, axis=1), Need(1, axis=1)), lambda attributes: "q_num_heads" not in attributes
    ),
    ("", "Conv"): _KERNEL,
    ("", "ConvTranspose"): Guard((Need(0), Need(1))),
    ("", "GRU"): _FIRST,
    ("", "InstanceNormalization"): _FIRST,
    ("", "LSTM"): Guard((Need(0, axis=1),)),
    ("", "QuantizeLinear"): Guard(
        (Need(0),), lambda attributes: attributes.get("block_size", 0) != 0
    ),
    ("", "STFT"): Guard((Need(2), Need(3, is_number=True))),
    ("", "Unique"): Guard((Need(0),), lambda attributes: "axis" in attributes),
    (_MICROSOFT, "DynamicQuantizeLSTM"): Guard((Need(0, axis=1),)),
    (_MICROSOFT, "FusedConv"): _KERNEL,
    (_MICROSOFT, "FusedMatMul"): Guard(
        (Need(0), Need(1)),
        lambda attributes: bool(attributes.get("transBatchA") or attributes.get("transBatchB")),
    ),
    (_MICROSOFT, "GroupQueryAttention"): Guard((Need(0), Need(1), Need(2))),
    (_MICROSOFT, "MultiHeadAttention"): Guard((Need(0, axis=-1), Need(2, axis=-1))),
    (_MICROSOFT, "QAttention"): Guard((Need(0, axis=0),)),
    (_MICROSOFT, "RotaryEmbedding"): Guard((Need(0, axis=-1),)),
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
_LIKE_ALL = {"Add", "FusedMatMul", "MatMul", "Mul", "Sub"}


@dataclass(slots=True)
class Scope:
    """Constants of a graph, and which of its values are empty together.

    `constants` has the ranks of those with elements. `origins` maps a value to one that is empty
    if it is, and only then.
    """

    constants: Mapping[str, int]
    origins: dict[str, str] = field(default_factory=dict)

    def is_open(self, node: Node, need: Need) -> bool:
        """Return True unless a need is met or the input absent."""
        name = node.inputs[need.position] if need.position < len(node.inputs) else ""
        if not name or (name in self.constants and not need.is_number):
            return False
        if node.op == "ConvTranspose":  # it crashes in three dimensions
            return self.constants.get(node.inputs[1], 5) == 5
        if need.like is None:
            return True
        return self._origin(name) != self._origin(node.inputs[need.like])

    def follow(self, node: Node) -> None:
        """Record where a node's first output has its emptiness from."""
        inputs = node.inputs[:1] if node.op in _LIKE_FIRST else node.inputs
        if node.op not in _LIKE_FIRST | _LIKE_ALL or not node.outputs:
            return
        if node.op == "Attention" and not self.constants.keys() >= set(node.inputs[1:2]):
            return  # weights, or values, of no width would empty the output
        values = {self._origin(name) for name in inputs if name and name not in self.constants}
        if len(values) == 1:
            self.origins[node.outputs[0]] = values.pop()

    def _origin(self, name: str) -> str:
        return self.origins.get(name, name)


def needs(node: Node) -> tuple[Need, ...]:
    """Return what a node's inputs must be, with its attributes."""
    guard = _GUARDS.get((node.domain, node.op))
    return guard.needs if guard and guard.applies(node.attributes) else ()
