"""Writer of small ONNX models, without the package onnx.

Serving computes with them what would be slow in Python, e.g. the likeliest of 150,000 tokens.
"""

from collections.abc import Iterable, Mapping, Sequence

from functions.core.package.onnx_wire import encode_field, encode_varint
from functions.core.records import field, record

FLOAT, UINT8, INT64, BOOL, FLOAT16, BFLOAT16 = 1, 2, 7, 9, 10, 16  # TensorProto.DataType
OPSET, IR_VERSION = 20, 10
_INT, _INTS = 2, 7  # AttributeProto.AttributeType


@record
class Operation:
    """ONNX node; its attributes are integers or lists of them."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)


@record
class Value:
    """Input or output of dynamic sizes: name, element type, rank."""

    name: str
    element: int
    rank: int


@record
class Constant:
    """Constant tensor: packed little-endian numbers."""

    name: str
    element: int
    shape: tuple[int, ...]
    data: bytes


def encode_model(
    operations: Sequence[Operation],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Sequence[Constant] = (),
) -> bytes:
    """Encode a ModelProto."""
    graph = b"".join(
        [
            *(encode_field(1, _operation(each)) for each in operations),
            _text(2, "mayfly"),
            *(encode_field(5, _constant(each)) for each in constants),
            *(encode_field(11, _value(each)) for each in inputs),
            *(encode_field(12, _value(each)) for each in outputs),
        ]
    )
    opset = _number(2, OPSET)
    return _number(1, IR_VERSION) + encode_field(7, graph) + encode_field(8, opset)


def _operation(operation: Operation) -> bytes:
    return b"".join(
        [
            *(_text(1, name) for name in operation.inputs),
            *(_text(2, name) for name in operation.outputs),
            _text(4, operation.operator),
            *(encode_field(5, _attribute(*each)) for each in operation.attributes.items()),
        ]
    )


def _attribute(name: str, value: int | tuple[int, ...]) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + _numbers(8, value) + _number(20, _INTS)


def _constant(constant: Constant) -> bytes:
    return b"".join(
        [
            _numbers(1, constant.shape),
            _number(2, constant.element),
            _text(8, constant.name),
            encode_field(9, constant.data),
        ]
    )


def _value(value: Value) -> bytes:
    shape = b"".join(encode_field(1, b"") for _ in range(value.rank))
    tensor = _number(1, value.element) + encode_field(2, shape)
    return _text(1, value.name) + encode_field(2, encode_field(1, tensor))


def _text(number: int, text: str) -> bytes:
    return encode_field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return encode_varint(number << 3) + encode_varint(value % 2**64)


def _numbers(number: int, values: Iterable[int]) -> bytes:
    return b"".join(_number(number, value) for value in values)
