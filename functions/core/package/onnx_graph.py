"""In-memory ONNX graph for checking uploads: nodes, types and constants."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INT32, INT64 = 6, 7  # TensorProto.DataType
# Signed TensorProto.DataType -> array type code
_SIGNED = {3: "b", 5: "h", INT32: "i", INT64: "q"}


@dataclass(slots=True)
class Node:
    """ONNX node (NodeProto), reduced to the fields that safety checks need."""

    op: str = ""
    name: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list["Graph"] = field(default_factory=list)
    value: "Constant | None" = None  # attribute of Constant and ConstantOfShape
    attributes: dict[str, Any] = field(default_factory=dict)  # by name; 0 if it was not decoded


@dataclass(frozen=True, slots=True)
class Constant:
    """Constant of an ONNX graph: its type and lazily decoded integers."""

    datatype: int
    values: Callable[[], "array[int] | None"]  # returns None for too many, or for another file's


@dataclass(slots=True)
class Graph:
    """ONNX graph: nodes, declared types, constants, and inputs and outputs in order."""

    nodes: list[Node] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: dict[str, None] = field(default_factory=dict)
    outputs: dict[str, None] = field(default_factory=dict)

    def defined(self) -> set[str]:
        """Return the names of values defined in this graph itself."""
        names = {name for node in self.nodes for name in node.outputs}
        return names.union(self.inputs, self.constants)


def decode(datatype: int, raw: bytes) -> "array[int] | None":
    r"""Decode signed integers from a constant's raw_data; None for other types.

    >>> decode(7, b"\x02" + bytes(7)).tolist()
    [2]
    """
    code = _SIGNED.get(datatype)
    if code is None or len(raw) % array(code).itemsize:
        return None
    return array(code, raw)
