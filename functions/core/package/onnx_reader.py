"""What an ONNX file says about itself, read without a parser of ONNX: a bounded walk over protobuf's wire format.

It comes before every native parser, so that what crashes, hangs or bloats those never reaches them. Only lengths are
followed and only what is asked for is decoded: a file of gigabytes costs its structure, not its weights. Field numbers:
onnx/onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto). What may be in it: `onnx_limits.py`.
"""

import math
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits
from functions.core.package.integer_division import Constant, Graph, Node, check_divisions, decode

MANIFEST_KEY = "mayfly.manifest"
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINTS = rb"(?:%b[\x80-\xff]{0,9}+[\x00-\x7f])++"  # one field many times over
_ATTRIBUTE_RUNS = {
    0x40: re.compile(_VARINTS % b"\x40"),
    0x3D: re.compile(rb"(?:\x3d.{4})++", re.DOTALL),
}
_TENSOR_RUNS = {
    0x25: re.compile(rb"(?:\x25.{4})++", re.DOTALL),  # float_data
    0x28: re.compile(_VARINTS % rb"\x28"),  # int32_data
    0x38: re.compile(_VARINTS % rb"\x38"),  # int64_data
    0x51: re.compile(rb"(?:\x51.{8})++", re.DOTALL),  # double_data
    0x58: re.compile(_VARINTS % rb"\x58"),  # uint64_data
}


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """`external` names the files with weights outside this one and the bytes that each has to have at least.

    `unranked` are the inputs and outputs without a shape. `refuses_empty`: a tensor without elements ends the process.
    """

    ir_version: int
    opset: int
    producer: str
    metadata: dict[str, str]
    external: dict[str, int]
    nodes: int
    unranked: frozenset[str] = frozenset()
    refuses_empty: bool = False


def read_onnx(path: Path) -> OnnxFile:
    """Describe the model at `path`.

    Raises:
        InvalidModel: it is empty, truncated or no ONNX model, or has something that the limits do not allow.
    """
    size = path.stat().st_size
    if size == 0:
        raise InvalidModel("the file is empty", code="EMPTY_FILE")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        try:
            found = walk.model(size)
        except UnicodeDecodeError as error:
            raise _not_onnx("a text in it is not UTF-8") from error
        check_divisions(
            walk.graph
        )  # while the file is open: constants are decoded when they are needed
        return found


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    datatype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    typed: tuple[int, int, int] | None = None  # field number, start, end of packed values
    typed_most: int = 0  # how many elements the typed fields can hold at most
    strings: int = 0
    external: dict[str, str] = field(default_factory=dict)
    outside: bool = False


class _Walk:
    def __init__(self, data: Any) -> None:
        self._data = data
        self._external: dict[str, int] = {}
        self._nodes = 0
        self._initializers = 0
        self._constant_bytes = 0
        self._fields_left = limits.FIELDS
        self._unranked: set[str] = set()
        self.graph = Graph()
        self._refuses_empty = False

    # --- messages -----------------------------------------------------------------------------------------------------

    def model(self, size: int) -> OnnxFile:
        ir_version, producer, graph = 0, ["", ""], None
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        entries = metadata_bytes = 0
        for number, kind, start, end in self._fields(0, size):
            match number, kind:
                case 1, 0:
                    ir_version = start
                case ((2 | 3), 2):
                    producer[number - 2] = self._text(
                        start, min(end, start + 4 * limits.NAME), "replace"
                    )
                case 7, 2:
                    if graph:
                        raise _not_onnx("it holds two graphs")
                    graph = start, end
                case 8, 2:
                    domain, version = self._opset(start, end)
                    if domain in opsets:
                        raise _opset(f"the model imports the operators of {shown(domain)} twice")
                    opsets[domain] = version
                case 14, 2:
                    metadata_bytes += end - start
                    entries += 1
                    if entries > limits.METADATA_ENTRIES or metadata_bytes > limits.METADATA_BYTES:
                        raise _complex(
                            f"the metadata has over {limits.METADATA_ENTRIES} entries or {limits.METADATA_BYTES} bytes"
                        )
                    key, value = self._entry(start, end)
                    metadata[key] = value
                case 20, 2:
                    raise InvalidModel(
                        "the file holds training information; export it for inference",
                        code="TRAINING",
                    )
                case 25, 2:
                    raise InvalidModel(
                        "the model has local functions; export it with them inlined (onnx.inliner)",
                        code="LOCAL_FUNCTIONS",
                    )
        if not graph or not ir_version:
            raise _not_onnx("it holds no graph" if ir_version else "it has no IR version")
        if ir_version not in limits.IR_VERSIONS:
            raise _opset(
                f"the IR version is {shown(ir_version)}, and {limits.IR_VERSIONS[0]} to {limits.IR_VERSIONS[-1]} "
                "can be read"
            )
        opset = opsets.get("", 1)  # a file without one is of the first
        for domain, versions in (("", limits.OPSETS), ("ai.onnx.ml", limits.ML_OPSETS)):
            if domain in opsets and opsets[domain] not in versions:
                raise _opset(
                    f"opset {shown(opsets[domain])} of {shown(domain or 'ai.onnx')}, and {versions[0]} to "
                    f"{versions[-1]} can be run; export it anew"
                )
        self.graph = self._graph(*graph, 0)
        if ir_version < 4:  # every initializer is an input there, and none can be replaced
            self.graph.inputs.difference_update(self.graph.constants)
        return OnnxFile(
            ir_version,
            opset,
            " ".join(filter(None, producer)),
            metadata,
            self._external,
            self._nodes,
            frozenset(self._unranked),
            self._refuses_empty,
        )

    def _graph(self, start: int, end: int, depth: int) -> Graph:
        if depth > limits.SUBGRAPH_DEPTH:
            raise _complex(f"graphs are nested deeper than {limits.SUBGRAPH_DEPTH}")
        graph = Graph()
        outputs: set[str] = set()
        for number, kind, first, last in self._fields(start, end):
            if kind != _BYTES:
                continue
            if number == 1:
                graph.nodes.append(self._node(first, last, depth))
            elif number == 5:
                tensor = self._tensor(first, last)
                if tensor.name in graph.constants:
                    raise _twice("two initializers", tensor.name)
                self._initializers += 1
                if self._initializers > limits.INITIALIZERS:
                    raise _complex(f"the model has over {limits.INITIALIZERS} initializers")
                graph.constants[tensor.name] = self._constant(tensor)
            elif number == 15:
                raise _sparse()
            elif number in (11, 12, 13):
                name, datatype, ranked = self._value_info(
                    first, last, "input" if number == 11 else "output"
                )
                if number != 13:
                    seen = graph.inputs if number == 11 else outputs
                    if name in seen:
                        raise _twice("two inputs" if number == 11 else "two outputs", name)
                    seen.add(name)
                    if depth == 0 and not ranked:
                        self._unranked.add(name)
                if datatype:
                    graph.types[name] = datatype
        if max(len(graph.inputs - graph.constants.keys()), len(outputs)) > limits.TENSORS:
            raise _complex(f"a graph has over {limits.TENSORS} inputs or outputs")
        return graph

    def _node(self, start: int, end: int, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > limits.NODES:
            raise _complex(f"the model has over {limits.NODES} nodes")
        node, attributes = Node(), 0
        for number, kind, first, last in self._fields(start, end):
            if kind != _BYTES:
                continue
            if number in (1, 2):
                names = node.inputs if number == 1 else node.outputs
                names.append(self._name(first, last))
                if len(names) > limits.FAN:
                    raise _complex(
                        f"a node has over {limits.FAN} {'inputs' if number == 1 else 'outputs'}"
                    )
            elif number == 3:
                node.name = self._name(first, last)
            elif number == 4:
                node.op = self._name(first, last)
            elif number == 5:
                attributes += 1
                if attributes > limits.ATTRIBUTES:
                    raise _complex(f"a node has over {limits.ATTRIBUTES} attributes")
                self._attribute(first, last, depth, node)
            elif number == 7:
                node.domain = self._name(first, last)
        if node.domain not in limits.DOMAINS and not (
            node.domain == "com.microsoft" and node.op in limits.MICROSOFT
        ):
            raise InvalidModel(
                f"operator {shown(node.op)} of {shown(node.domain)} is no standard one; export the model with "
                "operators of ai.onnx and ai.onnx.ml",
                code="FOREIGN_OPERATOR",
            )
        self._refuses_empty |= node.op in limits.NEVER_EMPTY
        return node

    def _attribute(self, start: int, end: int, depth: int, node: Node) -> None:
        name, whole, values = "", 0, 0
        constant: Constant | None = None
        for number, kind, first, last in self._fields(start, end, _ATTRIBUTE_RUNS):
            if number == 3 and kind == _VARINT:
                whole = _signed(first)
            if kind != _BYTES:
                continue
            if number == 1:
                name = self._name(first, last)
            elif number in (5, 10):
                if number == 5 and constant:
                    raise _not_onnx("an attribute holds two tensors")
                constant = self._constant(self._tensor(first, last))
            elif number in (6, 11):
                values += 1
                if number == 6 and values > 1:
                    raise _not_onnx("an attribute holds two graphs")
                node.graphs.append(self._graph(first, last, depth + 1))
            elif number in (22, 23):
                raise _sparse()
        match name:
            case "to":
                node.to = whole & 0xFFFFFFFF
            case "fmod":
                node.fmod = whole == 1
            case "value":
                node.value = constant
            case "value_int" | "value_ints":
                node.value = Constant(7, _one(whole) if name == "value_int" else _unknown)

    def _tensor(self, start: int, end: int) -> _Tensor:
        tensor = _Tensor()
        for number, kind, first, last in self._fields(start, end, _TENSOR_RUNS):
            match number, kind:
                case 1, 0:
                    tensor.dims.append(_signed(first))
                case 1, 2:
                    tensor.dims += self._packed(first, last, limits.RANK)
                case 2, 0:
                    tensor.datatype = first & 0xFFFFFFFF
                case 6, 2:
                    tensor.strings += 1
                case 8, 2:
                    tensor.name = self._name(first, last)
                case 9, 2:
                    tensor.raw = first, last
                case ((4 | 5 | 7 | 10 | 11), 2):
                    tensor.typed = number, first, last
                    tensor.typed_most += last - first
                case ((4 | 5 | 7 | 10 | 11), _):
                    tensor.typed_most += last - first if kind == -1 else 1
                case 13, 2:
                    key, value = self._entry(first, last)
                    if key not in EXTERNAL_KEYS or key in tensor.external:
                        raise _tensor(
                            tensor, f"its place in another file is described by {shown(key)}"
                        )
                    tensor.external[key] = value
                case 14, 0:
                    tensor.outside = first & 0xFFFFFFFF == 1
            if len(tensor.dims) > limits.RANK:
                raise _complex(f"a constant has over {limits.RANK} dimensions")
        self._check_tensor(tensor)
        return tensor

    def _check_tensor(self, tensor: _Tensor) -> None:
        if any(not 0 <= size <= limits.DIMENSION for size in tensor.dims):
            raise _tensor(
                tensor,
                f"its dimensions are {shown(tensor.dims)}, and each has to be 0 to {limits.DIMENSION}",
            )
        elements = math.prod(tensor.dims)
        bits = limits.BITS.get(tensor.datatype)
        if bits is None and tensor.datatype != limits.STRING:
            raise _tensor(tensor, f"its type {shown(tensor.datatype)} does not exist")
        size = (elements * (bits or 8) + 7) // 8
        if size > limits.CONSTANT_BYTES:
            raise _tensor(tensor, f"it has {size} bytes, and {limits.CONSTANT_BYTES} are allowed")
        self._constant_bytes += size
        if self._constant_bytes > limits.CONSTANTS_BYTES:
            raise _complex(f"the constants of the model have over {limits.CONSTANTS_BYTES} bytes")
        if tensor.external or tensor.outside:
            self._outside(tensor, size)
        elif bits is None:
            if tensor.raw or tensor.strings != elements:
                raise _tensor(
                    tensor, f"it holds {tensor.strings} strings, and its dimensions say {elements}"
                )
        elif tensor.raw:
            if tensor.raw[1] - tensor.raw[0] != size:
                raise _tensor(
                    tensor,
                    f"it holds {tensor.raw[1] - tensor.raw[0]} bytes, and its dimensions say {size}",
                )
        elif elements > tensor.typed_most * 8 // min(bits, 8):
            raise _tensor(
                tensor, f"it holds fewer values than the {elements} that its dimensions say"
            )

    def _outside(self, tensor: _Tensor, size: int) -> None:
        location = tensor.external.get("location")
        if (
            not location
            or tensor.raw
            or tensor.typed_most
            or tensor.strings
            or tensor.datatype == limits.STRING
        ):
            raise _tensor(
                tensor,
                "it is said to lie in another file, and does not say in which, or lies here, too",
            )
        numbers = [tensor.external.get("offset", "0"), tensor.external.get("length", str(size))]
        if not all(re.fullmatch(r"[0-9]{1,15}", number, re.ASCII) for number in numbers):
            raise _tensor(
                tensor,
                f"its place in another file is {shown(', '.join(numbers))}, which are no numbers",
            )
        offset, length = map(int, numbers)
        if length != size:
            raise _tensor(
                tensor, f"it has {length} bytes in another file, and its dimensions say {size}"
            )
        self._external[location] = max(offset + length, self._external.get(location, 0))

    def _constant(self, tensor: _Tensor) -> Constant:
        def values() -> "array[int] | None":
            elements = math.prod(tensor.dims)
            if elements > limits.DIVISOR_ELEMENTS or tensor.external:
                return None
            if tensor.raw:
                return decode(tensor.datatype, bytes(self._data[slice(*tensor.raw)]))
            if tensor.typed and tensor.typed[0] in (5, 7):
                found = array("q", self._packed(*tensor.typed[1:], limits.DIVISOR_ELEMENTS))
                return found if len(found) == elements else None  # else some came unpacked
            return None

        return Constant(tensor.datatype, values)

    def _value_info(self, start: int, end: int, what: str) -> tuple[str, int, bool]:
        """Name, type of the elements (0 where unknown), and whether the rank is known."""
        name, datatype, shape, types = "", 0, None, 0
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                name = self._name(first, last)
            elif number == 2 and kind == _BYTES:  # TypeProto
                for field_number, wire, inner, outer in self._fields(first, last):
                    if wire != _BYTES or field_number not in (1, 4, 5, 7, 8, 9):
                        continue
                    types += 1
                    if types > 1:
                        raise _not_onnx(f"{what} {shown(name)} has two types")
                    if field_number == 1:
                        datatype, shape = self._tensor_type(inner, outer)
        if shape is not None and (
            len(shape) > limits.RANK or any(not -1 <= size <= limits.DIMENSION for size in shape)
        ):
            raise InvalidModel(
                f"{what} {shown(name)} has {len(shape)} dimensions {shown(shape)}; {limits.RANK} are allowed, "
                f"each up to {limits.DIMENSION}, or -1 for one that requests choose",
                code="BAD_SHAPE",
            )
        return name, datatype, shape is not None

    def _tensor_type(self, start: int, end: int) -> tuple[int, list[int] | None]:
        datatype, shape = 0, None
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _VARINT:
                datatype = first & 0xFFFFFFFF
            elif number == 2 and kind == _BYTES:
                shape = [] if shape is None else shape
                for field_number, wire, inner, outer in self._fields(first, last):
                    if field_number == 1 and wire == _BYTES:
                        shape.append(self._dimension(inner, outer))
                        if len(shape) > 2 * limits.RANK:
                            return datatype, shape
        return datatype, shape

    def _dimension(self, start: int, end: int) -> int:
        size = -1
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _VARINT:
                size = _signed(first)
            elif number == 2 and kind == _BYTES:
                self._name(first, last)
        return size

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                domain = self._name(first, last)
            elif number == 2 and kind == _VARINT:
                version = first
        return "" if domain == "ai.onnx" else domain, version

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        pair = ["", ""]
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                pair[0] = self._name(first, last)
            elif number == 2 and kind == _BYTES:
                pair[1] = self._text(first, last)
        return pair[0], pair[1]

    # --- fields -------------------------------------------------------------------------------------------------------

    def _name(self, start: int, end: int) -> str:
        name = self._text(
            start,
            min(end, start + 4 * limits.NAME + 4),
            "strict" if end - start <= 4 * limits.NAME else "replace",
        )
        if len(name) > limits.NAME or not name.isprintable():
            raise InvalidModel(
                f"the name {shown(name)} is over {limits.NAME} characters long or not printable",
                code="BAD_NAME",
            )
        return name

    def _text(self, start: int, end: int, errors: str = "strict") -> str:
        return bytes(self._data[start:end]).decode("utf-8", errors)

    def _packed(self, at: int, end: int, most: int) -> list[int]:
        values: list[int] = []
        while at < end and len(values) <= most:
            value, at = self._varint(at, end)
            values.append(_signed(value))
        return values

    def _fields(
        self, at: int, end: int, runs: "dict[int, re.Pattern[bytes]] | None" = None
    ) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, start, end) of every field; for numbers, start is the value.

        Fields in `runs` come once for all their repetitions in a row, with wire type -1.
        """
        data = self._data
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _complex(f"the file has over {limits.FIELDS} fields")
            tag = data[at]
            if runs and tag in runs:
                run = runs[tag].match(data, at, end)
                if run is None:
                    raise _truncated(at, end - at)
                yield tag >> 3, -1, at, run.end()
                at = run.end()
                continue
            if tag < 0x80:
                at += 1
            else:
                tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if number == 0 or tag >> 32:
                raise _not_onnx(f"byte {at} is no field of a protobuf message")
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, at
                continue
            if kind == _BYTES:
                length, at = self._varint(at, end)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise _not_onnx(f"byte {at} is no field of a protobuf message")
            if at + length > end:
                raise _truncated(at, length)
            yield number, kind, at, at + length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data, value = self._data, 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise InvalidModel(
                    "the file ends inside a number: it is truncated; upload it again",
                    code="TRUNCATED",
                )
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at
        raise _not_onnx(f"the number that ends at byte {at} is too long")


def _signed(value: int) -> int:
    """An int64 of the wire."""
    return value - (1 << 64) if value >> 63 else value


def _one(value: int) -> Any:
    return lambda: array("q", [value])


def _unknown() -> None:
    return None


def _not_onnx(why: str) -> InvalidModel:
    return InvalidModel(
        f"the file is no ONNX model: {why}; upload what torch.onnx or skl2onnx wrote",
        code="NOT_ONNX",
    )


def _truncated(at: int, length: int) -> InvalidModel:
    return InvalidModel(
        f"the file ends inside a field that begins at byte {at} and has {length} bytes: it is truncated, or no ONNX "
        "model; upload it again",
        code="TRUNCATED",
    )


def _complex(why: str) -> InvalidModel:
    return InvalidModel(f"{why}: more than any real model needs", code="TOO_COMPLEX")


def _opset(why: str) -> InvalidModel:
    return InvalidModel(why, code="UNSUPPORTED_OPSET")


def _sparse() -> InvalidModel:
    return InvalidModel(
        "the model has sparse constants; export it with dense ones", code="SPARSE_CONSTANT"
    )


def _twice(what: str, name: str) -> InvalidModel:
    return InvalidModel(f"{what} are called {shown(name)}; rename one", code="DUPLICATE_NAME")


def _tensor(tensor: _Tensor, why: str) -> InvalidModel:
    return InvalidModel(
        f"the constant {shown(tensor.name)} cannot be read: {why}", code="BAD_CONSTANT"
    )
