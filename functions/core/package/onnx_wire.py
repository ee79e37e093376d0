"""Lazy reader of protobuf fields that limits how many are visited.

Lengths are followed and a value is decoded only when it is asked for, so reading a file of
gigabytes takes time for its structure and not for its weights. Encoding:
https://protobuf.dev/programming-guides/encoding/
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from functions.core.errors import InvalidModel, shown
from functions.core.package import onnx_limits as limits

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 ended with protobuf 1
RUN = -1  # stands for a wire type: one field repeated many times in a row

Field = tuple[int, int, int, int]  # number, wire type, start (for a VARINT its value), end
Runs = Mapping[int, re.Pattern[bytes]]  # field tag -> pattern of repetitions of the field

# A text of up to 127 bytes: its length in one byte, then as many bytes.
_TEXT = b"(?:%b)" % b"|".join(b"%b.{%d}" % (re.escape(bytes([n])), n) for n in range(128))
_VALUE = {
    VARINT: rb"[\x80-\xff]{0,9}+[\x00-\x7f]",
    FIXED64: rb".{8}",
    BYTES: _TEXT,
    FIXED32: rb".{4}",
}
_TAGGED_TEXT = re.compile(b"." + _TEXT, re.DOTALL)
_NO_RUNS: Runs = {}


def runs(wire_type: int, *numbers: int) -> Runs:
    """Map protobuf field tags to regexes that match runs of repeated fields.

    A run has at most 65,536 repetitions, and its texts at most 127 bytes each.
    """
    tags = [number << 3 | wire_type for number in numbers]
    value = _VALUE[wire_type]
    return {
        tag: re.compile(b"(?:%b%b){1,65536}+" % (re.escape(bytes([tag])), value), re.DOTALL)
        for tag in tags
    }


class WireReader:
    """Protobuf field reader that refuses files of more than `limits.FIELDS` fields."""

    def __init__(self, data: Any) -> None:
        """Read from `data`: bytes or a memory-mapped file."""
        self.data = data
        self._fields_left = limits.FIELDS

    def fields(self, at: int, end: int, repeated: Runs = _NO_RUNS) -> Iterator[Field]:
        """Yield (number, wire type, start, end) of each protobuf field.

        A VARINT has its value in place of `start`. A field in `repeated` comes once for all its
        repetitions in a row, with the wire type RUN.

        Raises:
            InvalidModel: `TRUNCATED`, `NOT_ONNX` or `TOO_COMPLEX`.
        """
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise too_complex(f"the file has over {limits.FIELDS} fields")
            tag = self.data[at]
            if tag in repeated and (run := repeated[tag].match(self.data, at, end)):
                yield tag >> 3, RUN, at, run.end()
                at = run.end()
                continue
            tag, at = (tag, at + 1) if tag < 0x80 else self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if number == 0 or tag >> 32:
                raise _not_a_field(at)
            if kind == VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, at
                continue
            length, at = self._length(kind, at, end)
            if at + length > end:
                raise _truncated(at, length)
            yield number, kind, at, at + length
            at += length

    def name(self, start: int, end: int) -> str:
        """Decode an ONNX name; refuse an unprintable or overlong one.

        At most `limits.NAME` characters are allowed.

        Raises:
            InvalidModel: `BAD_NAME`.
            UnicodeDecodeError: it is not UTF-8.
        """
        most_bytes = 4 * limits.NAME  # UTF-8 takes up to four bytes a character
        errors = "strict" if end - start <= most_bytes else "replace"
        return check_name(self.text(start, min(end, start + most_bytes + 4), errors))

    def text(self, start: int, end: int, errors: str = "strict") -> str:
        """Decode the bytes from `start` to `end` as UTF-8 text."""
        return bytes(self.data[start:end]).decode("utf-8", errors)

    def entry(self, start: int, end: int) -> tuple[str, str, int]:
        """Decode a key-value pair (StringStringEntryProto); the key must be a name.

        Returns key, value and the position of the value.
        """
        key, value, at = "", "", end
        for number, kind, first, last in self.fields(start, end):
            if number == 1 and kind == BYTES:
                key = self.name(first, last)
            elif number == 2 and kind == BYTES:
                value, at = self.text(first, last), first
        return key, value, at

    def packed(self, at: int, end: int, most: int) -> list[int]:
        """Decode at most `most` + 1 values of a packed int64 field."""
        values: list[int] = []
        while at < end and len(values) <= most:
            value, at = self._varint(at, end)
            values.append(signed(value))
        return values

    def count_texts(self, start: int, end: int) -> int:
        """Count the strings in a run of consecutive protobuf string fields."""
        return _TAGGED_TEXT.subn(b"", bytes(self.data[start:end]))[1]

    def _length(self, kind: int, at: int, end: int) -> tuple[int, int]:
        """Return a protobuf field value's length in bytes and start position."""
        if kind == BYTES:
            return self._varint(at, end)
        if kind == FIXED64:
            return 8, at
        if kind == FIXED32:
            return 4, at
        raise _not_a_field(at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Decode an unsigned protobuf varint; return the value and its end position."""
        data, value = self.data, 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise InvalidModel(
                    "the file ends inside a number: it is truncated; upload it again",
                    code="TRUNCATED",
                )
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at
        raise not_onnx(f"the number that ends at byte {at} is too long")


def encode_varint(value: int) -> bytes:
    """Encode an unsigned integer as a protobuf varint.

    >>> encode_varint(300)
    b'\\xac\\x02'
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def encode_field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited protobuf field: string, bytes or message."""
    return encode_varint(number << 3 | BYTES) + encode_varint(len(content)) + content


def signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit value as a signed int64.

    >>> signed(2**64 - 1)
    -1
    """
    return value - (1 << 64) if value >> 63 else value


def check_name(name: str) -> str:
    """Validate a name in an ONNX file: printable and not too long.

    Raises:
        InvalidModel: `BAD_NAME`.
    """
    if len(name) > limits.NAME or not name.isprintable():
        raise InvalidModel(
            f"the name {shown(name)} is over {limits.NAME} characters long or not printable",
            code="BAD_NAME",
        )
    return name


def not_onnx(reason: str) -> InvalidModel:
    """Return the NOT_ONNX error for a file that is no ONNX model."""
    return InvalidModel(
        f"the file is no ONNX model: {reason}; upload what torch.onnx or skl2onnx wrote",
        code="NOT_ONNX",
    )


def too_complex(reason: str) -> InvalidModel:
    """Return the TOO_COMPLEX error for a model above a structural limit."""
    return InvalidModel(f"{reason}: more than any real model needs", code="TOO_COMPLEX")


def _not_a_field(at: int) -> InvalidModel:
    return not_onnx(f"byte {at} is no field of a protobuf message")


def _truncated(at: int, length: int) -> InvalidModel:
    return InvalidModel(
        f"the file ends inside a field that begins at byte {at} and has {length} bytes: "
        "it is truncated, or no ONNX model; upload it again",
        code="TRUNCATED",
    )
