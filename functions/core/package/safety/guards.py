"""Nodes added to ONNX graphs to fail on inputs that crash operators.

A guard is a group of nodes before an operator. It fails, with an error that names the input, if the
input is an empty tensor (no elements), or 0 where another number is required: it divides by the
count or number, and ONNX Runtime reports an integer division by zero. Otherwise the operator gets
the same tensor, not a copy of it.

The operators that need guards: operator_needs.py.
"""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel
from functions.core.package import onnx_limits as limits
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_graph import INT64, Node
from functions.core.package.onnx_tensor import read_tensor
from functions.core.package.onnx_wire import WireReader, encode_field, encode_varint
from functions.core.package.safety.onnx_types import BOOL
from functions.core.package.safety.operator_needs import Need, Scope, may_need, needs

Part = bytes | range  # content, or the place in the file that holds it

OPSET = 7  # the least in which integers are divided
_NEWEST_OPSET = 17  # for the guards, if a file imports no standard operators
_BODIES = {"If", "Loop", "Scan", "SequenceMap"}  # operators with subgraphs
_RUNS = {**wire.runs(wire.VARINT, 8), **wire.runs(wire.FIXED32, 7)}  # attributes: ints and floats


def add_guards(path: Path) -> list[str]:
    """Add input checks (guards) to an ONNX file; return the guarded operators.

    Raises:
        InvalidModel: `UNSAFE_OPERATOR`: the model's opset cannot express them.
    """
    guarding = _read(path.read_bytes())
    if guarding.operators:
        guarding.check_opset()
        path.write_bytes(guarding.content())
    return sorted(guarding.operators)


def operators_to_guard(path: Path) -> list[str]:
    """Return the operators in an ONNX file that need input checks."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return sorted(_read(data).operators)


def _read(data: Any) -> "_Guarding":
    guarding = _Guarding(WireReader(data))
    guarding.read_model(len(data))
    return guarding


@dataclass(slots=True)
class _Guarding:
    """Rewriter that adds input checks (guards) to an ONNX file."""

    reader: WireReader
    operators: set[str] = field(default_factory=set)
    _parts: list[Part] = field(default_factory=list)
    _ir_version: int = 0
    _opset: int | None = None
    _guards: int = 0
    _prefix: str = "mayfly_guard"

    def read_model(self, size: int) -> None:
        while self.reader.data.find(self._prefix.encode()) >= 0:  # a served model, uploaded again
            self._prefix += "_"
        for number, kind, start, end in self.reader.fields(0, size):
            if number == 1 and kind == wire.VARINT:
                self._ir_version = start
            elif number == 8 and kind == wire.BYTES:
                self._read_opset(start, end)
        self._parts = self._edited(0, size, self._model_field)

    def content(self) -> bytes:
        """Return the ONNX file's bytes with the added input checks."""
        data = self.reader.data
        edited = b"".join(
            part if isinstance(part, bytes) else data[part.start : part.stop]
            for part in self._parts
        )
        if self._opset is None:
            edited += encode_field(8, b"\x10" + encode_varint(_NEWEST_OPSET))
        return edited

    def check_opset(self) -> None:
        if self._opset is not None and self._opset < OPSET:
            names = ", ".join(sorted(self.operators))
            raise InvalidModel(
                f"a tensor without elements would crash {names}, and opset {self._opset} cannot "
                f"check for it; convert the model to opset {OPSET} or above",
                code="UNSAFE_OPERATOR",
            )

    def _read_opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, kind, first, last in self.reader.fields(start, end):
            if number == 1 and kind == wire.BYTES:
                domain = self.reader.text(first, last, "replace")
            elif number == 2 and kind == wire.VARINT:
                version = first
        if domain in ("", "ai.onnx"):
            self._opset = version

    def _edited(
        self, start: int, end: int, edit: Callable[[int, int, int], list[Part] | None]
    ) -> list[Part]:
        """Return a protobuf message's byte chunks, with fields replaced by `edit`.

        `edit` returns the chunks of a changed field, or None to keep it.
        """
        parts: list[Part] = []
        kept = begin = start
        for number, kind, first, last in self.reader.fields(start, end, _RUNS):
            edited = edit(number, first, last) if kind == wire.BYTES else None
            if edited is not None:
                parts += [range(kept, begin), *edited]
                kept = last
            begin = last
        return [*parts, range(kept, end)]

    def _model_field(self, number: int, start: int, end: int) -> list[Part] | None:
        return self._graph(7, start, end, {}) if number == 7 else None

    def _graph(self, number: int, start: int, end: int, outer: Mapping[str, int]) -> list[Part]:
        """Return a GraphProto field's byte chunks, with input checks added.

        `outer` maps the constants of enclosing graphs to their ranks.
        """
        hidden = self._defined(start, end)
        visible = {name: rank for name, rank in outer.items() if name not in hidden}
        scope = Scope({**visible, **self._constants(start, end)})

        def edit(inner: int, first: int, last: int) -> list[Part] | None:
            return self._node(first, last, scope) if inner == 1 else None

        return _field(number, self._edited(start, end, edit))

    def _constants(self, start: int, end: int) -> dict[str, int]:
        """Return the rank of each non-empty constant of a graph, by name."""
        constants: dict[str, int] = {}
        inputs: set[str] = set()
        for number, kind, first, last in self.reader.fields(start, end):
            if number == 5 and kind == wire.BYTES:
                tensor = read_tensor(self.reader, first, last)
                if tensor.elements:
                    constants[tensor.name] = len(tensor.dims)
            elif number == 11 and kind == wire.BYTES:
                inputs.update(self._texts(first, last, 1))
        # From version 4 on, a request may replace a constant that is listed as an input.
        listed = inputs if self._ir_version >= 4 else set()
        return {name: rank for name, rank in constants.items() if name not in listed}

    def _defined(self, start: int, end: int) -> set[str]:
        """Return names of a graph's inputs, initializers and node outputs."""
        fields = {1: 2, 5: 8, 11: 1}  # node: its outputs; initializer: its name; input: its name
        return {
            name
            for number, kind, first, last in self.reader.fields(start, end)
            if number in fields and kind == wire.BYTES
            for name in self._texts(first, last, fields[number])
        }

    def _texts(self, start: int, end: int, field_number: int) -> list[str]:
        return [
            self.reader.text(first, last, "replace")
            for number, kind, first, last in self.reader.fields(start, end, _RUNS)
            if number == field_number and kind == wire.BYTES
        ]

    def _node(self, start: int, end: int, scope: Scope) -> list[Part] | None:
        """Return a node and its input checks as byte chunks, or None.

        Return None if the node stays unchanged.
        """
        node = self._parse(start, end)
        if node.op in _BODIES and not node.domain:
            return _field(1, self._edited_bodies(start, end, scope.constants))
        parts: list[Part] = []
        renamed: dict[int, str] = {}
        for need in needs(node):
            if scope.is_open(node, need):
                name = renamed.get(need.position, node.inputs[need.position])
                key = name, need, "" if need.like is None else node.inputs[need.like]
                if key not in scope.guarded:
                    scope.guarded[key] = self._guarded(node, need, name, parts)
                renamed[need.position] = scope.guarded[key]
        scope.follow(node)
        if not renamed:
            return None
        self.operators.add(node.op)
        return [*parts, *_field(1, self._renamed(start, end, renamed))]

    def _parse(self, start: int, end: int) -> Node:
        """Parse a NodeProto; decode attributes only if input checks use them."""
        node, attributes = Node(), []
        for number, kind, first, last in self.reader.fields(start, end):
            match number, kind:
                case 1, wire.BYTES:
                    node.inputs.append(self.reader.text(first, last))
                case 2, wire.BYTES:
                    node.outputs.append(self.reader.text(first, last))
                case 4, wire.BYTES:
                    node.op = self.reader.text(first, last)
                case 5, wire.BYTES:
                    attributes.append((first, last))
                case 7, wire.BYTES:
                    domain = self.reader.text(first, last)
                    node.domain = "" if domain == "ai.onnx" else domain
        if may_need(node):
            for first, last in attributes:
                name = "".join(self._texts(first, last, 1)[:1])
                node.attributes[name] = self._attribute(first, last)
        return node

    def _attribute(self, start: int, end: int) -> int | str | list[int]:
        """Decode an AttributeProto: an integer, string or integer list, else 0."""
        integers: list[int] = []
        scalar: int | str = 0
        for number, kind, first, last in self.reader.fields(start, end):
            match number, kind:
                case 3, wire.VARINT:
                    scalar = wire.signed(first)
                case 4, wire.BYTES:
                    scalar = self.reader.text(first, last, "replace") or scalar
                case 8, wire.VARINT:
                    integers.append(wire.signed(first))
                case 8, wire.BYTES:
                    integers += self.reader.packed(first, last, limits.RANK)
        return integers or scalar

    def _edited_bodies(self, start: int, end: int, constants: Mapping[str, int]) -> list[Part]:
        def edit_attribute(number: int, first: int, last: int) -> list[Part] | None:
            return self._graph(number, first, last, constants) if number in (6, 11) else None

        def edit(number: int, first: int, last: int) -> list[Part] | None:
            if number != 5:
                return None
            return _field(5, self._edited(first, last, edit_attribute))

        return self._edited(start, end, edit)

    def _renamed(self, start: int, end: int, renamed: Mapping[int, str]) -> list[Part]:
        """Return a NodeProto's byte chunks with inputs renamed by position."""
        positions = iter(range(end - start))

        def edit(number: int, _first: int, _last: int) -> list[Part] | None:
            name = renamed.get(next(positions)) if number == 1 else None
            return None if name is None else [encode_field(1, name.encode())]

        return self._edited(start, end, edit)

    def _guarded(self, node: Node, need: Need, name: str, parts: list[Part]) -> str:
        """Append an input check's nodes to `parts`; return the checked tensor's name."""
        self._guards += 1
        prefix = f"{self._prefix}_{self._guards}"
        zero, checked, shape, guarded = (f"{prefix}_{part}" for part in ("0", "ok", "shape", "is"))
        divisor = name if need.is_number else self._count(node, need, prefix, parts)
        problem = (
            "0" if need.is_number else "empty" if need.least == 1 else "smaller than its kernel"
        )
        label = f"{prefix}: {node.op}: {node.inputs[need.position]} must not be {problem}"
        parts += [
            _encode_node("Sub", (divisor, divisor), zero),
            _encode_node("Div", (zero, divisor), checked, label),
        ]
        if need.is_number:
            parts.append(_encode_node("Add", (name, checked), guarded))
            return guarded
        parts += [
            _encode_node("Shape", (name,), f"{prefix}_sizes"),
            _encode_node("Add", (f"{prefix}_sizes", checked), shape),
            _encode_node("Reshape", (name, shape), guarded),
        ]
        return guarded

    def _count(self, node: Node, need: Need, prefix: str, parts: list[Part]) -> str:
        """Append nodes that count a tensor's elements; return the count's name."""
        name, count = node.inputs[need.position], f"{prefix}_count"
        if need.axis is not None:
            label = f"{prefix}: {node.op}: {name} must not lack axis {need.axis}"
            shape, axis = f"{prefix}_all_sizes", f"{prefix}_axis"
            parts += [
                _encode_node("Shape", (name,), shape),
                _encode_constant(need.axis, axis),
                _encode_node("Gather", (shape, axis), count, label),
            ]
            if need.least > 1:
                least, size, count = f"{prefix}_least", count, f"{prefix}_times"
                parts += [
                    _encode_constant(need.least, least),
                    _encode_node("Div", (size, least), count),
                ]
            return count
        parts.append(_encode_node("Size", (name,), count))
        if need.like is None:
            return count
        steps = [f"{prefix}_like_{step}" for step in ("size", "full", "empty", "1", "count")]
        parts += [
            _encode_node("Size", (node.inputs[need.like],), steps[0]),
            _encode_node("Cast", (steps[0],), steps[1], extra=_to(BOOL)),
            _encode_node("Not", (steps[1],), steps[2]),
            _encode_node("Cast", (steps[2],), steps[3], extra=_to(INT64)),
            _encode_node("Add", (count, steps[3]), steps[4]),
        ]
        return steps[4]


def _field(number: int, parts: list[Part]) -> list[Part]:
    size = sum(map(len, parts))
    return [encode_varint(number << 3 | wire.BYTES) + encode_varint(size), *parts]


def _encode_node(
    operator: str, inputs: tuple[str, ...], output: str, name: str = "", extra: bytes = b""
) -> bytes:
    """Encode a NodeProto as a field of a GraphProto."""
    texts = [*((1, text) for text in inputs), (2, output), (3, name), (4, operator)]
    return encode_field(1, b"".join(encode_field(at, text.encode()) for at, text in texts) + extra)


def _encode_constant(value: int, output: str) -> bytes:
    """Encode an ONNX Constant node that holds one 64-bit integer."""
    content = b"\x10" + bytes([INT64]) + encode_field(9, value.to_bytes(8, "little", signed=True))
    is_tensor = b"\xa0\x01\x04"  # field 20, type: TENSOR
    attribute = encode_field(1, b"value") + encode_field(5, content) + is_tensor
    return _encode_node("Constant", (), output, extra=encode_field(5, attribute))


def _to(datatype: int) -> bytes:
    """Encode the `to` attribute of a Cast node as a NodeProto field."""
    is_integer = b"\xa0\x01\x02"  # field 20, type: INT
    return encode_field(5, encode_field(1, b"to") + b"\x18" + bytes([datatype]) + is_integer)
