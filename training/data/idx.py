"""Loader of images and labels in IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples
from training.data.sources import (
    Location,
    Part,
    class_numbers,
    find_parts,
    load_files,
    locate,
)
from training.errors import InvalidData, MissingColumn, NoRows, WrongShape

Array = NDArray[Any]
# Type code, the third byte of an IDX file → NumPy type; after http://yann.lecun.com/exdb/mnist
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
ENDINGS = ("ubyte", "ubyte.gz", ".idx", ".idx.gz")


def idx(location: Location, *, labels: Sequence[str] = ()) -> Dataset:
    """Load images and labels from IDX files (MNIST's format), plain or .gz.

    The input is `image` (n, 1, height, width) in [0, 1]. Files come in pairs like
    train-images-idx3-ubyte and train-labels-idx1-ubyte. In one folder, files whose names start with
    t10k or test are the test part.

    Raises:
        InvalidData: a file has no partner, or contradicts its first bytes.
    """

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        pairs = [(path, _partner(path, paths)) for path in paths if "images" in path.name]
        if not pairs:
            raise MissingColumn(
                f"{paths[0].name}: no name has the word images in it, and its partner's labels"
            )
        stored = [(_read(pixels), _read(numbers)) for pixels, numbers in pairs]
        size = train.examples.inputs["image"].shape[2:] if train else stored[0][0].shape[1:]
        for pair, values in zip(pairs, stored, strict=True):
            _check(*pair, *values, size)
        rows = [(pair[1].name, len(values[1])) for pair, values in zip(pairs, stored, strict=True)]
        target, classes = class_numbers(
            np.concatenate([numbers for _, numbers in stored]).astype(np.int64),
            train.labels if train else labels,
            lambda row: locate(rows, row),
        )
        image = _scaled(np.concatenate([pixels for pixels, _ in stored]))
        return Part(Examples({"image": image[:, None]}, target), classes)

    return load_files(_with_test_part(location, find_parts(location, ENDINGS)), read, by="row")


def _with_test_part(location: Location, paths: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Move files named like MNIST's test files to the test part."""
    if not isinstance(location, Path):
        return paths
    tests = [path for path in paths["train"] if path.name.lower().startswith(("t10k", "test"))]
    if not 0 < len(tests) < len(paths["train"]):
        return paths
    return {"train": [path for path in paths["train"] if path not in tests], "test": tests}


def _partner(path: Path, paths: Sequence[Path]) -> Path:
    """Find the IDX label file that belongs to an IDX image file."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    for candidate in paths:
        if candidate.name.removesuffix(".gz") == name:
            return candidate
    raise MissingColumn(f"{path.name} has no file of labels beside it, {name} or {name}.gz")


def _check(path: Path, partner: Path, images: Array, numbers: Array, size: tuple[int, ...]) -> None:
    if images.ndim != 3 or numbers.ndim != 1 or images.shape[1:] != size:
        shapes = f"{list(images.shape)} and {list(numbers.shape)}"
        expected = f"[n, {size[0]}, {size[-1]}] and [n]"
        raise WrongShape(f"{path.name} and {partner.name} have shapes {shapes}, not {expected}")
    if len(images) != len(numbers):
        raise WrongShape(
            f"{path.name} has {len(images)} images and {partner.name} {len(numbers)} labels"
        )


def _scaled(pixels: Array) -> Array:
    """Convert pixels to float32, dividing integers by their dtype's largest value."""
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    scaled: Array = (pixels / np.float32(largest)).astype(np.float32)
    return scaled


def _read(path: Path) -> Array:
    """Read an IDX file, plain or gzipped, as an array.

    The file has two zero bytes, type, rank, big-endian shape, and values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros or kind not in DTYPES or not 1 <= rank <= 4:
                raise InvalidData(
                    f"{path.name} is no IDX file: it starts with {zeros:04x}{kind:02x}{rank:02x}"
                )
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
            raw = file.read(size + 1)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidData(f"{path.name} is no IDX file, or is cut off") from error
    if len(raw) != size:
        more = "more" if len(raw) > size else "fewer"
        raise WrongShape(f"{path.name} has {more} bytes than its shape {list(shape)} takes")
    if not size:
        raise NoRows(f"{path.name} has no rows: its shape is {list(shape)}")
    return np.frombuffer(raw, DTYPES[kind]).reshape(shape)
