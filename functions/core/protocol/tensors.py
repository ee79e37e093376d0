"""Tensors without numpy, and their conversion to and from JSON and bytes.

Importing numpy takes longer than all other imports of a cold start together. Numbers stay packed;
`struct`, `memoryview` and `orjson` convert them in bulk. A declared size is checked before memory
of that size is allocated. Types are checked for whole lists at once (`set(map(type, values))`): a
Python loop visits single values only to name the wrong one.
"""

import binascii
import math
import struct
from collections.abc import Set
from itertools import chain
from types import NoneType
from typing import Any

from functions.core.errors import InvalidRequest, shown
from functions.core.protocol.effort import ELEMENTS_AT_ONCE, NO_DEADLINE, check_deadline
from functions.core.protocol.signature import DATATYPES, DYNAMIC, TensorSpec
from functions.core.records import mutable_record

# 64 MiB of the smallest elements, more than a body can hold. Without this limit, a shape with a
# dimension of 0, which needs no data, could declare any size in the others.
ELEMENTS_MAX = 2**26

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_NUMBERS: frozenset[type] = frozenset({int, float})

# Format characters of `struct` and `memoryview`; BF16 is packed as FP32 and then rounded.
STRUCT_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "BF16": "f",
    "FP32": "f",
    "FP64": "d",
}


@mutable_record
class Tensor:
    r"""Tensor values in row-major order: packed little-endian numbers, or a BYTES list.

    >>> Tensor("INT16", (2, 1), b"\x01\x00\xff\xff").values()
    [1, -1]
    """

    datatype: str
    shape: tuple[int, ...]
    data: Any  # bytes or, for BYTES, list[bytes]

    @property
    def size(self) -> int:
        """Number of values in the tensor."""
        return math.prod(self.shape)

    def values(self) -> list[Any]:
        """Return the tensor's values as Python booleans, integers, floats or bytes."""
        data: Any = self.data
        if self.datatype == "BYTES":
            return list(data)
        if self.datatype == "FP16":
            return list(struct.unpack(f"{len(data) // 2}e", data))
        if self.datatype == "BF16":  # BF16 is the upper half of FP32
            halves = memoryview(data).cast("H").tolist()
            data = struct.pack(f"{len(halves)}I", *[half << 16 for half in halves])
        code: Any = STRUCT_CODES[self.datatype]
        return memoryview(data).cast(code).tolist()


class Constant(str):
    """Unquoted NaN, Infinity or -Infinity in JSON text, valid as a float.

    A type of its own, because the string "NaN" is valid for BYTES and this is not.
    """

    __slots__ = ()


_NOT_FINITE: dict[Any, float] = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    None: math.nan,
}


def invalid_input(spec: TensorSpec, problem: str) -> InvalidRequest:
    """Return an InvalidRequest error that names the input and the problem."""
    return InvalidRequest(f"input {shown(spec.name)}: {problem}")


def describe(value: object) -> str:
    """Describe a JSON value for an error message, in bounded length.

    >>> describe([[1]]), describe(None), describe(True), describe("1"), describe(1.5)
    ('a list', 'null', 'true', "the string '1'", '1.5')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Constant():
            return value
        case str():
            return f"the string {shown(value)}"
        case list():
            return "a list"
        case dict():
            return "an object"
    return shown(value)


# --- shapes


def read_shape(spec: TensorSpec, value: object) -> tuple[int, ...]:
    """Check the shape that a request declares for an input; return it.

    >>> read_shape(TensorSpec("image", "FP32", (DYNAMIC, 3)), [2, 3])
    (2, 3)

    Raises:
        InvalidRequest: not a shape, does not fit the model, or is too large.
    """
    if type(value) is not list:
        raise invalid_input(
            spec, f"shape must be a list of non-negative integers, not {describe(value)}"
        )
    if len(value) != len(spec.shape):
        raise invalid_input(
            spec,
            f"shape has {len(value)} dimensions, "
            f"the model takes {len(spec.shape)}: {_shape_text(spec.shape)}",
        )
    for size in value:
        if type(size) is not int or size < 0:
            raise invalid_input(
                spec, f"shape must hold non-negative integers, not {describe(size)}"
            )
        if size > ELEMENTS_MAX:
            raise invalid_input(
                spec, f"shape holds {shown(size)}; a dimension may be at most {ELEMENTS_MAX}"
            )
    if any(want not in (DYNAMIC, got) for want, got in zip(spec.shape, value, strict=True)):
        raise invalid_input(
            spec, f"shape {value} does not fit the model's {_shape_text(spec.shape)}"
        )
    if math.prod(max(size, 1) for size in value) > ELEMENTS_MAX:
        raise invalid_input(spec, f"shape {value} holds more than {ELEMENTS_MAX} elements")
    return tuple(value)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"{list(shape)}, where -1 is any size" if DYNAMIC in shape else f"{list(shape)}"


# --- from JSON values


def from_json(
    spec: TensorSpec, shape: tuple[int, ...], data: object, *, base64: bool = False
) -> Tensor:
    r"""Convert an input's JSON values to a tensor, checking type and range.

    `data` is flat in row-major order, or nested exactly like `shape`. With `base64`, the elements
    of a BYTES tensor are base64 and not UTF-8.

    >>> from_json(TensorSpec("x", "INT8", (2, 2)), (2, 2), [[1, 2], [3, 4]])
    Tensor(datatype='INT8', shape=(2, 2), data=b'\x01\x02\x03\x04')

    Raises:
        InvalidRequest: structure, type or range of a value differs from the declaration.
    """
    values, types = _flatten(spec, shape, data)
    if spec.datatype in FLOATS:
        return Tensor(spec.datatype, shape, _floats(spec, values, types))
    if spec.datatype == "BYTES":
        return Tensor(spec.datatype, shape, _byte_strings(spec, values, types, base64))
    if spec.datatype == "BOOL":
        _check_types(spec, values, types, {bool}, "true or false")
        return Tensor(spec.datatype, shape, bytes(values))
    return Tensor(spec.datatype, shape, _integers(spec, values, types))


def _flatten(spec: TensorSpec, shape: tuple[int, ...], data: object) -> tuple[list[Any], set[type]]:
    """Flatten JSON data to row-major values; return the values and their types."""
    if type(data) is not list:
        if shape:
            raise invalid_input(spec, f"data must be a list, not {describe(data)}")
        return [data], {type(data)}  # a scalar, nested exactly like its shape
    values: list[Any] = data
    types = set(map(type, values))
    if list in types:
        values, types = _unnest(spec, shape, values)
    if len(values) != math.prod(shape):
        raise invalid_input(
            spec, f"data holds {len(values)} values, shape {list(shape)} takes {math.prod(shape)}"
        )
    return values, types


def _unnest(
    spec: TensorSpec, shape: tuple[int, ...], level: list[Any]
) -> tuple[list[Any], set[type]]:
    """Flatten lists nested like `shape`; return the values and their types."""
    lengths, types = {len(level)}, set(map(type, level))
    for depth, size in enumerate(shape):
        if depth:
            lengths = set(map(len, level))
            level = list(chain.from_iterable(level))
            types = set(map(type, level))
        if lengths != {size}:
            wrong = next(length for length in lengths if length != size)
            raise invalid_input(
                spec,
                f"nested data must match shape {list(shape)}: "
                f"a list at depth {depth + 1} holds {wrong} items",
            )
        if not level:
            return level, types
        if depth + 1 < len(shape) and types != {list}:
            raise invalid_input(
                spec, f"data must be flat, or nested exactly like shape {list(shape)}, not in part"
            )
    if list in types:
        raise invalid_input(spec, f"data is nested deeper than shape {list(shape)}")
    return level, types


def _check_types(
    spec: TensorSpec, values: list[Any], types: set[type], allowed: Set[type], expected: str
) -> None:
    """Raise InvalidRequest for the first value whose type is not allowed."""
    if types.difference(allowed):
        at, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
        raise invalid_input(
            spec, f"value {at} of data is {describe(value)}; {spec.datatype} takes {expected}"
        )


def _integers(spec: TensorSpec, values: list[Any], types: set[type]) -> bytes:
    _check_types(spec, values, types, {int}, "integers")
    try:
        return struct.pack(f"{len(values)}{STRUCT_CODES[spec.datatype]}", *values)
    except (struct.error, OverflowError):
        low, high = _integer_range(spec.datatype)
        at, value = next((i, value) for i, value in enumerate(values) if not low <= value <= high)
        raise invalid_input(
            spec, f"value {at} of data is {shown(value)}; {spec.datatype} takes {low} to {high}"
        ) from None


def _integer_range(datatype: str) -> tuple[int, int]:
    bits = 8 * (DATATYPES[datatype] or 0)
    if datatype.startswith("U"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _floats(spec: TensorSpec, values: list[Any], types: set[type]) -> bytes:
    not_finite = 0  # number of values that the caller wrote as null, NaN or an infinity
    if not types <= _NUMBERS:
        values, not_finite = _replace_not_finite(spec, values, types)
    try:
        # Without "<", struct packs 1e39 as infinity instead of raising OverflowError.
        packed = struct.pack(f"<{len(values)}{STRUCT_CODES[spec.datatype]}", *values)
        overflow = len(values) - not_finite != sum(map(math.isfinite, values))
        if spec.datatype == "BF16":
            packed, overflow_bf16 = round_to_bf16(packed)
            overflow = overflow or overflow_bf16
    except (struct.error, OverflowError):  # OverflowError for a float, either for an integer
        overflow = True
    if overflow:
        raise invalid_input(
            spec, f"data holds a number beyond the range of {spec.datatype}"
        ) from None
    return packed


def _replace_not_finite(
    spec: TensorSpec, values: list[Any], types: set[type]
) -> tuple[list[Any], int]:
    """Convert JSON null, "NaN" and "Infinity" to non-finite floats; count them."""
    expected = 'numbers, null, "NaN", "Infinity" or "-Infinity"'
    names: set[type] = {str, NoneType, Constant}
    _check_types(spec, values, types, _NUMBERS | names, expected)
    floats = list(values)
    positions = [i for i, value in enumerate(values) if type(value) in names]
    for i in positions:
        if values[i] not in _NOT_FINITE:
            raise invalid_input(
                spec,
                f"value {i} of data is {describe(values[i])}; {spec.datatype} takes {expected}",
            )
        floats[i] = _NOT_FINITE[values[i]]
    return floats, len(positions)


def round_to_bf16(packed: bytes) -> tuple[bytes, bool]:
    """Round packed FP32 values to BF16, half to even; report overflow.

    The second result is True if a finite number became infinite. NaN stays NaN: the addition
    below would overflow for some NaNs, but not for the only one that JSON can express.
    """
    bits = memoryview(packed).cast("I").tolist()
    halves = [(word + 0x7FFF + ((word >> 16) & 1)) >> 16 for word in bits]
    infinite = sum(word & 0x7FFFFFFF == 0x7F800000 for word in bits)
    overflow = sum(half & 0x7FFF == 0x7F80 for half in halves) != infinite
    return struct.pack(f"{len(halves)}H", *halves), overflow


def _byte_strings(
    spec: TensorSpec, values: list[Any], types: set[type], base64: bool
) -> list[bytes]:
    _check_types(spec, values, types, {str}, "strings")
    try:
        if base64:
            return [binascii.a2b_base64(value, strict_mode=True) for value in values]
        return list(map(str.encode, values))
    except UnicodeEncodeError:
        raise invalid_input(
            spec, "data holds a lone surrogate, which is no text; send binary data, or base64"
        ) from None
    except ValueError:
        raise invalid_input(
            spec, 'data holds a string that is not base64, as its content_type "base64" promises'
        ) from None


# --- from bytes


def byte_size(spec: TensorSpec, shape: tuple[int, ...]) -> int | None:
    """Return a binary tensor's size in bytes; None for variable-length BYTES."""
    size = DATATYPES[spec.datatype]
    return None if size is None else math.prod(shape) * size


def from_bytes(
    spec: TensorSpec, shape: tuple[int, ...], raw: memoryview, deadline: float = NO_DEADLINE
) -> Tensor:
    """Decode a binary tensor: little-endian, row-major, BYTES with 4-byte length prefixes.

    The data is copied, because the runtime needs aligned numbers, and bytes after JSON seldom are.

    Raises:
        InvalidRequest: `raw` is not of this shape, or a BOOL is neither 0 nor 1.
        TimedOut: `deadline` is over.
    """
    expected = byte_size(spec, shape)
    if expected is None:
        return Tensor(spec.datatype, shape, _elements(spec, math.prod(shape), raw, deadline))
    if len(raw) != expected:
        raise invalid_input(
            spec,
            f"shape {list(shape)} of {spec.datatype} is {expected} bytes of binary data, "
            f"not {len(raw)}",
        )
    data = bytes(raw)
    if spec.datatype == "BOOL" and data.translate(None, b"\0\1"):
        raise invalid_input(spec, "binary BOOL data must hold bytes 0 and 1 only")
    return Tensor(spec.datatype, shape, data)


def _elements(spec: TensorSpec, count: int, raw: memoryview, deadline: float) -> list[bytes]:
    """Split a binary BYTES tensor into elements at their length prefixes."""
    if count * 4 > len(raw):  # checked before a list of `count` elements is built
        raise invalid_input(
            spec,
            f"binary data of {len(raw)} bytes cannot hold the lengths of {count} BYTES elements",
        )
    elements, end = [], 0
    for index in range(count):
        if index % ELEMENTS_AT_ONCE == 0:
            check_deadline(deadline)
        start = end + 4
        if start > len(raw):
            raise invalid_input(
                spec, f"binary data ends within the length of BYTES element {index} of {count}"
            )
        (length,) = struct.unpack_from("<I", raw, end)
        end = start + length
        if end > len(raw):
            raise invalid_input(
                spec, f"BYTES element {index} claims {length} bytes, {len(raw) - start} are left"
            )
        elements.append(bytes(raw[start:end]))
    if end != len(raw):
        raise invalid_input(
            spec, f"binary data has {len(raw) - end} bytes after its {count} BYTES elements"
        )
    return elements


# --- to JSON and to bytes


def to_json(tensor: Tensor) -> tuple[list[Any], bool]:
    r"""Convert a tensor to a flat list of JSON values.

    The second result is True if they are base64: BYTES that are not UTF-8. NaN and the infinities
    become strings.

    >>> to_json(Tensor("FP32", (2,), struct.pack("2f", 0.5, math.nan)))
    ([0.5, 'NaN'], False)
    >>> to_json(Tensor("BYTES", (1,), [b"\xff"]))
    (['/w=='], True)
    """
    values = tensor.values()
    if tensor.datatype == "BYTES":
        try:
            return [str(element, "utf-8") for element in values], False
        except UnicodeDecodeError:
            return [_base64(element) for element in values], True
    # The sum of large but finite FP64 values may be infinite too; the check in the list decides.
    if tensor.datatype in FLOATS and not math.isfinite(sum(values)):
        return [
            value if math.isfinite(value) else _not_finite_name(value) for value in values
        ], False
    return values, False


def _base64(element: bytes) -> str:
    return binascii.b2a_base64(element, newline=False).decode("ascii")


def _not_finite_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def to_bytes(tensor: Tensor) -> bytes:
    r"""Encode a tensor as little-endian bytes for the binary tensor extension.

    >>> to_bytes(Tensor("BYTES", (1,), [b"ab"])), to_bytes(Tensor("INT16", (1,), b"\xff\xff"))
    (b'\x02\x00\x00\x00ab', b'\xff\xff')
    """
    if tensor.datatype != "BYTES":
        return bytes(tensor.data)
    parts = ((struct.pack("<I", len(element)), element) for element in tensor.data)
    return b"".join(chain.from_iterable(parts))
