"""Tensors as numpy arrays, as JSON values and as the bytes of the binary tensor extension.

BYTES is an object array of `bytes`, BF16 a uint16 array of bit patterns (the upper half of a float32), anything else
its numpy dtype. Whatever a caller declares is checked before anything of its size is allocated, and whole lists are
checked at once (`set(map(type, values))`): Python visits single values only to name the wrong one.
"""

import binascii
import math
import struct
from collections.abc import Iterator, Set
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
import orjson

from functions.core.errors import InvalidRequest, shown
from functions.core.signature import DATATYPES, DYNAMIC, TensorSpec

PIECE_BYTES = 2**16  # of the text of a list, read at a time
ELEMENTS_LIMIT = 2**26  # 64 MiB of the smallest elements; only tensors without elements could declare more

DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_NUMBERS: frozenset[type] = frozenset({int, float})
# The one FP32 (of all 2^31 that were tried) whose shortest digits stand for its neighbour where they are read as FP64
# and rounded to FP32 then, as most JSON readers do.
AMBIGUOUS = b"7.038531e-26"

_PACKED = {  # as `struct` spells a datatype, or what it is rounded from
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "d",
    "BF16": "f",
    "FP32": "f",
    "FP64": "d",
}
_PACKED_DTYPES: dict[str, np.dtype] = DTYPES | {"FP16": np.dtype("<f8"), "BF16": np.dtype("<f4")}


class Constant(str):
    """A bare NaN, Infinity or -Infinity in JSON text: a value for a float and, unlike a string, for nothing else."""

    __slots__ = ()


_NOT_FINITE: dict[Any, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, None: math.nan}


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
        raise refused(spec, f"shape must be a list of non-negative integers, not {described(value)}")
    if len(value) != len(spec.shape):
        raise refused(
            spec, f"shape has {len(value)} dimensions, the model takes {len(spec.shape)}: {_spelled(spec.shape)}"
        )
    for size in value:
        if type(size) is not int or size < 0:
            raise refused(spec, f"shape must hold non-negative integers, not {described(size)}")
        if size > ELEMENTS_LIMIT:
            raise refused(spec, f"shape holds {shown(size)}; a dimension may be at most {ELEMENTS_LIMIT}")
    if any(want not in (DYNAMIC, got) for want, got in zip(spec.shape, value, strict=True)):
        raise refused(spec, f"shape {value} does not fit the model's {_spelled(spec.shape)}")
    if math.prod(max(size, 1) for size in value) > ELEMENTS_LIMIT:
        raise refused(spec, f"shape {value} holds more than {ELEMENTS_LIMIT} elements")
    return tuple(value)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"{list(shape)}, where -1 is any size" if DYNAMIC in shape else f"{list(shape)}"


# --- from JSON --------------------------------------------------------------------------------------------------------


def from_json(spec: TensorSpec, shape: tuple[int, ...], data: object, *, base64: bool = False) -> np.ndarray:
    """The array in `data`: row-major and flat, or nested exactly like `shape`.

    `base64`: the elements of a BYTES tensor are base64, not UTF-8.

    >>> from_json(TensorSpec("x", "INT8", (2, 2)), (2, 2), [[1, 2], [3, 4]]).tolist()
    [[1, 2], [3, 4]]

    Raises:
        InvalidRequest: structure, type or range of a value differs from what was declared.
    """
    values, types = _flatten(spec, shape, data)
    if spec.datatype in _FLOATS:
        array = _floats(spec, values, types)
    elif spec.datatype == "BYTES":
        array = _byte_strings(spec, values, types, base64)
    elif spec.datatype == "BOOL":
        _only(spec, values, types, {bool}, "true or false")
        array = np.fromiter(values, DTYPES["BOOL"], len(values))
    else:
        array = _integers(spec, values, types)
    return array.reshape(shape)


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
        raise refused(spec, f"data holds {len(values)} values, shape {list(shape)} takes {math.prod(shape)}")
    return values, types


def _unnest(spec: TensorSpec, shape: tuple[int, ...], level: list[Any]) -> tuple[list[Any], set[type]]:
    lengths, types = {len(level)}, set(map(type, level))
    for depth, size in enumerate(shape):
        if depth:
            lengths = set(map(len, level))
            level = list(chain.from_iterable(level))
            types = set(map(type, level))
        if lengths != {size}:
            wrong = next(length for length in lengths if length != size)
            raise refused(
                spec, f"nested data must match shape {list(shape)}: a list at depth {depth + 1} holds {wrong} items"
            )
        if not level:
            return level, types
        if depth + 1 < len(shape) and types != {list}:
            raise refused(spec, f"data must be flat, or nested exactly like shape {list(shape)}, not in part")
    if list in types:
        raise refused(spec, f"data is nested deeper than shape {list(shape)}")
    return level, types


def _only(spec: TensorSpec, values: list[Any], types: set[type], allowed: Set[type], expected: str) -> None:
    """Refuse the first of `values` whose type is not `allowed`."""
    if types.difference(allowed):
        at, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
        raise refused(spec, f"value {at} of data is {described(value)}; {spec.datatype} takes {expected}")


def _integers(spec: TensorSpec, values: list[Any], types: set[type]) -> np.ndarray:
    _only(spec, values, types, {int}, "integers")
    dtype = DTYPES[spec.datatype]
    try:
        return np.fromiter(values, dtype, len(values))
    except OverflowError:
        limits = np.iinfo(dtype.str)
        at, value = next((i, value) for i, value in enumerate(values) if not limits.min <= value <= limits.max)
        raise refused(
            spec, f"value {at} of data is {shown(value)}; {spec.datatype} takes {limits.min} to {limits.max}"
        ) from None


def _floats(spec: TensorSpec, values: list[Any], types: set[type]) -> np.ndarray:
    spelled = 0  # values that are no finite number because the caller says so
    if not types <= _NUMBERS:
        values, spelled = _spelled_floats(spec, values, types)
    try:
        with np.errstate(over="ignore"):
            array = np.fromiter(values, np.float32 if spec.datatype == "BF16" else DTYPES[spec.datatype], len(values))
    except OverflowError:  # an integer beyond FP64
        raise refused(spec, f"data holds a number beyond the range of {spec.datatype}") from None
    if spec.datatype == "BF16":
        array, finite = _to_bf16(array)
    else:
        finite = np.isfinite(array)
    if np.count_nonzero(finite) + spelled != array.size:
        raise refused(spec, f"data holds a number beyond the range of {spec.datatype}")
    return array


def _spelled_floats(spec: TensorSpec, values: list[Any], types: set[type]) -> tuple[list[Any], int]:
    """`values` with null and the spellings of NaN and the infinities as floats, and how many these are."""
    expected = 'numbers, null, "NaN", "Infinity" or "-Infinity"'
    spellings: set[type] = {str, NoneType, Constant}
    _only(spec, values, types, _NUMBERS | spellings, expected)
    floats = list(values)
    at = [i for i, value in enumerate(values) if type(value) in spellings]
    for i in at:
        if values[i] not in _NOT_FINITE:
            raise refused(spec, f"value {i} of data is {described(values[i])}; {spec.datatype} takes {expected}")
        floats[i] = _NOT_FINITE[values[i]]
    return floats, len(at)


def _byte_strings(spec: TensorSpec, values: list[Any], types: set[type], base64: bool) -> np.ndarray:
    _only(spec, values, types, {str}, "strings")
    try:
        encoded = [binascii.a2b_base64(value, strict_mode=True) for value in values] if base64 else _utf8(values)
    except UnicodeEncodeError:
        raise refused(spec, "data holds a lone surrogate, which is no text; send binary data, or base64") from None
    except ValueError:
        raise refused(spec, 'data holds a string that is not base64, as its content_type "base64" promises') from None
    return _objects(encoded)


def _utf8(values: list[str]) -> list[bytes]:
    return list(map(str.encode, values))


def _objects(elements: list[bytes]) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


# --- from JSON text ---------------------------------------------------------------------------------------------------


def from_text(spec: TensorSpec, shape: tuple[int, ...], text: bytes, start: int, end: int) -> np.ndarray | None:
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
            pieces.append(struct.pack(f"{len(values)}{packed}", *values))
            count += len(values)
    except (orjson.JSONDecodeError, struct.error, OverflowError):
        return None
    if count != math.prod(shape):
        return None
    raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    array: np.ndarray = np.frombuffer(raw, _PACKED_DTYPES[spec.datatype])
    if spec.datatype in _FLOATS:
        if spec.datatype == "BF16":
            array, finite = _to_bf16(array)
        else:
            if spec.datatype == "FP16":
                with np.errstate(over="ignore"):
                    array = array.astype(DTYPES["FP16"])
            finite = np.isfinite(array)
        if np.count_nonzero(finite) != array.size:
            return None
    return array.reshape(shape)


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


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], raw: memoryview) -> np.ndarray:
    """The array in `raw`: little-endian, row-major, and for BYTES each element behind its length in 4 bytes.

    Not copied, and then read-only, unless it is BYTES or lies unaligned.

    Raises:
        InvalidRequest: `raw` is not of this shape, or a BOOL is neither 0 nor 1.
    """
    expected = byte_size(spec, shape)
    if expected is None:
        return _objects(_elements(spec, math.prod(shape), raw)).reshape(shape)
    if len(raw) != expected:
        raise refused(
            spec, f"shape {list(shape)} of {spec.datatype} is {expected} bytes of binary data, not {len(raw)}"
        )
    if spec.datatype == "BOOL" and np.any(np.frombuffer(raw, np.uint8) > 1):
        raise refused(spec, "binary BOOL data must hold bytes 0 and 1 only")
    array = np.frombuffer(raw, DTYPES[spec.datatype])
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def from_bytes_at(
    spec: TensorSpec, shape: tuple[int, ...], body: bytes | memoryview, start: int, size: int
) -> np.ndarray:
    """`from_bytes` of `size` bytes of `body`, which are known to be as many as `shape` takes."""
    if spec.datatype in ("BOOL", "BYTES"):
        return from_bytes(spec, shape, memoryview(body)[start : start + size])
    array = np.ndarray(shape, DTYPES[spec.datatype], body, start)
    return array if array.flags.aligned else array.copy()


def _elements(spec: TensorSpec, count: int, raw: memoryview) -> list[bytes]:
    if count * 4 > len(raw):  # before a list of this length exists
        raise refused(spec, f"binary data of {len(raw)} bytes cannot hold the lengths of {count} BYTES elements")
    elements, at = [], 0
    for index in range(count):
        begin = at + 4
        if begin > len(raw):
            raise refused(spec, f"binary data ends within the length of BYTES element {index} of {count}")
        (length,) = struct.unpack_from("<I", raw, at)
        at = begin + length
        if at > len(raw):
            raise refused(spec, f"BYTES element {index} claims {length} bytes, {len(raw) - begin} are left")
        elements.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise refused(spec, f"binary data has {len(raw) - at} bytes after its {count} BYTES elements")
    return elements


# --- to JSON and to bytes ---------------------------------------------------------------------------------------------


def to_json(datatype: str, array: np.ndarray) -> tuple[list[Any], bool]:
    """The values of `array` for JSON, flat, and whether they are base64: BYTES that are not UTF-8.

    >>> to_json("FP32", np.array([[0.5, np.nan]], np.float32)), to_json("BYTES", np.array([b"\\xff"], object))
    (([0.5, 'NaN'], False), (['/w=='], True))
    """
    if datatype == "BYTES":
        elements = array.ravel().tolist()
        try:
            return [str(element, "utf-8") for element in elements], False
        except UnicodeDecodeError:
            return [binascii.b2a_base64(element, newline=False).decode("ascii") for element in elements], True
    numbers = numeric(datatype, array).ravel()
    values = numbers.tolist()
    if datatype in _FLOATS:
        for i in np.flatnonzero(~np.isfinite(numbers)).tolist():
            values[i] = "NaN" if math.isnan(values[i]) else "Infinity" if values[i] > 0 else "-Infinity"
    return values, False


def to_text(datatype: str, array: np.ndarray) -> np.ndarray | None:
    """`array`, flat, for orjson to spell; None where a value has to be spelled by `to_json`.

    Floats get the fewest digits that stand for them: 0.1 in FP32 is not 0.10000000149011612. See `AMBIGUOUS`.
    """
    if datatype == "BYTES":
        return None
    numbers = numeric(datatype, array).ravel()
    if datatype in _FLOATS:
        if np.count_nonzero(np.isfinite(numbers)) != numbers.size:
            return None
        if datatype == "FP16":
            return numbers.astype(np.float32)
    return numbers


def to_bytes(datatype: str, array: np.ndarray) -> bytes:
    """`array` as the binary tensor extension sends it.

    >>> to_bytes("BYTES", np.array([b"ab"], object)), to_bytes("INT16", np.array([[1, -1]], np.int16))
    (b'\\x02\\x00\\x00\\x00ab', b'\\x01\\x00\\xff\\xff')
    """
    if datatype == "BYTES":
        elements = array.ravel().tolist()
        return b"".join(chain.from_iterable((struct.pack("<I", len(element)), element) for element in elements))
    return array.tobytes()


def numeric(datatype: str, array: np.ndarray) -> np.ndarray:
    """`array` as numbers that numpy can compare and spell: BF16 as float32, anything else as it is."""
    return (array.astype(np.uint32) << 16).view(np.float32) if datatype == "BF16" else array


def _to_bf16(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 as BF16, rounded half to even, and where the results are finite."""
    bits = array.view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    halves = np.where(np.isnan(array), np.uint16(0x7FC0), rounded)  # rounding could carry a NaN into infinity
    return halves, (halves & 0x7F80) != 0x7F80
