"""Loader of sounds from class folders: <label>/<name>.wav."""

from __future__ import annotations

import math
import struct
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.data.media.folders import FileRows, GroupOf, load_classes, short_name
from training.data.sources import IN_MEMORY_MB, Location
from training.errors import InvalidData, NoRows

Array = NDArray[Any]

# Bytes of sound: a WAV header that claims as many or more was written before the length was known,
# e.g. into a pipe.
UNKNOWN_LENGTH = 2**31 - 2**16


def sounds(
    location: Location,
    *,
    rate: int = 16_000,
    seconds: float = 1.0,
    groups: GroupOf | None = None,
    by: str = "speaker",
    labels: Sequence[str] = (),
    in_memory_mb: float = IN_MEMORY_MB,
) -> Dataset:
    """Load WAV files from class folders as labelled sounds of equal length.

    The input is `audio` (n, rate x seconds) in [-1, 1]. The files of each class lie in a folder
    named after it and hold PCM of 8, 16, 24 or 32 bits. Channels are averaged, other rates
    resampled, shorter sounds filled with silence, longer ones cut. `groups` returns a file's
    speaker, and `by` names the kind of group. Sounds that take more than `in_memory_mb` are read
    batch by batch.

    Raises:
        InvalidData: a file is no such WAV, or lies in no known class's folder.
    """
    samples = round(rate * seconds)

    def read(path: Path) -> Array:
        sound, own_rate = _read_wav(path)
        if own_rate != rate:
            from scipy.signal import resample_poly

            divisor = math.gcd(rate, own_rate)
            sound = resample_poly(sound, rate // divisor, own_rate // divisor)
        padded = np.zeros(samples, np.float32)
        padded[: len(sound)] = sound[:samples]
        return padded

    def rows(paths: Sequence[Path], _: Array | None) -> FileRows:
        # Resampling overshoots full scale a little, so only finite numbers are certain.
        return FileRows(paths, read, (samples,), bounds=(-math.inf, math.inf))

    return load_classes(location, (".wav",), "audio", rows, groups, by, labels, in_memory_mb)


def _read_wav(path: Path) -> tuple[Array, int]:
    """Read a WAV file's samples in [-1, 1] and sampling rate (Hz)."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.getnframes()
            raw = file.readframes(frames)
    except (wave.Error, EOFError, struct.error) as error:
        why = error or "it is cut off"
        raise InvalidData(f"{short_name(path)} is no WAV file of PCM: {why}") from error
    if width not in (1, 2, 3, 4) or not 1000 <= rate <= 400_000:
        samples = f"samples of {8 * width} bits at {rate} Hz"
        raise InvalidData(f"{short_name(path)} has {samples}; 8 to 32 bits are known")
    frame_bytes = width * channels
    complete = len(raw) // frame_bytes
    if complete < frames and frames * frame_bytes < UNKNOWN_LENGTH:
        there = f"{complete} of {frames} samples are there"
        raise InvalidData(f"{short_name(path)} is cut off: {there}")
    if not complete:
        raise NoRows(f"{short_name(path)} has no sound")
    values = _pcm(raw[: complete * frame_bytes], width)
    return values.reshape(-1, channels).mean(axis=1).astype(np.float32), rate


def _pcm(raw: bytes, width: int) -> NDArray[np.float64]:
    """Convert little-endian PCM bytes to floats in [-1, 1].

    Each sample has `width` bytes.
    """
    data = np.frombuffer(raw, np.uint8).reshape(-1, width)
    if width == 1:
        return data[:, 0].astype(np.float64) / 128 - 1  # 8-bit PCM alone is unsigned
    widened = np.zeros((len(data), 4), np.uint8)
    widened[:, 4 - width :] = data  # the lowest bytes stay 0
    samples: NDArray[np.float64] = widened.view("<i4")[:, 0] / 2**31
    return samples
