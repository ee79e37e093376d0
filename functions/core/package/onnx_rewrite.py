"""Rewriting of valid ONNX files that cannot be served unchanged.

Four things that exporters write are harmless and cannot be served as they are:

    ZipMap           turns a tensor of probabilities into a list of dictionaries; it is removed
    StringNormalizer asks for a locale that serving machines lack; it gets C.UTF-8
    training_info    is ignored by the runtime, which parses it unchecked; it is removed
    GroupQueryAttention may ask for one buffer of past and present as large as its window; it is
                     given all keys and values instead, of which it reads the same ones

Everything else stays byte for byte: the file is copied around the changed fields.
"""

import mmap
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_graph import Node
from functions.core.package.onnx_wire import WireReader, encode_field, encode_varint

LOCALE = "C.UTF-8"  # on every serving machine; changes case like en_US (decision 0030)
LABELS_BYTES = 128 * 1024  # class labels that a version's record has room for

_DEFAULT_LOCALE = "en_US"
# Locales of glibc in which the upper-case i has a dot.
_OTHER_CASE = re.compile(r"(tr|az|crh|ku)(?![a-z])|tt_RU@")
_ATTRIBUTE, _NAME, _STRING = 5, 1, 4  # fields of NodeProto, and of AttributeProto
_WINDOWED = "sliding_window_cache"
_INTS = wire.runs(wire.VARINT, 8)

ZIPMAP = (
    "Output {output} holds the probabilities as a tensor, one column for each class: ZipMap, which "
    "made dictionaries of them, was cut off.{labels}"
)
RELOCATED = (
    "Text changes case in the locale C.UTF-8 instead of {locale}, which serving machines lack; "
    "both change every letter alike."
)
WINDOWED = (
    "Attention within a window gets all keys and values: its cache of the window's size "
    "(sliding_window_cache) was switched off, which changes no result."
)
UNTRAINED = "The training information in the file was left out: it is not served."


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Edit of a length-delimited protobuf field: new content, None to remove it."""

    start: int
    end: int
    content: bytes | None


@dataclass(slots=True)
class Rewrite:
    """Edits to an ONNX file, with explanatory messages and class labels."""

    edits: list[Edit] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)  # in order, each once
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by name of the output
    _zipmaps: list[tuple[Node, int, int]] = field(default_factory=list)

    def drop_training(self, start: int, end: int) -> None:
        """Record an edit that removes a TrainingInfoProto."""
        if start < end:
            self.edits.append(Edit(start, end, None))
            self.notes[UNTRAINED] = None

    def add_node(self, reader: WireReader, node: Node, start: int, end: int, depth: int) -> None:
        """Record the edits that an ONNX node needs to be servable.

        `depth` is the number of enclosing graphs.

        Raises:
            InvalidModel: `LOCALE`.
        """
        if node.op == "ZipMap" and node.domain == "ai.onnx.ml" and not depth:
            self._zipmaps.append((node, start, end))
        elif node.op == "StringNormalizer" and node.domain in ("", "ai.onnx"):
            self._relocate(reader, node, start, end)
        elif node.op == "GroupQueryAttention" and node.attributes.get(_WINDOWED):
            self._widen(reader, start, end)

    def cut_zipmaps(
        self, reader: WireReader, values: Sequence[tuple[str, int, int]], outputs: Collection[str]
    ) -> None:
        """Replace ZipMap nodes that produce graph outputs with Cast nodes.

        `values` are name, start and end of the graph's outputs and other declared values.
        """
        for node, start, end in self._zipmaps:
            labels = _class_labels(reader, start, end)
            if not labels or len(node.inputs) != 1 or len(node.outputs) != 1:
                continue
            [output] = node.outputs
            if output not in outputs:
                continue
            declared = [value for value in values if value[0] == output]
            self.edits.append(Edit(start, end, _cast_to_float(node)))
            content = _float_matrix(output, len(labels))
            self.edits += [Edit(first, last, content) for _, first, last in declared]
            self._note_labels(output, labels)

    def _note_labels(self, output: str, labels: tuple[str, ...]) -> None:
        fits = sum(len(label.encode()) + 8 for label in labels) <= LABELS_BYTES
        if fits:
            self.labels[output] = labels
        about = "" if fits else " Its class labels are too long to be kept."
        self.notes[ZIPMAP.format(output=shown(output), labels=about)] = None

    def _widen(self, reader: WireReader, start: int, end: int) -> None:
        for number, kind, first, last in reader.fields(start, end):
            is_attribute = (number, kind) == (_ATTRIBUTE, wire.BYTES)
            if is_attribute and _attribute_name(reader, first, last) == _WINDOWED:
                self.edits.append(Edit(first, last, None))
                self.notes[WINDOWED] = None

    def _relocate(self, reader: WireReader, node: Node, start: int, end: int) -> None:
        attributes = {name: (at, text) for name, at, text in _text_attributes(reader, start, end)}
        place, locale = attributes.get("locale", (None, _DEFAULT_LOCALE))
        if locale in ("C", "POSIX") or locale.startswith("C."):
            return
        if _OTHER_CASE.match(locale):
            if attributes.get("case_change_action", (None, "NONE"))[1] == "NONE":
                return
            raise InvalidModel(
                f"node {shown(node.name or node.op)} changes case in the locale {shown(locale)}, "
                "which serving machines lack; change case before the model, or export it with "
                "the locale C.UTF-8",
                code="LOCALE",
            )
        attribute = _text_attribute("locale", LOCALE)
        if place:
            self.edits.append(Edit(*place, attribute))
        else:
            node_bytes = bytes(reader.data[start:end])
            self.edits.append(Edit(start, end, node_bytes + encode_field(_ATTRIBUTE, attribute)))
        self.notes[RELOCATED.format(locale=shown(locale))] = None


def apply(path: Path, edits: Iterable[Edit]) -> None:
    """Apply non-overlapping field edits to a protobuf file, and replace it."""
    target = path.with_name(path.name + ".rewritten")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
        target.open("xb") as out,
    ):
        for part in _parts(WireReader(data), 0, len(data), sorted(edits)):
            if isinstance(part, bytes):
                out.write(part)
                continue
            with view[part.start : part.stop] as kept:  # a slice would copy gigabytes
                out.write(kept)
    target.replace(path)


def _parts(
    reader: WireReader, start: int, end: int, edits: Sequence[Edit]
) -> list["bytes | range"]:
    """Return an edited protobuf message: new bytes and unchanged file ranges."""
    parts: list[bytes | range] = []
    kept = begin = start
    for number, kind, first, last in reader.fields(start, end):
        at = bisect_left(edits, first, key=lambda edit: edit.start)
        if kind == wire.BYTES and at < len(edits) and edits[at].end <= last:
            parts.append(range(kept, begin))
            parts += _edited_field(reader, number, first, last, edits, at)
            kept = last
        begin = last
    return [*parts, range(kept, end)]


def _edited_field(
    reader: WireReader, number: int, first: int, last: int, edits: Sequence[Edit], at: int
) -> list["bytes | range"]:
    edit = edits[at]
    inner: list[bytes | range]
    if (edit.start, edit.end) != (first, last):
        inner = _parts(reader, first, last, edits)
    elif edit.content is None:
        return []
    else:
        inner = [edit.content]
    size = sum(map(len, inner))
    return [encode_varint(number << 3 | wire.BYTES) + encode_varint(size), *inner]


# --- ZipMap


def _class_labels(reader: WireReader, start: int, end: int) -> tuple[str, ...]:
    """Return a ZipMap node's class labels, integer labels as decimal strings."""
    labels: list[str] = []
    for number, kind, first, last in reader.fields(start, end):
        if number != _ATTRIBUTE or kind != wire.BYTES:
            continue
        name = _attribute_name(reader, first, last)
        if name in ("classlabels_strings", "classlabels_int64s"):
            labels += _repeated(reader, first, last)
    return tuple(labels)


def _attribute_name(reader: WireReader, start: int, end: int) -> str:
    for number, kind, first, last in reader.fields(start, end, _INTS):
        if number == _NAME and kind == wire.BYTES:
            return reader.text(first, last)
    return ""


def _repeated(reader: WireReader, start: int, end: int) -> list[str]:
    """Return an AttributeProto's strings and integers as a list of strings."""
    values: list[str] = []
    for number, kind, first, last in reader.fields(start, end):
        if (number, kind) == (8, wire.VARINT):  # ints
            values.append(str(wire.signed(first)))
        elif (number, kind) == (8, wire.BYTES):
            values += map(str, reader.packed(first, last, last - first))
        elif (number, kind) == (9, wire.BYTES):  # strings
            values.append(reader.text(first, last))
    return values


def _cast_to_float(node: Node) -> bytes:
    """Encode a Cast node (NodeProto) with another node's input, output and name."""
    fields = zip((1, 2, 3, 4), (*node.inputs, *node.outputs, node.name, "Cast"), strict=True)
    texts = b"".join(encode_field(number, text.encode()) for number, text in fields)
    to_float = encode_field(_NAME, b"to") + b"\x18\x01" + b"\xa0\x01\x02"  # i: FLOAT, type: INT
    return texts + encode_field(_ATTRIBUTE, to_float)


def _float_matrix(name: str, columns: int) -> bytes:
    """Encode a ValueInfoProto: float matrix with a dynamic number of rows."""
    rows, width = encode_field(1, b""), encode_field(1, b"\x08" + encode_varint(columns))
    tensor = b"\x08\x01" + encode_field(2, rows + width)  # elem_type FLOAT, shape
    return encode_field(1, name.encode()) + encode_field(2, encode_field(1, tensor))


# --- attributes of text


def _text_attributes(
    reader: WireReader, start: int, end: int
) -> list[tuple[str, tuple[int, int], str]]:
    """Return the name, byte range and string value of node attributes."""
    attributes = []
    for number, kind, first, last in reader.fields(start, end):
        if number != _ATTRIBUTE or kind != wire.BYTES:
            continue
        texts = {
            inner: reader.text(low, high)
            for inner, inner_kind, low, high in reader.fields(first, last)
            if inner_kind == wire.BYTES and inner in (_NAME, _STRING)
        }
        attributes.append((texts.get(_NAME, ""), (first, last), texts.get(_STRING, "")))
    return attributes


def _text_attribute(name: str, text: str) -> bytes:
    """Encode an AttributeProto with a string value."""
    is_string = b"\xa0\x01\x03"  # field 20, type: STRING
    return encode_field(_NAME, name.encode()) + encode_field(_STRING, text.encode()) + is_string
