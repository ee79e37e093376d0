"""Check of ONNX graphs for integer divisions that could crash the process.

INT_MIN / -1 raises SIGFPE on x86, which ends the process. onnxruntime 1.31.1 guards against
division by zero and not against this. A signed division is safe if its divisor is a constant free
of 0 and -1, or if one side cannot be negative because it comes from a shape. Types are
propagated forward (onnx_types.py); a division of unknown type is refused.

Inputs of other operators are checked when the model runs: guards.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from functions.core.errors import InvalidModel, shown
from functions.core.package.onnx_graph import INT32, INT64, Constant, Graph, Node
from functions.core.package.safety.onnx_types import body_inputs, output_types

_TRAPPING = {INT32, INT64}  # the processor divides narrower numbers as 32 bits
# Operators that copy values and make no new ones, as a ReduceMax of nothing does.
_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


def check_divisions(graph: Graph) -> None:
    """Refuse an ONNX graph whose integer divisions could crash the process.

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

    def check(self, graph: Graph) -> list[int]:
        """Check a graph and its subgraphs for unsafe divisions; return output types."""
        defined = graph.defined()  # other declared names belong to an outer graph
        self.types.update({n: t for n, t in graph.types.items() if t > 0 and n in defined})
        for name, constant in graph.constants.items():
            if name not in graph.inputs:  # a request may replace an initializer that is an input
                self._add_constant(name, constant)
        for node in graph.nodes:
            bodies = [self._check_body(node, inner) for inner in node.graphs]
            self._follow(node, bodies)
            if node.domain in ("", "ai.onnx"):
                self._check_node(node)
        return [self.types.get(name, 0) for name in graph.outputs]

    def _check_body(self, node: Node, body: Graph) -> list[int]:
        """Check a subgraph, whose names shadow those of the enclosing graph."""
        scope = _Scope(dict(self.types), dict(self.constants), set(self.never_negative))
        for name in body.defined():
            scope.types.pop(name, None)
            scope.constants.pop(name, None)
            scope.never_negative.discard(name)
        sources = body_inputs(node, len(body.inputs))
        for name, source in zip(body.inputs, sources, strict=False):
            scope.types[name] = self.types.get(source, 0)
        return scope.check(body)

    def _check_node(self, node: Node) -> None:
        is_division = node.op in ("Div", "Mod") and len(node.inputs) == 2
        if is_division and node.attributes.get("fmod") != 1:
            self._check_division(node)

    def _add_constant(self, name: str, constant: Constant) -> None:
        self.constants[name] = constant
        self.types[name] = constant.datatype

    def _follow(self, node: Node, bodies: list[list[int]]) -> None:
        """Record type and sign of a node's outputs, derived from its inputs."""
        is_standard = node.domain in ("", "ai.onnx")
        if is_standard and node.op == "Constant" and node.value and node.outputs:
            self._add_constant(node.outputs[0], node.value)
            return
        never_negative = is_standard and self._is_never_negative(node)
        kinds = output_types(node, self.types, bodies)
        for name, kind in zip(node.outputs, kinds, strict=True):
            if kind:
                self.types.setdefault(name, kind)
            if never_negative:
                self.never_negative.add(name)

    def _is_never_negative(self, node: Node) -> bool:
        if node.op in ("Shape", "Size"):
            return True
        if node.op == "Cast":
            is_int64 = node.attributes.get("to") == INT64
            return is_int64 and self._are_never_negative(node.inputs[:1])
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
        if constant is None or constant.datatype not in _TRAPPING:
            return False
        values = constant.values()
        return values is not None and not any(map(bad, values))

    def _check_division(self, node: Node) -> None:
        dividend, divisor = node.inputs
        names = (dividend, divisor, *node.outputs)
        kinds = {self.types.get(name, 0) for name in names} - {0}
        if kinds and not kinds & _TRAPPING:
            return
        traps = {0} if self._are_never_negative([dividend]) else {0, -1}
        if divisor in self.constants:
            if self._is_constant_without(divisor, lambda value: value in traps):
                return
        elif -1 not in traps or self._are_never_negative([divisor]):
            return
        raise _unsafe_division(node, is_typed=bool(kinds))


def _unsafe_division(node: Node, *, is_typed: bool) -> InvalidModel:
    problem = "divides integers" if is_typed else "divides what could be integers"
    return InvalidModel(
        f"node {_label(node)} ({node.op}) {problem} by a value that could be -1, which "
        "ends the process; divide by a constant other than 0 and -1, or cast both sides to float",
        code="UNSAFE_INTEGER_DIVISION",
    )


def _label(node: Node) -> str:
    return shown(node.name or next(iter(node.outputs), node.op))
