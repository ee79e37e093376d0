"""Hostile case and the functions that build protobuf, models, archives and manifests."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.models import make_model

FLOAT, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)


@dataclass(frozen=True, slots=True)
class Case:
    """Upload that has to be rejected with one of `codes`."""

    name: str
    make: Callable[[], bytes]
    codes: frozenset[str]
    key: str = "model.onnx"
    siblings: Mapping[str, bytes] = field(default_factory=dict)  # objects uploaded before it

    def __str__(self) -> str:
        return self.name


def case(
    name: str,
    content: bytes | Callable[[], bytes],
    *codes: str,
    key: str = "model.onnx",
    **siblings: bytes,
) -> Case:
    made = content if callable(content) else lambda: content
    return Case(
        name,
        made,
        frozenset(codes),
        key,
        {path.replace("__", "/"): data for path, data in siblings.items()},
    )


# --- protobuf by hand


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(at: int, value: int) -> bytes:
    return varint(at << 3) + varint(value)


def message(at: int, *content: bytes) -> bytes:
    joined = b"".join(content)
    return varint(at << 3 | 2) + varint(len(joined)) + joined


def raw_model(*graph: bytes, ir: int = 10, opset: int = 20, extra: bytes = b"") -> bytes:
    """Encode a ModelProto around the fields of a GraphProto."""
    return number(1, ir) + message(7, *graph) + message(8, number(2, opset)) + extra


def raw_value(name: bytes, datatype: int = 1, dims: Iterable[int] = (1,)) -> bytes:
    """Encode a ValueInfoProto."""
    shape = b"".join(message(1, number(1, size)) for size in dims)
    return message(1, name) + message(2, message(1, number(1, datatype), message(2, shape)))


def raw_node(op: bytes, inputs: Iterable[bytes], outputs: Iterable[bytes], *rest: bytes) -> bytes:
    """Encode a NodeProto as a field of a GraphProto."""
    return message(
        1,
        *(message(1, i) for i in inputs),
        *(message(2, o) for o in outputs),
        message(4, op),
        *rest,
    )


def raw_identity(*more: bytes, x: bytes = b"x", y: bytes = b"y", **about: Any) -> bytes:
    return raw_model(
        raw_node(b"Identity", [x], [y]),
        *more,
        message(11, raw_value(x)),
        message(12, raw_value(y)),
        **about,
    )


# --- models


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = ("batch", 3)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, content: Any, kind: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(content, kind), name)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Make a node; `inputs` and `outputs` are names separated by spaces."""
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *initializers: Any,
    **about: Any,
) -> bytes:
    opsets = about.pop("opsets", {})
    made = make_model(nodes, inputs, outputs, initializers, **about)
    made.opset_import.extend(
        helper.make_opsetid(domain, version) for domain, version in opsets.items()
    )
    return made.SerializeToString()


def proto(change: Callable[[Any], object]) -> bytes:
    """Serialise a valid model after `change`."""
    good = make_model(
        [node("Mul", "x w", "y")], [value("x")], [value("y")], [constant("w", [1, 2, 3])]
    )
    change(good)
    return good.SerializeToString()


def graph(
    name: str,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *initializers: Any,
) -> Any:
    return helper.make_graph(nodes, name, inputs, outputs, initializers)


# --- packages


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(
    *members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, level: int = 1, **header: Any
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form, compresslevel=level) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field_name, content_of in header.items():
                setattr(info, field_name, content_of)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def block(
    name: bytes, size: bytes = b"00000000000\0", kind: bytes = b"0", link: bytes = b""
) -> bytes:
    """Encode a ustar header with a correct checksum and any fields."""
    header = bytearray(
        struct.pack(
            "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
            name,
            b"0000644\0",
            b"0000000\0",
            b"0000000\0",
            size,
            b"00000000000\0",
            b" " * 8,
            kind,
            link,
            b"ustar\x0000",
            b"",
            b"",
            b"",
            b"",
            b"",
        )
    )
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def packed(*blocks: bytes) -> bytes:
    """Compress blocks and the end of an archive as one gzip member."""
    return gzip.compress(
        b"".join(part + bytes(-len(part) % 512) for part in blocks) + bytes(1024), 1
    )


def listing(*files: tuple[str, bytes], **more: Any) -> dict[str, Any]:
    listed = [
        {"path": path, "size": len(content), "sha256": digest(content)} for path, content in files
    ]
    return {"schema": 1, "files": listed, **more}


def document(content: Any) -> bytes:
    return json.dumps(content).encode()


def outside(place: str, size: int = 12, **entries: str) -> bytes:
    """Serialise a model with its one constant in another file."""

    def change(good: Any) -> None:
        [tensor] = good.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, content in {
            "location": place,
            "offset": "0",
            "length": str(size),
            **entries,
        }.items():
            tensor.external_data.add(key=key, value=content)

    return proto(change)


__all__ = [name for name in dir() if not name.startswith("_")] + ["onnx"]
