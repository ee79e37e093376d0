"""Integer division that a request can turn against the process: INT_MIN / -1 is a trap of the processor, not an error.

onnxruntime 1.31.1 guards division by zero, and not this one. A division of signed integers is safe if its divisor is a
constant free of 0 and -1, or if one side cannot be negative because it was measured from a shape. Types are followed
forward from inputs, constants and casts; where a type stays unknown the division is let through: float arithmetic is
the rule, and what follows (one run in the sandbox) is not weaker for it.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from functions.core.errors import InvalidModel, shown

INT32, INT64, BOOL = 6, 7, 9
_SIGNED = {
    3: "b",
    5: "h",
    INT32: "i",
    INT64: "q",
}  # TensorProto.DataType -> array code; 4- and 2-bit types do not divide

# Operators whose first output has the type of this input.
_AS_FIRST = {
    "Abs", "Add", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Clip", "Compress", "Concat",
    "CumSum", "DepthToSpace", "Div", "Einsum", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pad", "Pow", "Range", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
    "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Sign", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Sub", "Sum", "TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
}  # fmt: skip
_AS_INPUT = dict.fromkeys(_AS_FIRST, 0) | {"Where": 1, "CastLike": 1, "OneHot": 2}
_AS_INT64 = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression"}
# Operators that move values and change none.
_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "ReduceMax", "ReduceMin",
    "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(slots=True)
class Node:
    """What a division needs to know of a node. `value` is the constant in it, `to` the type it casts to."""

    op: str = ""
    name: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list["Graph"] = field(default_factory=list)
    value: "Constant | None" = None
    to: int = 0
    fmod: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of `datatype`; `values` decodes its integers, and gives None where there are too many to look at."""

    datatype: int
    values: Callable[[], "array[int] | None"]


@dataclass(slots=True)
class Graph:
    """One graph: declared types by name, and constants that no request can replace."""

    nodes: list[Node] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)


def check_divisions(graph: Graph) -> None:
    """Raises:
    InvalidModel: a request could make a division trap; the code is `UNSAFE_INTEGER_DIVISION`.
    """
    _Scope({}, {}, set()).check(graph)


@dataclass(slots=True)
class _Scope:
    """What is known of the names that a graph sees: its own and those around it."""

    types: dict[str, int]
    constants: dict[str, Constant]
    natural: set[str]  # names of values that are never negative

    def check(self, graph: Graph) -> None:
        for name, constant in graph.constants.items():
            if name not in graph.inputs:  # an initializer that is an input, too, is only a default
                self._constant(name, constant)
        self.types.update(graph.types)
        for node in graph.nodes:
            if node.domain in ("", "ai.onnx"):
                self._follow(node)
                if node.op in ("Div", "Mod") and len(node.inputs) == 2 and not node.fmod:
                    self._divide(node)
            for inner in node.graphs:
                _Scope(dict(self.types), dict(self.constants), set(self.natural)).check(inner)

    def _constant(self, name: str, constant: Constant) -> None:
        self.constants[name] = constant
        self.types[name] = constant.datatype

    def _follow(self, node: Node) -> None:
        if not node.outputs:
            return
        out = node.outputs[0]
        if node.op == "Constant" and node.value:
            self._constant(out, node.value)
            return
        found = self._type(node)
        for name in node.outputs if node.op == "Split" else [out]:
            if found:
                self.types.setdefault(name, found)
            if self._is_natural(node):
                self.natural.add(name)

    def _type(self, node: Node) -> int:
        if node.op in _AS_INT64:
            return INT64
        if node.op == "Cast":
            return node.to
        if node.op == "ConstantOfShape":
            return node.value.datatype if node.value else 1
        position = _AS_INPUT.get(node.op, -1)
        return self.types.get(node.inputs[position], 0) if 0 <= position < len(node.inputs) else 0

    def _is_natural(self, node: Node) -> bool:
        if node.op in ("Shape", "Size"):
            return True
        if node.op == "Cast":
            return node.to == INT64 and self._natural(node.inputs[:1])
        if node.op == "Concat":
            return self._natural(node.inputs)
        return node.op in _MOVES and self._natural(node.inputs[:1])

    def _natural(self, names: list[str]) -> bool:
        return bool(names) and all(
            name in self.natural or self._free_of(name, lambda v: v < 0) for name in names
        )

    def _free_of(self, name: str, bad: Callable[[int], bool]) -> bool:
        constant = self.constants.get(name)
        if constant is None or constant.datatype not in _SIGNED:
            return False
        values = constant.values()
        return values is not None and not any(map(bad, values))

    def _divide(self, node: Node) -> None:
        dividend, divisor = node.inputs
        known = {self.types.get(name) for name in (dividend, divisor, *node.outputs)}
        if not known & _SIGNED.keys():
            return
        traps = {0} if self._natural([dividend]) else {0, -1}
        if divisor in self.constants:
            if self._free_of(divisor, lambda v: v in traps):
                return
        elif -1 not in traps or self._natural([divisor]):
            return
        name = node.name or next(iter(node.outputs), node.op)
        raise InvalidModel(
            f"node {shown(name)} ({node.op}) divides integers by a value that could be -1, which ends the process; "
            "divide by a constant other than 0 and -1, or cast to float",
            code="UNSAFE_INTEGER_DIVISION",
        )


def decode(datatype: int, raw: bytes) -> "array[int] | None":
    """Signed integers as they lie in raw_data; None for other types.

    >>> decode(7, b"\\x02" + bytes(7)).tolist()
    [2]
    """
    code = _SIGNED.get(datatype)
    if code is None or len(raw) % array(code).itemsize:
        return None
    return array(code, raw)
