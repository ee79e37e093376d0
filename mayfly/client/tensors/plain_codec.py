"""Binary tensors from and to nested lists, where numpy is not installed."""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from mayfly.client.errors import InvalidInput, ServerError
from mayfly.client.http1.messages import Body
from mayfly.client.tensors import texts
from mayfly.client.tensors.datatypes import BY_NAME
from mayfly.client.tensors.signature import TensorSpec, count


def encode(spec: TensorSpec, value: Any) -> tuple[tuple[int, ...], Body]:
    """Return the shape and the bytes of an input's values.

    Raises:
        InvalidInput: the lists are ragged, have another shape, or do not fit the datatype.
    """
    shape = tuple(_shape(value))
    values = list(_flat(spec.name, value, shape))
    fitted = spec.fit(shape)
    if spec.datatype == "BYTES":
        return fitted, texts.pack(spec.name, values)
    numbers = [_number(spec, value) for value in values]
    try:
        if spec.datatype == "BF16":
            return fitted, b"".join(map(_to_bfloat16, numbers))
        return fitted, struct.pack(f"<{len(numbers)}{spec.kind.code}", *numbers)
    except (struct.error, OverflowError) as error:
        raise InvalidInput(
            f"input {spec.name!r}: a value does not fit {spec.datatype}: {error}", input=spec.name
        ) from None


def decode(datatype: str, shape: tuple[int, ...], content: memoryview) -> Any:
    """Return an output's values as nested lists."""
    values: Sequence[Any]
    if datatype == "BYTES":
        values = texts.unpack(content, count(shape))
    elif datatype == "BF16":
        halves = struct.unpack(f"<{len(content) // 2}H", content)
        values = struct.unpack(
            f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves))
        )
    else:
        kind = BY_NAME[datatype]
        values = struct.unpack(f"<{len(content) // kind.size}{kind.code}", content)
    if len(values) != count(shape):
        raise ServerError(f"the reply holds {len(values)} values for shape {list(shape)}")
    return _nested(values, shape)


def _shape(value: Any) -> Iterator[int]:
    while isinstance(value, list | tuple):
        yield len(value)
        if not value:
            return
        value = value[0]


def _flat(name: str, value: Any, shape: Sequence[int]) -> Iterator[Any]:
    if not shape:
        if isinstance(value, list | tuple):
            raise InvalidInput(f"input {name!r}: the lists differ in length", input=name)
        yield value
        return
    if not isinstance(value, list | tuple) or len(value) != shape[0]:
        raise InvalidInput(f"input {name!r}: the lists differ in length", input=name)
    for part in value:
        yield from _flat(name, part, shape[1:])


def _number(spec: TensorSpec, value: Any) -> Any:
    """Return a number in the datatype's kind, unchanged."""
    kind = spec.kind.kind
    if isinstance(value, int | float):
        if kind == "f":
            number = float(value)
            exact = isinstance(value, float) or _narrow(spec, number) == value
        else:
            exact = math.isfinite(value) and int(value) == value
            number = int(value) if exact else value
        if exact and (kind != "b" or number in (0, 1)):
            return number
    raise InvalidInput(
        f"input {spec.name!r}: {value!r:.40} does not fit {spec.datatype}; "
        "round, clip or scale the values first",
        input=spec.name,
    )


def _narrow(spec: TensorSpec, number: float) -> float:
    if spec.datatype == "BF16":
        [half] = struct.unpack("<H", _to_bfloat16(number))
        return float(struct.unpack("<f", struct.pack("<I", half << 16))[0])
    code = f"<{spec.kind.code}"
    return float(struct.unpack(code, struct.pack(code, number))[0])


def _to_bfloat16(number: float) -> bytes:
    if math.isnan(number):
        return b"\xc0\x7f"
    [bits] = struct.unpack("<I", struct.pack("<f", number))
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _nested(values: Sequence[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return values[0]
    if len(shape) == 1:
        return list(values)
    step = count(shape[1:])
    return [
        _nested(values[start * step : (start + 1) * step], shape[1:]) for start in range(shape[0])
    ]
