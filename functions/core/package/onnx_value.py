"""Parser of an ONNX graph's declared inputs, outputs and values (ValueInfoProto)."""

from dataclasses import dataclass

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits
from functions.core.package import onnx_wire as wire
from functions.core.package.onnx_wire import WireReader, not_onnx

_TENSOR_TYPE = 1  # field of a TypeProto
_TYPES = (_TENSOR_TYPE, 4, 5, 7, 8, 9)  # fields of a TypeProto, of which one is set


@dataclass(slots=True)
class Value:
    """Name, element type and shape of a declared ONNX graph value."""

    name: str = ""
    datatype: int = 0  # TensorProto.DataType; 0 if unknown, -1 if no tensor
    shape: list[int] | None = None  # None if undeclared
    types: int = 0  # declared types, of which a value has at most one


def read_value(reader: WireReader, start: int, end: int, role: str) -> Value:
    """Parse name, type and shape of a graph value from its ValueInfoProto.

    Errors call the value by its `role`, such as "input".

    Raises:
        InvalidModel: `BAD_SHAPE`, `TRUNCATED` or `NOT_ONNX`.
    """
    value = Value()
    for number, kind, first, last in reader.fields(start, end):
        if number == 1 and kind == wire.BYTES:
            value.name = reader.text(first, last)
        elif number == 2 and kind == wire.BYTES:
            _read_type(reader, first, last, value, role)
    if value.shape is not None:
        _check_shape(role, value.name, value.shape)
    return value


def _read_type(reader: WireReader, start: int, end: int, value: Value, role: str) -> None:
    """Parse a TypeProto and set the type and shape of `value`."""
    for number, kind, first, last in reader.fields(start, end):
        if kind != wire.BYTES or number not in _TYPES:
            continue
        value.types += 1
        if value.types > 1:
            raise not_onnx(f"{role} {shown(value.name)} has two types")
        if number == _TENSOR_TYPE:
            _read_tensor_type(reader, first, last, value)
        else:
            value.datatype = -1


def _read_tensor_type(reader: WireReader, start: int, end: int, value: Value) -> None:
    """Parse a TypeProto.Tensor: set the element type and shape of `value`.

    Parsing stops at twice the allowed rank.
    """
    for number, kind, first, last in reader.fields(start, end):
        if number == 1 and kind == wire.VARINT:
            value.datatype = first & 0xFFFFFFFF
        elif number == 2 and kind == wire.BYTES:
            value.shape = [] if value.shape is None else value.shape
            for dim_number, dim_kind, inner, outer in reader.fields(first, last):
                if dim_number == 1 and dim_kind == wire.BYTES:
                    value.shape.append(_read_dimension(reader, inner, outer))
                    if len(value.shape) > 2 * limits.RANK:
                        return


def _read_dimension(reader: WireReader, start: int, end: int) -> int:
    """Parse a TensorShapeProto.Dimension; return -1 if symbolic or unset.

    A symbol may have any name, because nobody sees it.
    """
    size = -1
    for number, kind, value, _ in reader.fields(start, end):
        if number == 1 and kind == wire.VARINT:
            size = wire.signed(value)
    return size


def _check_shape(role: str, name: str, shape: list[int]) -> None:
    in_range = all(-1 <= size <= limits.DIMENSION for size in shape)
    if len(shape) > limits.RANK or not in_range:
        raise InvalidModel(
            f"{role} {shown(name)} has {len(shape)} dimensions {shown(shape)}; {limits.RANK} are "
            f"allowed, each up to {limits.DIMENSION}, or -1 for one that requests choose",
            code="BAD_SHAPE",
        )
