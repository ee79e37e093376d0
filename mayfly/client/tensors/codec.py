"""Tensors from and to Python values; numpy is imported when used."""

from functools import cache
from importlib.util import find_spec
from typing import Any

from mayfly.client.errors import ServerError
from mayfly.client.http1.messages import Body
from mayfly.client.tensors import plain_codec
from mayfly.client.tensors.datatypes import BY_NAME
from mayfly.client.tensors.signature import TensorSpec, count


@cache
def has_numpy() -> bool:
    """Tell if numpy is installed, without importing it."""
    return find_spec("numpy") is not None


def encode(spec: TensorSpec, value: Any) -> tuple[tuple[int, ...], Body]:
    """Return the shape and the bytes of an input's values.

    Raises:
        InvalidInput: the values have another shape, or do not fit the datatype.
    """
    if not has_numpy():
        return plain_codec.encode(spec, value)
    from mayfly.client.tensors import numpy_codec

    return numpy_codec.encode(spec, value)


def decode(datatype: str, shape: tuple[int, ...], content: memoryview) -> Any:
    """Return an output's values: an array, or nested lists without numpy.

    Raises:
        ServerError: the content does not fill the shape.
    """
    kind = BY_NAME.get(datatype)
    if kind is None:
        raise ServerError(f"the reply has the unknown datatype {datatype!r}")
    if kind.size and kind.size * count(shape) != len(content):
        raise ServerError(
            f"the reply holds {len(content)} bytes for {datatype} {list(shape)}, "
            f"which needs {kind.size * count(shape)}"
        )
    if not has_numpy():
        return plain_codec.decode(datatype, shape, content)
    from mayfly.client.tensors import numpy_codec

    return numpy_codec.decode(datatype, kind.dtype, shape, content)
