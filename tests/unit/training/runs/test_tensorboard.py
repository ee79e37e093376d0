"""Event files, read back by the layout that TensorBoard reads."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.runs.tensorboard import EventFile, crc32c

pytestmark = pytest.mark.train


def records(path: Path) -> Iterator[bytes]:
    """Yield a TFRecord file's records, after checking both of their checksums."""
    raw = path.read_bytes()
    start = 0
    while start < len(raw):
        (length,) = struct.unpack("<Q", raw[start : start + 8])
        content = raw[start + 12 : start + 12 + length]
        end = start + 16 + length
        for checked, stored in (
            (raw[start : start + 8], raw[start + 8 : start + 12]),
            (content, raw[end - 4 : end]),
        ):
            rotated = (struct.unpack("<I", stored)[0] - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(checked)
        yield content
        start = end


def test_scalars_are_records_with_step_name_and_value(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.scalars(300, {"loss": 0.5})

    (path,) = tmp_path.iterdir()
    version, _settings, event = records(path)
    assert path.name.startswith("events.out.tfevents.")
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    # Step 300, then summary { value { tag: "loss" simple_value: 0.5 } }.
    summary = b"\x0a\x04loss\x15" + struct.pack("<f", 0.5)
    assert event[9:] == b"\x10\xac\x02\x2a" + bytes([len(summary) + 2]) + b"\x0a" + (
        bytes([len(summary)]) + summary
    )


def test_every_step_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.scalars(1, {"loss": 2.0, "validation_loss": float("nan")})

    (path,) = tmp_path.iterdir()
    assert len(list(records(path))) == 3


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1e39, 3.4028234663852886e38),
        (-1e300, -3.4028234663852886e38),
        (float("inf"), float("inf")),
        (0.5, 0.5),
    ],
)
def test_numbers_above_float32_are_stored_as_its_largest(
    tmp_path: Path, value: float, stored: float
) -> None:
    EventFile(tmp_path).scalars(1, {"mse": value})

    (path,) = tmp_path.iterdir()
    *_, event = records(path)
    assert struct.unpack("<f", event[-4:])[0] == stored
