"""Decoder of picture files into pixels and class numbers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.media.folders import short_name
from training.errors import InvalidData, WrongShape

Array = NDArray[Any]
Size = tuple[int, int]  # height and width in pixels

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
ANIMATED = ("PNG", "WEBP", "GIF")  # a JPEG with a second picture is a phone's, of the same scene
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that swap the sides
MOST_PIXELS = 50_000_000  # in an image; more pixels are a mistake or an attack


def read_image(path: Path, size: Size | None, colour: str) -> Array:
    """Read an image's pixels (1 or 3, height, width) in [0, 1].

    It is turned upright as its EXIF data say, put on white where it is transparent, and scaled.

    Raises:
        InvalidData: it is no image, is cut off, animated, or too large.
    """
    from PIL import Image

    image = decode(path)
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


def read_mask(path: Path, size: Size | None) -> tuple[Array, Size]:
    """Read a mask's numbers (height, width), and its size before scaling.

    Raises:
        InvalidData: it is no image, is cut off, or has several channels.
    """
    from PIL import Image

    image = decode(path)
    own = image.height, image.width
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise InvalidData(
            f"{short_name(path)} has the mode {image.mode}; a mask is grey or has a palette, and "
            "its numbers are the classes"
        )
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image).astype(np.int64), own


def upright_size(path: Path) -> Size:
    """Return an image's height and width, upright, from its header."""
    image = decode(path, header=True)
    turned = image.getexif().get(ORIENTATION, 1) in QUARTER_TURNS
    return (image.width, image.height) if turned else (image.height, image.width)


def check_size(path: Path, size: Size, first: Size) -> None:
    """Raise WrongShape if an image has another size than the first one."""
    if size != first:
        sizes = f"{size[0]}x{size[1]} pixels, those before {first[0]}x{first[1]}"
        raise WrongShape(f"{short_name(path)} has {sizes}; give size=(height, width)")


def decode(path: Path, *, header: bool = False) -> Any:
    """Decode a picture file as a Pillow image, turned upright.

    Of the `header` alone, the image has its size and EXIF data, and is not turned.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise InvalidData(f"{short_name(path)} needs Pillow: pip install pillow") from error
    unreadable = (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
    )
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check(path, image)
            if header:
                image.getexif()  # a PNG's EXIF data lie behind its pixels
                return image
            upright: Any = ImageOps.exif_transpose(image)
            upright.load()
    except unreadable as error:
        kinds = ", ".join(FORMATS[:-1])
        description = f"no image ({kinds} or {FORMATS[-1]}), or is cut off"
        raise InvalidData(f"{short_name(path)} is {description}") from error
    return upright


def _check(path: Path, image: Any) -> None:
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.height}x{image.width} pixels; {MOST_PIXELS} are the most"
        raise WrongShape(f"{short_name(path)} has {size}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ANIMATED:
        raise InvalidData(f"{short_name(path)} has {frames} frames; save one picture a file")
