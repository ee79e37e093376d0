"""Loaders of images from class folders, and of images with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data import lazy
from training.data.dataset import Dataset, Examples
from training.data.media import pixels
from training.data.media.folders import (
    FileRows,
    GroupOf,
    announce,
    group_names,
    load_classes,
    short_name,
)
from training.data.media.pixels import ENDINGS, Size
from training.data.sources import (
    IN_MEMORY_MB,
    Location,
    Part,
    find,
    folders_by_part,
    load_files,
    title,
)
from training.errors import InvalidData, NoRows, UnknownLabel, WrongShape

Array = NDArray[Any]
Colour = Literal["grey", "rgb"]

VOID = 255  # number of pixels that do not count, as in Pascal VOC and Cityscapes
IGNORED = -1  # class of such a pixel in a target
NOT_READ = (".tif", ".tiff", ".heic", ".avif", ".jp2")  # pictures that would be left out unseen


def images(
    location: Location,
    *,
    size: Size | None = None,
    colour: Colour = "rgb",
    groups: GroupOf | None = None,
    by: str = "group",
    labels: Sequence[str] = (),
    in_memory_mb: float = IN_MEMORY_MB,
) -> Dataset:
    """Load picture files from class folders as labelled images.

    The input is `image` (n, 1 or 3, height, width) in [0, 1]. The files of each class (PNG, JPEG,
    WebP, BMP, GIF) lie in a folder named after it. They have one size, or are scaled to `size`,
    (height, width) in pixels. Transparency becomes white. `groups` returns a file's group, and `by`
    names the kind of group.

    All files are decoded once. Images that take more than `in_memory_mb` as tensors are not kept,
    and decoded again with each batch; the results are the same.

    Raises:
        InvalidData: a file is no image, has another size, or lies in no known class's folder.
    """

    def rows(paths: Sequence[Path], first: Array | None) -> FileRows:
        return _image_rows(paths, first, size, colour)

    for folder in folders_by_part(location).values():
        _refuse_others(folder)
    return load_classes(location, ENDINGS, "image", rows, groups, by, labels, in_memory_mb)


def segmentation(
    location: Location,
    *,
    labels: Sequence[str],
    size: Size | None = None,
    colour: Colour = "rgb",
    void: int | None = VOID,
    groups: GroupOf | None = None,
    by: str = "group",
    in_memory_mb: float = IN_MEMORY_MB,
) -> Dataset:
    """Load pictures with masks: images/<name>.jpg and masks/<name>.png.

    The input is `image` as in `images`, the target the class of each pixel (n, height, width). A
    mask is a PNG, grey or with a palette, whose numbers are positions in `labels`; pixels of number
    `void` do not count. Masks are scaled to the nearest pixel.

    Raises:
        InvalidData: a picture has no mask or a mask no picture, their sizes differ, or a number has
            no label.
    """
    roots = folders_by_part(location)

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        half = len(paths) // 2
        pairs = dict(zip(paths[:half], paths[half:], strict=True))
        pictures = list(pairs)
        announce(pictures)
        first = train.examples.inputs["image"] if train else None
        source = _image_rows(pictures, first, size, colour)

        def read_mask(picture: Path) -> Array:
            numbers, own = pixels.read_mask(pairs[picture], size)
            _check_pair(picture, pairs[picture], own, size, source.row_shape[1:])
            return _classes(pairs[picture], numbers, labels, void)

        masks = FileRows(
            pictures, read_mask, source.row_shape[1:], (IGNORED, len(labels) - 1), np.int64
        )
        target = lazy.array(masks, in_memory_mb)
        # Each mask is decoded once before training, as each picture is.
        seen = {int(number) for part in lazy.chunks(target) for number in np.unique(target[part])}
        if train is None:
            _check_count(title(pictures), seen, labels, void)
        image = lazy.array(source, in_memory_mb)
        return Part(Examples({"image": image}, target, group_names(pictures, groups)), (*labels,))

    return load_files(
        {name: _files(root) for name, root in roots.items()},
        read,
        by=by if groups else "row",
        files_per_row=2,  # a picture and its mask
    )


def _image_rows(
    paths: Sequence[Path], first: Array | None, size: Size | None, colour: Colour
) -> FileRows:
    """Return images as rows, of `first`'s shape or of the first file's."""
    shape = (pixels.read_image(paths[0], size, colour) if first is None else first[0]).shape

    def read(path: Path) -> Array:
        image = pixels.read_image(path, size, colour)
        pixels.check_size(path, image.shape[1:], shape[1:])
        return image

    return FileRows(paths, read, shape, bounds=(0, 1))


def _refuse_others(root: Path) -> None:
    """Raise InvalidData if a folder has pictures of unread formats."""
    for path in root.rglob("*"):
        if path.suffix.lower() in NOT_READ:
            raise InvalidData(f"{short_name(path)}: save it as PNG or JPEG, or take it out")


def _files(root: Path) -> list[Path]:
    """List the pictures and masks below a folder."""
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise NoRows(f"the folder {root.name} has no folder {name}: it takes images/, masks/")
    _refuse_others(root / "images")
    pictures = find(root / "images", ENDINGS, deep=True)
    return [*pictures, *_masks(root, pictures, find(root / "masks", (".png",), deep=True))]


def _masks(root: Path, pictures: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """Return each picture's mask, in their order.

    Raises:
        InvalidData: a picture has no mask, or a mask no picture.
    """
    stems: dict[Path, Path] = {}
    for path in pictures:
        stem = path.relative_to(root / "images").with_suffix("")
        if stem in stems:
            raise InvalidData(f"{short_name(path)} and {short_name(stems[stem])} have one mask")
        stems[stem] = path
    masked = {path.relative_to(root / "masks").with_suffix(""): path for path in masks}
    for stem, path in stems.items():
        if stem not in masked:
            raise InvalidData(f"{short_name(path)} has no mask: add masks/{stem}.png")
    for stem, path in masked.items():
        if stem not in stems:
            raise InvalidData(f"{short_name(path)} has no picture in images: add it, or remove it")
    return [masked[stem] for stem in stems]


def _check_pair(picture: Path, mask: Path, own: Size, size: Size | None, shape: Any) -> None:
    """Raise WrongShape if a mask has another size than its picture.

    Without scaling, all pictures have `shape`, (height, width); else the picture is decoded anew.
    """
    expected = shape if size is None else pixels.upright_size(picture)
    if own != expected:
        sizes = f"{own[0]}x{own[1]} pixels, and {short_name(picture)} has"
        raise WrongShape(
            f"{short_name(mask)} has {sizes} {expected[0]}x{expected[1]} (upright as its EXIF data "
            "say)"
        )


def _check_count(folder: str, seen: set[int], labels: Sequence[str], void: int | None) -> None:
    """Raise InvalidData if training masks have fewer than two classes that count.

    Black and white masks have 0 and 255, which is void by default.
    """
    classes = sorted(seen - {IGNORED})
    if len(classes) > 1:
        return
    has = f"no class but {labels[classes[0]]!r}" if classes else "no class"
    advice = ""
    if IGNORED in seen:
        advice = f"; {void} does not count: if it is a class, save the masks with its number"
    raise InvalidData(f"{folder}: the masks have {has}{advice}; it takes two classes")


def _classes(mask: Path, numbers: Array, labels: Sequence[str], void: int | None) -> Array:
    """Return a mask's classes, IGNORED where it is void."""
    classes = numbers if void is None else np.where(numbers == void, IGNORED, numbers)
    if classes.max() >= len(labels):
        row, column = np.argwhere(classes >= len(labels))[0]
        numbers_with_label = f"0 to {len(labels) - 1}" + (
            "" if void is None else f", and {void} is void"
        )
        raise UnknownLabel(
            f"{short_name(mask)}: the pixel in row {row + 1}, column {column + 1} has the number "
            f"{classes[row, column]}; {len(labels)} labels are {numbers_with_label}"
        )
    return classes
