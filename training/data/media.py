"""Loaders of images and sounds from class folders: <label>/<name>.png or .wav."""

from __future__ import annotations

import math
import struct
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples
from training.data.sources import Location, Part, load, unknown_label
from training.errors import InvalidData, NoRows, WrongShape

Array = NDArray[Any]
GroupOf = Callable[[Path], str]  # file → its group, e.g. lambda path: path.stem.split("_")[0]
# (file, values of the first file) → values of the file
ReadFile = Callable[[Path, Array | None], Array]

MOST_PIXELS = 50_000_000  # in an image; more pixels are a mistake or an attack
# Bytes of sound: a WAV header that claims as many or more was written before the length was known,
# e.g. into a pipe.
UNKNOWN_LENGTH = 2**31 - 2**16


def images(
    location: Location,
    *,
    size: tuple[int, int] | None = None,
    colour: Literal["grey", "rgb"] = "rgb",
    groups: GroupOf | None = None,
    by: str = "group",
    labels: Sequence[str] = (),
) -> Dataset:
    """Load PNG and JPEG files from class folders as labelled images.

    The input is `image` (n, 1 or 3, height, width) in [0, 1]. The files of each class lie in a
    folder named after it. They have one size, or are scaled to `size`, (height, width) in pixels.
    Transparency becomes white. `groups` returns a file's group, and `by` names the kind of group.

    Raises:
        InvalidData: a file is no image, has another size, or lies in no known class's folder.
    """

    def read(path: Path, first: Array | None) -> Array:
        pixels = _read_image(path, size, colour)
        if first is not None and pixels.shape != first.shape:
            (height, width), (first_height, first_width) = pixels.shape[1:], first.shape[1:]
            sizes = f"{height}x{width} pixels, those before {first_height}x{first_width}"
            raise WrongShape(f"{_name(path)} has {sizes}; give size=(height, width)")
        return pixels

    return _load(location, (".png", ".jpg", ".jpeg"), "image", read, groups, by, labels)


def sounds(
    location: Location,
    *,
    rate: int = 16_000,
    seconds: float = 1.0,
    groups: GroupOf | None = None,
    by: str = "speaker",
    labels: Sequence[str] = (),
) -> Dataset:
    """Load WAV files from class folders as labelled sounds of equal length.

    The input is `audio` (n, rate x seconds) in [-1, 1]. The files of each class lie in a folder
    named after it and hold PCM of 8, 16, 24 or 32 bits. Channels are averaged, other rates
    resampled, shorter sounds filled with silence, longer ones cut. `groups` returns a file's
    speaker, and `by` names the kind of group.

    Raises:
        InvalidData: a file is no such WAV, or lies in no known class's folder.
    """
    samples = round(rate * seconds)

    def read(path: Path, _: Array | None) -> Array:
        sound, own_rate = _read_wav(path)
        if own_rate != rate:
            from scipy.signal import resample_poly

            divisor = math.gcd(rate, own_rate)
            sound = resample_poly(sound, rate // divisor, own_rate // divisor)
        padded = np.zeros(samples, np.float32)
        padded[: len(sound)] = sound[:samples]
        return padded

    return _load(location, (".wav",), "audio", read, groups, by, labels)


def _load(
    location: Location,
    endings: Sequence[str],
    name: str,
    read_file: ReadFile,
    groups: GroupOf | None,
    by: str,
    labels: Sequence[str],
) -> Dataset:
    """Load files as a data set whose classes are the folder names.

    The values of the files become the input `name`.
    """
    roots = [location] if isinstance(location, Path) else list(location.values())

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        classes = [_class(path, roots) for path in paths]
        names = train.labels if train else tuple(labels) or tuple(sorted(set(classes)))
        for path, label in zip(paths, classes, strict=True):
            if label not in names:
                raise unknown_label(label, names, f"{label}/{path.name}")
        values: list[Array] = []
        first = train.examples.inputs[name][0] if train else None
        for path in paths:
            values.append(read_file(path, first))
            first = values[0] if first is None else first
        target = np.array([names.index(label) for label in classes], np.int64)
        members = np.array([groups(path) for path in paths]) if groups else None
        return Part(Examples({name: np.stack(values)}, target, members), names)

    return load(location, endings, read, by=by if groups else "row", deep=True)


def _class(path: Path, roots: Sequence[Path]) -> str:
    if path.parent in roots:
        raise InvalidData(f"{path.name} lies in no class's folder: put it into <label>/{path.name}")
    return path.parent.name


def _read_image(path: Path, size: tuple[int, int] | None, colour: str) -> Array:
    """Read an image's pixels (1 or 3, height, width) in [0, 1]."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InvalidData(f"{_name(path)} needs Pillow: pip install pillow") from error
    image = _decode(path)
    if image.mode.startswith("I"):  # 16-bit grey, 257 x the 8-bit value
        grey = (np.asarray(image).astype(np.float32) / 257).clip(0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    image = image.convert("L" if colour == "grey" else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decode(path: Path) -> Any:
    """Decode a PNG or JPEG file, rotated upright by its EXIF orientation."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    unreadable = (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
    )
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.height}x{image.width} pixels; {MOST_PIXELS} are the most"
                raise WrongShape(f"{_name(path)} has {size}")
            upright: Any = ImageOps.exif_transpose(image)
            upright.load()
    except unreadable as error:
        raise InvalidData(f"{_name(path)} is no PNG or JPEG image, or is cut off") from error
    return upright


def _read_wav(path: Path) -> tuple[Array, int]:
    """Read a WAV file's samples in [-1, 1] and sampling rate (Hz)."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.getnframes()
            raw = file.readframes(frames)
    except (wave.Error, EOFError, struct.error) as error:
        why = error or "it is cut off"
        raise InvalidData(f"{_name(path)} is no WAV file of PCM: {why}") from error
    if width not in (1, 2, 3, 4) or not 1000 <= rate <= 400_000:
        samples = f"samples of {8 * width} bits at {rate} Hz"
        raise InvalidData(f"{_name(path)} has {samples}; 8 to 32 bits are known")
    frame_bytes = width * channels
    complete = len(raw) // frame_bytes
    if complete < frames and frames * frame_bytes < UNKNOWN_LENGTH:
        raise InvalidData(f"{_name(path)} is cut off: {complete} of {frames} samples are there")
    if not complete:
        raise NoRows(f"{_name(path)} has no sound")
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


def _name(path: Path) -> str:
    """Return a file's "folder/name" for error messages.

    File names alone may repeat between folders.
    """
    return f"{path.parent.name}/{path.name}"
