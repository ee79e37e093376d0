"""Writer of TensorBoard event files: scalars by step, hyperparameters.

The format is a TFRecord file of `Event` messages (tensorboard/compat/proto/event.proto, and
plugins/hparams/plugin_data.proto). The package tensorboard would bring gRPC and a web server for
these few fields.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POLYNOMIAL = 0x82F63B78  # CRC-32C's, reflected
VERSION = b"brain.Event:2"
LARGEST = (2 - 2**-23) * 2.0**127  # largest finite float32, the format's only kind of number


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


class EventFile:
    """Event file of one run; each call appends to it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        # TensorBoard reads every file with "tfevents" in its name, in the order of names.
        self._path = folder / f"events.out.tfevents.{time.time_ns():020d}"
        self._is_new, self._settings = True, settings or {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append named numbers of one step, which readers see at once."""
        named = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", _single(value)))
            for name, value in values.items()
        )
        self._write(b"\x10" + _varint(step) + _bytes(5, named))

    def end(self, *, failed: bool | None) -> None:
        """Append the run's final status; `failed` is None for pruned runs."""
        status = {None: 0, False: 1, True: 2}[failed]  # UNKNOWN, SUCCESS, FAILURE
        end = b"\x08" + _varint(status) + _double(2, time.time())
        self._hyperparameter_data("session_end_info", _bytes(4, end))

    def _hyperparameter_data(self, name: str, content: bytes) -> None:
        """Append data of the plugin hparams, whose table compares runs."""
        plugin = _bytes(1, b"hparams") + _bytes(2, content)
        tag = f"_hparams_/{name}".encode()
        value = _bytes(1, tag) + _bytes(9, _bytes(1, plugin))
        self._write(_bytes(5, _bytes(1, value)))

    def _write(self, fields: bytes) -> None:
        if self._is_new:  # a run that is refused before its first epoch leaves no folder
            self._is_new = False
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(_bytes(3, VERSION))
            start = _hyperparameters(self._settings) + _double(5, time.time())
            self._hyperparameter_data("session_start_info", _bytes(3, start))
        event = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        with self._path.open("ab") as file:
            file.write(length + _masked(length) + event + _masked(event))


def _hyperparameters(settings: Mapping[str, Any]) -> bytes:
    """Encode hyperparameters as a protobuf map of google.protobuf.Value."""
    return b"".join(
        _bytes(1, _bytes(1, name.encode()) + _bytes(2, _value(value)))
        for name, value in settings.items()
    )


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\x20" + _varint(value)
    if isinstance(value, int | float):
        return _double(2, value)
    return _bytes(3, str(value).encode())


def _double(field: int, number: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", number)


def _single(value: float) -> float:
    """Clamp a finite number to the range of float32."""
    return min(max(value, -LARGEST), LARGEST) if math.isfinite(value) else value


def _varint(number: int) -> bytes:
    """Encode a number of protobuf, 7 bits a byte.

    >>> _varint(300)
    b'\\xac\\x02'
    """
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def _bytes(field: int, content: bytes) -> bytes:
    """Encode a protobuf field of bytes or of a message."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def crc32c(content: bytes) -> int:
    """Compute the CRC-32C of bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(content: bytes) -> bytes:
    """Return the masked CRC-32C that TFRecord stores after each part."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
