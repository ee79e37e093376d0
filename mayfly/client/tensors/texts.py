"""BYTES tensors in binary: each value follows its length, a UINT32."""

import struct
from collections.abc import Iterable
from typing import Any

from mayfly.client.errors import InvalidInput, ServerError

_LENGTH = struct.Struct("<I")


def pack(name: str, values: Iterable[Any]) -> bytes:
    """Pack strings, as UTF-8, and bytes.

    >>> pack("text", ["é", b"a"])
    b'\\x02\\x00\\x00\\x00\\xc3\\xa9\\x01\\x00\\x00\\x00a'

    Raises:
        InvalidInput: a value is neither.
    """
    parts: list[bytes] = []
    for value in values:
        content = value.encode() if isinstance(value, str) else value
        if not isinstance(content, bytes | bytearray | memoryview):
            raise InvalidInput(
                f"input {name!r}: {value!r:.40} is no text: pass str or bytes", input=name
            )
        parts += (_LENGTH.pack(len(content)), bytes(content))
    return b"".join(parts)


def unpack(content: memoryview, size: int) -> list[bytes]:
    """Unpack `size` values.

    >>> unpack(memoryview(b"\\x01\\x00\\x00\\x00a"), 1)
    [b'a']

    Raises:
        ServerError: the content holds another number of values.
    """
    values: list[bytes] = []
    offset = 0
    while offset + 4 <= len(content) and len(values) < size:
        [length] = _LENGTH.unpack_from(content, offset)
        offset += 4 + length
        values.append(bytes(content[offset - length : offset]))
    if offset != len(content) or len(values) != size:
        raise ServerError(f"the reply holds no {size} values of datatype BYTES")
    return values
