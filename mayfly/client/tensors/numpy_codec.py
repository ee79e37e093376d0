"""Binary tensors from and to numpy arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mayfly.client.errors import InvalidInput
from mayfly.client.http1.messages import Body
from mayfly.client.tensors import texts
from mayfly.client.tensors.signature import TensorSpec, count

Array = NDArray[Any]


def encode(spec: TensorSpec, value: Any) -> tuple[tuple[int, ...], Body]:
    """Return the shape and the bytes of an input's values.

    A dtype other than the input's is cast if no value changes, the rounding of floats apart.

    Raises:
        InvalidInput: the values have another shape, or do not fit the datatype.
    """
    if spec.datatype == "BYTES":
        values = _array(spec, value, np.dtype(object))
        return spec.fit(values.shape), texts.pack(spec.name, values.ravel().tolist())
    array = _numbers(spec, value)
    shape = spec.fit(array.shape)
    content = np.ascontiguousarray(_converted(spec, array))
    return shape, content.data.cast("B") if content.size else b""


def decode(datatype: str, dtype: str, shape: tuple[int, ...], content: memoryview) -> Array:
    """Return an output's values as a new array."""
    if datatype == "BYTES":
        array = np.empty(count(shape), object)
        array[:] = texts.unpack(content, array.size)
        return array.reshape(shape)
    if datatype == "BF16":
        halves = np.frombuffer(content, "<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(shape)
    return np.frombuffer(content, dtype).reshape(shape).copy()


def _array(spec: TensorSpec, value: Any, dtype: Any) -> Array:
    try:
        return np.asarray(value, dtype)
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidInput(
            f"input {spec.name!r}: no array of numbers: {error}", input=spec.name
        ) from None


def _numbers(spec: TensorSpec, value: Any) -> Array:
    """Return an array; large integers in lists stay integers."""
    array = _array(spec, value, None)
    if spec.kind.kind == "i" and array.dtype.kind in "fO" and not hasattr(value, "dtype"):
        objects = np.array(value, object)
        if all(type(number) is int for number in objects.flat):
            try:
                return objects.astype(spec.kind.dtype)
            except OverflowError:
                raise _misfit(spec, objects, np.abs(objects) >= 2**63) from None
    return array


def _converted(spec: TensorSpec, array: Array) -> Array:
    if array.dtype.name == "bfloat16":  # a dtype of the package ml_dtypes
        if spec.datatype == "BF16":
            return array.view(np.uint16)
        array = array.astype(np.float32)
    result = _cast(spec, array)
    return _to_bfloat16(result) if spec.datatype == "BF16" else result


def _cast(spec: TensorSpec, array: Array) -> Array:
    dtype = np.dtype(spec.kind.dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise InvalidInput(
            f"input {spec.name!r}: dtype {array.dtype} is no {spec.datatype}: "
            f"pass an array of {dtype}",
            input=spec.name,
        )
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if array.dtype.kind == "f" and dtype.kind == "f":
            changed = np.isfinite(array) & ~np.isfinite(result)
        else:
            changed = (result.astype(array.dtype) != array) | (result != array)
    if changed.any():
        raise _misfit(spec, array, changed)
    return result


def _misfit(spec: TensorSpec, array: Array, changed: Array) -> InvalidInput:
    place = [int(index) for index in np.argwhere(changed)[0]]
    value = array[tuple(place)]
    return InvalidInput(
        f"input {spec.name!r}: {value!s:.40} at {place} does not fit {spec.datatype}; "
        "round, clip or scale the values first",
        input=spec.name,
    )


def _to_bfloat16(array: Array) -> Array:
    """Round float32 to bfloat16: to nearest, ties to even."""
    bits = np.ascontiguousarray(array).view("<u4").reshape(array.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2")
