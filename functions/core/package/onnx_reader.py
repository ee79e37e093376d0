"""Pure-Python ONNX parser that checks an untrusted file against structural limits.

The limits are in `onnx_limits.py`. The parser runs before every native one, so that files which
crash, hang or bloat native parsers never reach them. Field numbers are those of onnx/onnx.proto.
Why onnx.load does not do this: docs/decisions/0017-the-onnx-reader.md.
"""

import mmap
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits
from functions.core.package import onnx_tensor as tensors
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_graph import INT64, Constant, Graph, Node
from functions.core.package.onnx_rewrite import Rewrite
from functions.core.package.onnx_tensor import Tensor
from functions.core.package.onnx_value import read_value
from functions.core.package.onnx_wire import WireReader, not_onnx, too_complex
from functions.core.package.safety.attribute_ranges import check_attributes
from functions.core.package.safety.divisions import check_divisions

MANIFEST_KEY = "mayfly.manifest"

_ATTRIBUTE_LISTS = {
    **wire.runs(wire.FIXED32, 7),  # floats
    **wire.runs(wire.VARINT, 8),  # ints
    **wire.runs(wire.BYTES, 9),  # strings
}
# f, i, s, t, g, floats, ints, strings, tensors, graphs, tp, type_protos
_ATTRIBUTE_VALUES = {*range(2, 12), 14, 15}
_DOMAIN_BYTES = 64  # read of a domain's name; those that matter are shorter


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """Facts about a checked ONNX file: opset, metadata, external weights, node count."""

    ir_version: int
    opset: int
    producer: str
    metadata: dict[str, str]
    external: dict[str, int]  # location of each weight file -> least size in bytes
    nodes: int
    unranked: frozenset[str] = frozenset()  # inputs and outputs without a shape
    # location of each weight file -> positions of its text in the file
    locations: Mapping[str, list[int]] = field(default_factory=dict)
    rewrite: Rewrite = field(default_factory=Rewrite)  # changes before it is served


@dataclass(slots=True)
class _Header:
    """Top-level fields of an ONNX ModelProto, with its graph's byte range."""

    ir_version: int = 0
    producer: list[str] = field(default_factory=lambda: ["", ""])  # name, version
    graph: tuple[int, int] | None = None
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    metadata_entries: int = 0
    metadata_bytes: int = 0


def read_onnx(path: Path) -> OnnxFile:
    """Parse an ONNX file and check its structure against the limits.

    Raises:
        InvalidModel: it is empty, truncated or no ONNX model, or the limits do not allow it.
    """
    size = path.stat().st_size
    if size == 0:
        raise InvalidModel("the file is empty", code="EMPTY_FILE")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _ModelReader(data)
        try:
            model = reader.read(size)
        except UnicodeDecodeError as error:
            raise not_onnx("a text in it is not UTF-8") from error
        check_divisions(reader.graph)  # decodes constants, so the file has to be open
        return model


class _ModelReader:
    """Parser of one ONNX file, counting nodes and constants for the limits."""

    def __init__(self, data: Any) -> None:
        self.graph = Graph()
        self._wire = WireReader(data)
        self._rewrite = Rewrite()
        self._external: dict[str, int] = {}
        self._locations: dict[str, list[int]] = {}
        self._nodes = 0
        self._initializers = 0
        self._constant_bytes = 0
        self._unranked: set[str] = set()

    def read(self, size: int) -> OnnxFile:
        header = self._header(size)
        if not header.graph or not header.ir_version:
            raise not_onnx("it holds no graph" if header.ir_version else "it has no IR version")
        _check_versions(header)
        self.graph = self._graph(*header.graph, depth=0)
        if header.ir_version < 4:  # each initializer is an input that requests cannot set
            for name in self.graph.constants:
                self.graph.inputs.pop(name, None)
        return OnnxFile(
            header.ir_version,
            header.opsets.get("", limits.OPSETS[-1]),  # the runtime takes the newest
            " ".join(filter(None, header.producer)),
            header.metadata,
            self._external,
            self._nodes,
            frozenset(self._unranked),
            self._locations,
            self._rewrite,
        )

    def _header(self, size: int) -> _Header:
        header = _Header()
        for number, kind, start, end in self._wire.fields(0, size):
            match number, kind:
                case 1, wire.VARINT:  # ir_version
                    header.ir_version = start
                case ((2 | 3), wire.BYTES):  # producer_name, producer_version
                    text = self._wire.text(start, min(end, start + 4 * limits.NAME), "replace")
                    header.producer[number - 2] = text
                case 7, wire.BYTES:  # graph
                    if header.graph:
                        raise not_onnx("it holds two graphs")
                    header.graph = start, end
                case 8, wire.BYTES:  # opset_import
                    self._add_opset(header, start, end)
                case 14, wire.BYTES:  # metadata_props
                    self._add_metadata(header, start, end)
                case 20, wire.BYTES:  # training_info
                    self._rewrite.drop_training(start, end)
                case 25, wire.BYTES:  # functions
                    raise InvalidModel(
                        "the model has local functions; export it with them inlined (onnx.inliner)",
                        code="LOCAL_FUNCTIONS",
                    )
        return header

    def _add_opset(self, header: _Header, start: int, end: int) -> None:
        """Parse an OperatorSetIdProto (operator domain and version) into the header.

        Of two versions of a domain the runtime takes the last one. Imports of domains that no
        node uses are harmless.
        """
        domain, version = "", 0
        for number, kind, first, last in self._wire.fields(start, end):
            if number == 1 and kind == wire.BYTES:
                domain = self._wire.text(first, min(last, first + _DOMAIN_BYTES), "replace")
            elif number == 2 and kind == wire.VARINT:
                version = first
        header.opsets["" if domain == "ai.onnx" else domain] = version

    def _add_metadata(self, header: _Header, start: int, end: int) -> None:
        header.metadata_entries += 1
        header.metadata_bytes += end - start
        entries, size = limits.METADATA_ENTRIES, limits.METADATA_BYTES
        if header.metadata_entries > entries or header.metadata_bytes > size:
            raise too_complex(f"the metadata has over {entries} entries or {size} bytes")
        key, value, _ = self._wire.entry(start, end)
        if key in header.metadata:  # readers disagree on which of the two counts
            raise InvalidModel(
                f"the metadata have the key {shown(key)} twice; remove one", code="DUPLICATE_NAME"
            )
        header.metadata[key] = value

    def _graph(self, start: int, end: int, depth: int) -> Graph:
        """Parse a GraphProto (ONNX graph) nested in `depth` other graphs."""
        if depth > limits.SUBGRAPH_DEPTH:
            raise too_complex(f"graphs are nested deeper than {limits.SUBGRAPH_DEPTH}")
        graph = Graph()
        places: list[tuple[str, int, int]] = []  # outputs and inner values
        for number, kind, first, last in self._wire.fields(start, end):
            match number, kind:
                case 1, wire.BYTES:  # node
                    node = self._node(first, last, depth)
                    graph.nodes.append(node)
                    self._rewrite.add_node(self._wire, node, first, last, depth)
                case 5, wire.BYTES:  # initializer
                    self._add_initializer(graph, first, last)
                case 11, wire.BYTES:  # input
                    self._add_value(graph, graph.inputs, "input", first, last, depth)
                case 12, wire.BYTES:  # output
                    name = self._add_value(graph, graph.outputs, "output", first, last, depth)
                    places.append((name, first, last))
                case 13, wire.BYTES:  # value_info
                    name = self._add_value(graph, None, "output", first, last, depth)
                    places.append((name, first, last))
                case 15, wire.BYTES:  # sparse_initializer
                    raise _sparse()
        free = graph.inputs.keys() - graph.constants.keys()
        if max(len(free), len(graph.outputs)) > limits.TENSORS:
            raise too_complex(f"a graph has over {limits.TENSORS} inputs or outputs")
        if not depth:
            self._rewrite.cut_zipmaps(self._wire, places, graph.outputs)
        return graph

    def _add_initializer(self, graph: Graph, start: int, end: int) -> None:
        tensor = self._tensor(start, end)
        if tensor.name in graph.constants:
            raise _duplicate("two initializers", tensor.name)
        self._initializers += 1
        if self._initializers > limits.INITIALIZERS:
            raise too_complex(f"the model has over {limits.INITIALIZERS} initializers")
        graph.constants[tensor.name] = tensors.constant(self._wire, tensor)

    def _add_value(
        self,
        graph: Graph,
        names: dict[str, None] | None,
        role: str,
        start: int,
        end: int,
        depth: int,
    ) -> str:
        """Parse a ValueInfoProto; record the declared value and return its name.

        `names` collects the names of inputs or outputs; it is None for inner values.
        """
        value = read_value(self._wire, start, end, role)
        if names is not None:
            if value.name in names:
                raise _duplicate(f"two {role}s", value.name)
            names[value.name] = None
            if depth == 0:
                wire.check_name(value.name)
                if value.shape is None:
                    self._unranked.add(value.name)
        if graph.types.setdefault(value.name, value.datatype) != value.datatype:
            if graph.types[value.name] and value.datatype:  # the runtime takes the first one
                raise InvalidModel(
                    f"{shown(value.name)} is declared with two types; remove one declaration",
                    code="DUPLICATE_NAME",
                )
            graph.types[value.name] = graph.types[value.name] or value.datatype
        return value.name

    def _node(self, start: int, end: int, depth: int) -> Node:
        """Parse a NodeProto (one operator call) and check it against the limits."""
        self._nodes += 1
        if self._nodes > limits.NODES:
            raise too_complex(f"the model has over {limits.NODES} nodes")
        node, attributes = Node(), list[tuple[int, int]]()
        for number, kind, first, last in self._wire.fields(start, end):
            match number, kind:
                case 1, wire.BYTES:  # input
                    self._add_name(node.inputs, "inputs", first, last)
                case 2, wire.BYTES:  # output
                    self._add_name(node.outputs, "outputs", first, last)
                case 3, wire.BYTES:  # name
                    node.name = self._wire.text(first, last)
                case 4, wire.BYTES:  # op_type
                    node.op = self._wire.name(first, last)
                case 5, wire.BYTES:  # attribute
                    attributes.append((first, last))
                    if len(attributes) > limits.ATTRIBUTES:
                        raise too_complex(f"a node has over {limits.ATTRIBUTES} attributes")
                    self._add_attribute(node, first, last, depth)
                case 7, wire.BYTES:  # domain
                    node.domain = self._wire.name(first, last)
        if not limits.is_allowed(node.domain, node.op):
            reason = limits.refusal(node.domain, node.op)
            raise InvalidModel(
                f"operator {shown(node.op)} of {shown(node.domain)} is not served: {reason}; "
                "export the model with operators of ai.onnx and ai.onnx.ml",
                code="FOREIGN_OPERATOR",
            )
        check_attributes(self._wire, node, attributes)
        return node

    def _add_name(self, names: list[str], role: str, start: int, end: int) -> None:
        names.append(self._wire.text(start, end))
        if len(names) > limits.FAN:
            raise too_complex(f"a node has over {limits.FAN} {role}")

    def _add_attribute(self, node: Node, start: int, end: int, depth: int) -> None:
        """Parse an AttributeProto and add its constants and subgraphs to `node`."""
        name, integer, graphs = "", 0, 0
        constant: Constant | None = None
        filled: set[int] = set()  # fields with a value; some exporters write zeros, too
        for number, kind, first, last in self._wire.fields(start, end, _ATTRIBUTE_LISTS):
            if number in _ATTRIBUTE_VALUES and self._is_filled(kind, first, last):
                filled.add(number)
            match number, kind:
                case 1, wire.BYTES:  # name
                    name = self._wire.name(first, last)
                case 3, wire.VARINT:  # i
                    integer = wire.signed(first)
                case ((5 | 10), wire.BYTES):  # t, tensors
                    if number == 5 and constant:
                        raise not_onnx("an attribute holds two tensors")
                    constant = tensors.constant(self._wire, self._tensor(first, last))
                case ((6 | 11), wire.BYTES):  # g, graphs
                    graphs += 1
                    if number == 6 and graphs > 1:
                        raise not_onnx("an attribute holds two graphs")
                    node.graphs.append(self._graph(first, last, depth + 1))
                case ((22 | 23), wire.BYTES):  # sparse_tensor, sparse_tensors
                    raise _sparse()
        if len(filled) > 1:  # the runtime reads the one that its type names
            raise not_onnx(f"attribute {shown(name)} has values of two kinds")
        if name in node.attributes:
            raise _duplicate("two attributes of a node", name)
        node.attributes[name] = integer
        match name:
            case "value":
                node.value = constant
            case "value_int":
                node.value = Constant(INT64, lambda: array("q", [integer]))
            case "value_ints":
                node.value = Constant(INT64, lambda: None)

    def _is_filled(self, kind: int, start: int, end: int) -> bool:
        if kind == wire.VARINT:
            return start != 0
        return any(self._wire.data[start:end]) if kind == wire.FIXED32 else end > start

    def _tensor(self, start: int, end: int) -> Tensor:
        """Parse a constant (TensorProto) and check its size and data location."""
        tensor = tensors.read_tensor(self._wire, start, end)
        size = tensor.size_bytes()
        if tensor.external or tensor.is_external:
            name, position = tensor.external_end(size)
            self._external[name] = max(position, self._external.get(name, 0))
            self._locations.setdefault(name, []).append(tensor.location_at)
        else:
            tensor.check_values(size)
        self._constant_bytes += size
        if self._constant_bytes > limits.CONSTANTS_BYTES:
            raise InvalidModel(
                f"the constants of the model take over {limits.CONSTANTS_BYTES} bytes, and the "
                "largest function has as much memory; make the model smaller",
                code="TOO_LARGE_FOR_MEMORY",
            )
        return tensor


def _check_versions(header: _Header) -> None:
    allowed = limits.IR_VERSIONS
    if header.ir_version not in allowed:
        raise _bad_opset(
            f"the IR version is {shown(header.ir_version)}, and {allowed[0]} to {allowed[-1]} "
            "can be read"
        )
    for domain, allowed in (("", limits.OPSETS), ("ai.onnx.ml", limits.ML_OPSETS)):
        opset = header.opsets.get(domain)
        if opset is not None and opset not in allowed:
            raise _bad_opset(
                f"opset {shown(opset)} of {shown(domain or 'ai.onnx')}, and {allowed[0]} to "
                f"{allowed[-1]} can be run; export it anew"
            )


def _bad_opset(message: str) -> InvalidModel:
    return InvalidModel(message, code="UNSUPPORTED_OPSET")


def _sparse() -> InvalidModel:
    return InvalidModel(
        "the model has sparse constants; export it with dense ones", code="SPARSE_CONSTANT"
    )


def _duplicate(things: str, name: str) -> InvalidModel:
    return InvalidModel(f"{things} are called {shown(name)}; rename one", code="DUPLICATE_NAME")
