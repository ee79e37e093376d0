"""Refuse ONNX graphs whose integer division could crash the process (SIGFPE).

INT_MIN / -1 raises SIGFPE on x86, which ends the process. onnxruntime 1.31.1 guards against
division by zero and not against this. A signed division is safe if its divisor is a constant free
of 0 and -1, or if one side cannot be negative because it comes from a shape.

Types are followed forward from inputs, constants and casts. Where a type stays unknown the division
passes: float arithmetic is the rule, and the run in the sandbox afterwards checks it all the same.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from functions.core.errors import InvalidModel, shown

FLOAT, INT32, INT64 = 1, 6, 7  # TensorProto.DataType
# Signed TensorProto.DataType -> array type code; there is no division of 4- and 2-bit types.
_SIGNED = {3: "b", 5: "h", INT32: "i", INT64: "q"}

# Operators whose first output has the type of their first input.
_AS_FIRST = {
    "Abs", "Add", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Clip",
    "Compress", "Concat", "CumSum", "DepthToSpace", "Div", "Einsum", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pad",
    "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "ReverseSequence", "Scatter",
    "ScatterElements", "ScatterND", "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub",
    "Sum", "TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
}  # fmt: skip
_AS_INPUT = dict.fromkeys(_AS_FIRST, 0) | {"Where": 1, "CastLike": 1, "OneHot": 2}
_AS_INT64 = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression"}
# Operators that copy values without changing them.
_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "ReduceMax",
    "ReduceMin", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(slots=True)
class Node:
    """Fields of an ONNX node (NodeProto) that the division check needs."""

    op: str = ""
    name: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list["Graph"] = field(default_factory=list)
    value: "Constant | None" = None  # attribute of Constant and ConstantOfShape
    to: int = 0  # attribute of Cast: the type it converts to
    fmod: bool = False  # attribute of Mod: remainder of floats


@dataclass(frozen=True, slots=True)
class Constant:
    """Constant of an ONNX graph: its type and lazily decoded integers."""

    datatype: int
    values: Callable[[], "array[int] | None"]  # returns None for too many, or for another file's


@dataclass(slots=True)
class Graph:
    """ONNX graph: its nodes, declared types, constants and input names."""

    nodes: list[Node] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)


def check_divisions(graph: Graph) -> None:
    """Refuse an ONNX graph with an integer division that could crash.

    Raises:
        InvalidModel: `UNSAFE_INTEGER_DIVISION`.
    """
    _Scope({}, {}, set()).check(graph)


@dataclass(slots=True)
class _Scope:
    """Types and constants of the values visible in an ONNX (sub)graph.

    A subgraph also sees the values of the graphs around it.
    """

    types: dict[str, int]
    constants: dict[str, Constant]
    never_negative: set[str]  # names of values that are 0 or above

    def check(self, graph: Graph) -> None:
        for name, constant in graph.constants.items():
            if name not in graph.inputs:  # a request may replace an initializer that is an input
                self._add_constant(name, constant)
        self.types.update(graph.types)
        for node in graph.nodes:
            if node.domain in ("", "ai.onnx"):
                self._follow(node)
                if node.op in ("Div", "Mod") and len(node.inputs) == 2 and not node.fmod:
                    self._check_division(node)
            for inner in node.graphs:
                scope = _Scope(dict(self.types), dict(self.constants), set(self.never_negative))
                scope.check(inner)

    def _add_constant(self, name: str, constant: Constant) -> None:
        self.constants[name] = constant
        self.types[name] = constant.datatype

    def _follow(self, node: Node) -> None:
        """Record type and sign of a node's outputs, derived from its inputs."""
        if not node.outputs:
            return
        first = node.outputs[0]
        if node.op == "Constant" and node.value:
            self._add_constant(first, node.value)
            return
        datatype = self._type(node)
        for name in node.outputs if node.op == "Split" else [first]:
            if datatype:
                self.types.setdefault(name, datatype)
            if self._is_never_negative(node):
                self.never_negative.add(name)

    def _type(self, node: Node) -> int:
        """Return the data type of a node's first output, 0 if unknown."""
        if node.op in _AS_INT64:
            return INT64
        if node.op == "Cast":
            return node.to
        if node.op == "ConstantOfShape":
            return node.value.datatype if node.value else FLOAT
        position = _AS_INPUT.get(node.op, -1)
        has_input = 0 <= position < len(node.inputs)
        return self.types.get(node.inputs[position], 0) if has_input else 0

    def _is_never_negative(self, node: Node) -> bool:
        if node.op in ("Shape", "Size"):
            return True
        if node.op == "Cast":
            return node.to == INT64 and self._are_never_negative(node.inputs[:1])
        if node.op == "Concat":
            return self._are_never_negative(node.inputs)
        return node.op in _MOVES and self._are_never_negative(node.inputs[:1])

    def _are_never_negative(self, names: list[str]) -> bool:
        return bool(names) and all(
            name in self.never_negative or self._is_constant_without(name, lambda value: value < 0)
            for name in names
        )

    def _is_constant_without(self, name: str, bad: Callable[[int], bool]) -> bool:
        constant = self.constants.get(name)
        if constant is None or constant.datatype not in _SIGNED:
            return False
        values = constant.values()
        return values is not None and not any(map(bad, values))

    def _check_division(self, node: Node) -> None:
        dividend, divisor = node.inputs
        types = {self.types.get(name) for name in (dividend, divisor, *node.outputs)}
        if not types & _SIGNED.keys():
            return
        traps = {0} if self._are_never_negative([dividend]) else {0, -1}
        if divisor in self.constants:
            if self._is_constant_without(divisor, lambda value: value in traps):
                return
        elif -1 not in traps or self._are_never_negative([divisor]):
            return
        name = node.name or next(iter(node.outputs), node.op)
        raise InvalidModel(
            f"node {shown(name)} ({node.op}) divides integers by a value that could be -1, which "
            "ends the process; divide by a constant other than 0 and -1, or cast to float",
            code="UNSAFE_INTEGER_DIVISION",
        )


def decode(datatype: int, raw: bytes) -> "array[int] | None":
    r"""Decode signed integers from a constant's raw_data; None for other types.

    >>> decode(7, b"\x02" + bytes(7)).tolist()
    [2]
    """
    code = _SIGNED.get(datatype)
    if code is None or len(raw) % array(code).itemsize:
        return None
    return array(code, raw)
