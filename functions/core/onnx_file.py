"""What an ONNX file says about itself, read without a parser of ONNX: a walk over protobuf's wire format.

Only lengths are followed and only what is asked for is decoded, so a file of gigabytes costs its structure, not its
weights. Field numbers: onnx/onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functions.core.errors import InvalidModel

MANIFEST_KEY = "mayfly.manifest"
SUBGRAPH_DEPTH = 8
NODES = 20_000
METADATA_ENTRIES = 256
METADATA_BYTES = 8 * 1024 * 1024  # the manifest with its samples is the largest entry

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """`external` names the files with weights outside this one, `unranked` the inputs and outputs without a shape."""

    ir_version: int
    opset: int
    producer: str
    metadata: dict[str, str]
    external: tuple[str, ...]
    nodes: int
    unranked: frozenset[str] = frozenset()


def read_onnx(path: Path) -> OnnxFile:
    """Describe the model at `path`.

    Raises:
        InvalidModel: `EMPTY_FILE`, `NOT_ONNX`, `TRUNCATED` or `TOO_COMPLEX`.
    """
    size = path.stat().st_size
    if size == 0:
        raise InvalidModel("the file is empty", code="EMPTY_FILE")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        try:
            return walk.model(size)
        except UnicodeDecodeError as error:
            raise _not_onnx("a text in it is not UTF-8") from error


class _Walk:
    def __init__(self, data: Any) -> None:
        self._data = data
        self._external: dict[str, None] = {}
        self._nodes = 0
        self._unranked: set[str] = set()

    def model(self, size: int) -> OnnxFile:
        ir_version, producer, has_graph = 0, ["", ""], False
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        for number, kind, start, end in self._fields(0, size):
            match number, kind:
                case 1, 0:
                    ir_version = start
                case ((2 | 3), 2):
                    producer[number - 2] = self._text(start, end)
                case 7, 2:
                    has_graph = True
                    self._graph(start, end, 0)
                case 8, 2:
                    domain, version = self._opset(start, end)
                    opsets[domain] = max(version, opsets.get(domain, 0))
                case 14, 2:
                    if len(metadata) == METADATA_ENTRIES or end - start > METADATA_BYTES:
                        raise InvalidModel(
                            f"the metadata has over {METADATA_ENTRIES} entries or one over {METADATA_BYTES} bytes",
                            code="TOO_COMPLEX",
                        )
                    key, value = self._entry(start, end)
                    metadata[key] = value
        if not has_graph or not ir_version:
            raise _not_onnx("it holds no graph" if ir_version else "it has no IR version")
        opset = opsets.get("", opsets.get("ai.onnx", 0))
        return OnnxFile(
            ir_version,
            opset,
            " ".join(filter(None, producer)),
            metadata,
            tuple(self._external),
            self._nodes,
            frozenset(self._unranked),
        )

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > SUBGRAPH_DEPTH:
            raise InvalidModel(f"graphs are nested deeper than {SUBGRAPH_DEPTH}", code="TOO_COMPLEX")
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                self._nodes += 1
                if self._nodes > NODES:
                    raise InvalidModel(f"the graph has over {NODES} nodes", code="TOO_COMPLEX")
                for field, wire, inner, outer in self._fields(first, last):
                    if field == 5 and wire == _BYTES:
                        self._attribute(inner, outer, depth)
            elif number == 5 and kind == _BYTES:
                self._tensor(first, last)
            elif number == 15 and kind == _BYTES:
                self._sparse(first, last)
            elif number in (11, 12) and kind == _BYTES and depth == 0:
                self._value_info(first, last)

    def _value_info(self, start: int, end: int) -> None:
        name, ranked = "", False
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                name = self._text(first, last)
            elif number == 2 and kind == _BYTES:  # TypeProto
                for field, wire, inner, outer in self._fields(first, last):
                    if field == 1 and wire == _BYTES:  # tensor_type
                        ranked = any(number == 2 for number, *_ in self._fields(inner, outer))
        if not ranked:
            self._unranked.add(name)

    def _attribute(self, start: int, end: int, depth: int) -> None:
        for number, kind, first, last in self._fields(start, end):
            if kind != _BYTES:
                continue
            if number in (5, 10):
                self._tensor(first, last)
            elif number in (6, 11):
                self._graph(first, last, depth + 1)
            elif number in (22, 23):
                self._sparse(first, last)

    def _sparse(self, start: int, end: int) -> None:
        for number, kind, first, last in self._fields(start, end):
            if number in (1, 2) and kind == _BYTES:
                self._tensor(first, last)

    def _tensor(self, start: int, end: int) -> None:
        for number, kind, first, last in self._fields(start, end):
            if number == 13 and kind == _BYTES:
                key, value = self._entry(first, last)
                if key == "location":
                    self._external[value] = None

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, first, last in self._fields(start, end):
            if number == 1 and kind == _BYTES:
                domain = self._text(first, last)
            elif number == 2 and kind == _VARINT:
                version = first
        return domain, version

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        pair = ["", ""]
        for number, kind, first, last in self._fields(start, end):
            if number in (1, 2) and kind == _BYTES:
                pair[number - 1] = self._text(first, last)
        return pair[0], pair[1]

    def _text(self, start: int, end: int) -> str:
        return bytes(self._data[start:end]).decode("utf-8")

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, start, end) of every field; for numbers, start is the value."""
        while at < end:
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
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
                raise InvalidModel(
                    f"the file ends inside a field that begins at byte {at} and has {length} bytes: "
                    "it is truncated, or no ONNX model; upload it again",
                    code="TRUNCATED",
                )
            yield number, kind, at, at + length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise InvalidModel("the file ends inside a number: it is truncated; upload it again", code="TRUNCATED")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _not_onnx(f"the number that ends at byte {at} is too long")


def _not_onnx(why: str) -> InvalidModel:
    return InvalidModel(f"the file is no ONNX model: {why}; upload what torch.onnx or skl2onnx wrote", code="NOT_ONNX")
