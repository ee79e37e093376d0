"""Tensors as bytes, as JSON values and as the bytes of the binary tensor extension.

Without numpy, whose import takes longer than all others of a cold start together: numbers stay packed, and are read and
spelled in bulk by `struct`, `memoryview` and `orjson`. Whatever a caller declares is checked before anything of its
size is allocated, and whole lists are checked at once (`set(map(type, values))`): Python visits single values only to
name the wrong one.
"""

import binascii
import math
import struct
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

import orjson

from functions.core.errors import InvalidRequest, shown
from functions.core.protocol.signature import DATATYPES, DYNAMIC, TensorSpec

PIECE_BYTES = 2**14  # of the text of a list, read at a time
ELEMENTS_LIMIT = (
    2**26
)  # 64 MiB of the smallest elements; only tensors without elements could declare more

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_NUMBERS: frozenset[type] = frozenset({int, float})

_PACKED = {  # as `struct` and `memoryview` spell a datatype, or what it is rounded from
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


@dataclass(slots=True)
class Tensor:
    r"""Values in row-major order: numbers packed and little-endian, BYTES as a list of its elements.

    >>> Tensor("INT16", (2, 1), b"\x01\x00\xff\xff").values()
    [1, -1]
    """

    datatype: str
    shape: tuple[int, ...]
    data: Any  # bytes or, for BYTES, list[bytes]

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    def values(self) -> list[Any]:
        """As Python has them: booleans, integers, floats, or bytes."""
        data: Any = self.data
        if self.datatype == "BYTES":
            return list(data)
        if self.datatype == "FP16":
            return list(struct.unpack(f"{len(data) // 2}e", data))
        if self.datatype == "BF16":  # the upper halves of FP32
            halves = memoryview(data).cast("H").tolist()
            data = struct.pack(f"{len(halves)}I", *[half << 16 for half in halves])
        packed: Any = _PACKED[self.datatype]
        return memoryview(data).cast(packed).tolist()


class Constant(str):
    """A bare NaN, Infinity or -Infinity in JSON text: a value for a float and, unlike a string, for nothing else."""

    __slots__ = ()


_NOT_FINITE: dict[Any, float] = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    None: math.nan,
}


def refused(spec: TensorSpec, why: str) -> InvalidRequest:
    """The error that tells the caller what is wrong with the input `spec`."""
    return InvalidRequest(f"input {shown(spec.name)}: {why}")


def described(value: object) -> str:
    """A JSON value as an error may name it, however large or deep it is.

    >>> described([[1]]), described(None), described(True), described("1"), described(1.5)
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


# --- shapes -----------------------------------------------------------------------------------------------------------


def read_shape(spec: TensorSpec, value: object) -> tuple[int, ...]:
    """The shape that a request declares for `spec`.

    >>> read_shape(TensorSpec("image", "FP32", (DYNAMIC, 3)), [2, 3])
    (2, 3)

    Raises:
        InvalidRequest: it is no shape, does not fit the model, or is too large.
    """
    if type(value) is not list:
        raise refused(
            spec, f"shape must be a list of non-negative integers, not {described(value)}"
        )
    if len(value) != len(spec.shape):
        raise refused(
            spec,
            f"shape has {len(value)} dimensions, the model takes {len(spec.shape)}: {_spelled(spec.shape)}",
        )
    for size in value:
        if type(size) is not int or size < 0:
            raise refused(spec, f"shape must hold non-negative integers, not {described(size)}")
        if size > ELEMENTS_LIMIT:
            raise refused(
                spec, f"shape holds {shown(size)}; a dimension may be at most {ELEMENTS_LIMIT}"
            )
    if any(want not in (DYNAMIC, got) for want, got in zip(spec.shape, value, strict=True)):
        raise refused(spec, f"shape {value} does not fit the model's {_spelled(spec.shape)}")
    if math.prod(max(size, 1) for size in value) > ELEMENTS_LIMIT:
        raise refused(spec, f"shape {value} holds more than {ELEMENTS_LIMIT} elements")
    return tuple(value)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"{list(shape)}, where -1 is any size" if DYNAMIC in shape else f"{list(shape)}"


# --- from JSON --------------------------------------------------------------------------------------------------------


def from_json(
    spec: TensorSpec, shape: tuple[int, ...], data: object, *, base64: bool = False
) -> Tensor:
    r"""The tensor in `data`: row-major and flat, or nested exactly like `shape`.

    `base64`: the elements of a BYTES tensor are base64, not UTF-8.

    >>> from_json(TensorSpec("x", "INT8", (2, 2)), (2, 2), [[1, 2], [3, 4]])
    Tensor(datatype='INT8', shape=(2, 2), data=b'\x01\x02\x03\x04')

    Raises:
        InvalidRequest: structure, type or range of a value differs from what was declared.
    """
    values, types = _flatten(spec, shape, data)
    if spec.datatype in FLOATS:
        return Tensor(spec.datatype, shape, _floats(spec, values, types))
    if spec.datatype == "BYTES":
        return Tensor(spec.datatype, shape, _byte_strings(spec, values, types, base64))
    if spec.datatype == "BOOL":
        _only(spec, values, types, {bool}, "true or false")
        return Tensor(spec.datatype, shape, bytes(values))
    return Tensor(spec.datatype, shape, _integers(spec, values, types))


def _flatten(spec: TensorSpec, shape: tuple[int, ...], data: object) -> tuple[list[Any], set[type]]:
    """The values of `data` in row-major order, and which types they have. One nesting level at a time, in bulk."""
    if type(data) is not list:
        if shape:
            raise refused(spec, f"data must be a list, not {described(data)}")
        return [data], {type(data)}  # a scalar, nested exactly like its shape
    values: list[Any] = data
    types = set(map(type, values))
    if list in types:
        values, types = _unnest(spec, shape, values)
    if len(values) != math.prod(shape):
        raise refused(
            spec, f"data holds {len(values)} values, shape {list(shape)} takes {math.prod(shape)}"
        )
    return values, types


def _unnest(
    spec: TensorSpec, shape: tuple[int, ...], level: list[Any]
) -> tuple[list[Any], set[type]]:
    lengths, types = {len(level)}, set(map(type, level))
    for depth, size in enumerate(shape):
        if depth:
            lengths = set(map(len, level))
            level = list(chain.from_iterable(level))
            types = set(map(type, level))
        if lengths != {size}:
            wrong = next(length for length in lengths if length != size)
            raise refused(
                spec,
                f"nested data must match shape {list(shape)}: a list at depth {depth + 1} holds {wrong} items",
            )
        if not level:
            return level, types
        if depth + 1 < len(shape) and types != {list}:
            raise refused(
                spec, f"data must be flat, or nested exactly like shape {list(shape)}, not in part"
            )
    if list in types:
        raise refused(spec, f"data is nested deeper than shape {list(shape)}")
    return level, types


def _only(
    spec: TensorSpec, values: list[Any], types: set[type], allowed: Set[type], expected: str
) -> None:
    """Refuse the first of `values` whose type is not `allowed`."""
    if types.difference(allowed):
        at, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
        raise refused(
            spec, f"value {at} of data is {described(value)}; {spec.datatype} takes {expected}"
        )


def _integers(spec: TensorSpec, values: list[Any], types: set[type]) -> bytes:
    _only(spec, values, types, {int}, "integers")
    try:
        return struct.pack(f"{len(values)}{_PACKED[spec.datatype]}", *values)
    except (struct.error, OverflowError):
        low, high = _limits(spec.datatype)
        at, value = next((i, value) for i, value in enumerate(values) if not low <= value <= high)
        raise refused(
            spec, f"value {at} of data is {shown(value)}; {spec.datatype} takes {low} to {high}"
        ) from None


def _limits(datatype: str) -> tuple[int, int]:
    """The least and the greatest integer of a datatype."""
    bits = 8 * (DATATYPES[datatype] or 0)
    return (
        (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def _floats(spec: TensorSpec, values: list[Any], types: set[type]) -> bytes:
    spelled = 0  # values that are no finite number because the caller says so
    if not types <= _NUMBERS:
        values, spelled = _spelled_floats(spec, values, types)
    try:
        packed = struct.pack(
            f"<{len(values)}{_PACKED[spec.datatype]}", *values
        )  # without "<", 1e39 is infinite
        beyond = len(values) - spelled != sum(map(math.isfinite, values))
        if spec.datatype == "BF16":
            packed, infinite = _to_bf16(packed)
            beyond = beyond or infinite
    except (struct.error, OverflowError):  # of floats OverflowError, of integers either
        beyond = True
    if beyond:
        raise refused(spec, f"data holds a number beyond the range of {spec.datatype}") from None
    return packed


def _spelled_floats(spec: TensorSpec, values: list[Any], types: set[type]) -> tuple[list[Any], int]:
    """`values` with null and the spellings of NaN and the infinities as floats, and how many these are."""
    expected = 'numbers, null, "NaN", "Infinity" or "-Infinity"'
    spellings: set[type] = {str, NoneType, Constant}
    _only(spec, values, types, _NUMBERS | spellings, expected)
    floats = list(values)
    at = [i for i, value in enumerate(values) if type(value) in spellings]
    for i in at:
        if values[i] not in _NOT_FINITE:
            raise refused(
                spec,
                f"value {i} of data is {described(values[i])}; {spec.datatype} takes {expected}",
            )
        floats[i] = _NOT_FINITE[values[i]]
    return floats, len(at)


def _byte_strings(
    spec: TensorSpec, values: list[Any], types: set[type], base64: bool
) -> list[bytes]:
    _only(spec, values, types, {str}, "strings")
    try:
        return (
            [binascii.a2b_base64(value, strict_mode=True) for value in values]
            if base64
            else _utf8(values)
        )
    except UnicodeEncodeError:
        raise refused(
            spec, "data holds a lone surrogate, which is no text; send binary data, or base64"
        ) from None
    except ValueError:
        raise refused(
            spec, 'data holds a string that is not base64, as its content_type "base64" promises'
        ) from None


def _utf8(values: list[str]) -> list[bytes]:
    return list(map(str.encode, values))


# --- from JSON text ---------------------------------------------------------------------------------------------------


def from_text(
    spec: TensorSpec, shape: tuple[int, ...], text: bytes, start: int, end: int
) -> Tensor | None:
    """What `from_json` makes of the JSON list in `text[start:end]`, 5 times as fast, or None where it has to look.

    The list holds no string. Types and ranges are checked in bulk: by `struct`, which takes a boolean for a number,
    and by two letters, one of which is in each of true, false and null and neither in a number.
    """
    packed = _PACKED.get(spec.datatype)
    if packed is None or not shape:
        return None
    words = text.find(b"u", start, end) >= 0 or text.find(b"a", start, end) >= 0
    if words and packed != "?":
        return None
    pieces, count = [], 0
    try:
        for values in _pieces(shape, text, start, end):
            if packed == "?" and not set(map(type, values)) <= {bool}:
                return None
            pieces.append(
                struct.pack(f"<{len(values)}{packed}", *values)
            )  # without "<", 1e39 is infinite
            count += len(values)
    except (orjson.JSONDecodeError, struct.error, OverflowError):
        return None
    if count != math.prod(shape):
        return None
    raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if spec.datatype == "BF16":
        raw, infinite = _to_bf16(raw)
        if infinite:
            return None
    return Tensor(spec.datatype, shape, raw)


def _pieces(shape: tuple[int, ...], text: bytes, start: int, end: int) -> Iterator[list[Any]]:
    """The values of a list that is flat, or nested like `shape` as far down as `struct` does not check, or [None].

    Those of a long flat list come some at a time: so they stay in the processor's cache, and take no memory.
    """
    if end - start <= PIECE_BYTES or text[start + 1 : start + 16].lstrip()[:1] == b"[":
        yield _flat(shape, orjson.loads(memoryview(text)[start:end]))
        return
    at, last = start + 1, end - 1
    while at <= last:
        comma = text.find(b",", at + PIECE_BYTES, last)
        stop = last if comma < 0 else comma
        values = orjson.loads(b"[" + text[at:stop] + b"]")
        yield values or [None]  # nothing between two commas, or after the last
        at = stop + 1


def _flat(shape: tuple[int, ...], level: list[Any]) -> list[Any]:
    """The values of a list that is flat, or nested like `shape` as far down as `struct` does not check, or [None]."""
    if level and type(level[0]) is list:
        for size in shape[1:]:
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                return [None]
            level = list(chain.from_iterable(level))
            if not level:
                return [None]
    return level


# --- from bytes -------------------------------------------------------------------------------------------------------


def byte_size(spec: TensorSpec, shape: tuple[int, ...]) -> int | None:
    """How many bytes a binary tensor of this shape takes; None for BYTES, whose elements say so themselves."""
    size = DATATYPES[spec.datatype]
    return None if size is None else math.prod(shape) * size


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    """The tensor in `raw`: little-endian, row-major, and for BYTES each element behind its length in 4 bytes.

    Copied, because the runtime wants numbers that lie aligned, and what follows a text seldom does.

    Raises:
        InvalidRequest: `raw` is not of this shape, or a BOOL is neither 0 nor 1.
    """
    expected = byte_size(spec, shape)
    if expected is None:
        return Tensor(spec.datatype, shape, _elements(spec, math.prod(shape), raw))
    if len(raw) != expected:
        raise refused(
            spec,
            f"shape {list(shape)} of {spec.datatype} is {expected} bytes of binary data, not {len(raw)}",
        )
    data = bytes(raw)
    if spec.datatype == "BOOL" and data.translate(None, b"\0\1"):
        raise refused(spec, "binary BOOL data must hold bytes 0 and 1 only")
    return Tensor(spec.datatype, shape, data)


def _elements(spec: TensorSpec, count: int, raw: memoryview) -> list[bytes]:
    if count * 4 > len(raw):  # before a list of this length exists
        raise refused(
            spec,
            f"binary data of {len(raw)} bytes cannot hold the lengths of {count} BYTES elements",
        )
    elements, at = [], 0
    for index in range(count):
        begin = at + 4
        if begin > len(raw):
            raise refused(
                spec, f"binary data ends within the length of BYTES element {index} of {count}"
            )
        (length,) = struct.unpack_from("<I", raw, at)
        at = begin + length
        if at > len(raw):
            raise refused(
                spec, f"BYTES element {index} claims {length} bytes, {len(raw) - begin} are left"
            )
        elements.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise refused(
            spec, f"binary data has {len(raw) - at} bytes after its {count} BYTES elements"
        )
    return elements


# --- to JSON and to bytes ---------------------------------------------------------------------------------------------


def to_json(tensor: Tensor) -> tuple[list[Any], bool]:
    r"""The values of `tensor` for JSON, flat, and whether they are base64: BYTES that are not UTF-8.

    >>> to_json(Tensor("FP32", (2,), struct.pack("2f", 0.5, math.nan))), to_json(Tensor("BYTES", (1,), [b"\xff"]))
    (([0.5, 'NaN'], False), (['/w=='], True))
    """
    values = tensor.values()
    if tensor.datatype == "BYTES":
        try:
            return [str(element, "utf-8") for element in values], False
        except UnicodeDecodeError:
            return [
                binascii.b2a_base64(element, newline=False).decode("ascii") for element in values
            ], True
    if tensor.datatype in FLOATS and not math.isfinite(
        sum(values)
    ):  # of FP64, a finite sum may be beyond it, too
        return [value if math.isfinite(value) else _spelling(value) for value in values], False
    return values, False


def _spelling(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def to_bytes(tensor: Tensor) -> bytes:
    r"""`tensor` as the binary tensor extension sends it.

    >>> to_bytes(Tensor("BYTES", (1,), [b"ab"])), to_bytes(Tensor("INT16", (1,), b"\xff\xff"))
    (b'\x02\x00\x00\x00ab', b'\xff\xff')
    """
    if tensor.datatype == "BYTES":
        return b"".join(
            chain.from_iterable(
                (struct.pack("<I", len(element)), element) for element in tensor.data
            )
        )
    return bytes(tensor.data)


def _to_bf16(packed: bytes) -> tuple[bytes, bool]:
    """FP32 as BF16, rounded half to even, and whether a finite number became infinite. NaN is the one that JSON has."""
    bits = memoryview(packed).cast("I").tolist()
    halves = [(word + 0x7FFF + ((word >> 16) & 1)) >> 16 for word in bits]
    infinite = sum(half & 0x7FFF == 0x7F80 for half in halves) != sum(
        word & 0x7FFFFFFF == 0x7F800000 for word in bits
    )
    return struct.pack(f"{len(halves)}H", *halves), infinite
