"""Folders of pictures as people have them: each right, or one sentence about the mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import files, lazy
from training.errors import InvalidData, NoRows, UnknownLabel, WrongShape

pytestmark = pytest.mark.train

GENERATOR = np.random.default_rng(2)


def picture(path: Path, height: int = 6, width: int = 8, **options: Any) -> None:
    from PIL import Image

    pixels = GENERATOR.integers(0, 255, (height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def classes(folder: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(12):
            picture(folder / label / f"{number}.png")
    return folder


def pairs(folder: Path, count: int = 12) -> Path:
    from PIL import Image

    for number in range(count):
        picture(folder / "images" / f"{number}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        mask = GENERATOR.integers(0, 3, (6, 8)).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


LABELS = ["sky", "road", "car"]


@pytest.mark.parametrize("in_memory_mb", [0, 512])
def test_modes_of_pictures_become_the_same_tensor(tmp_path: Path, in_memory_mb: float) -> None:
    from PIL import Image

    classes(tmp_path)
    red = Image.new("RGB", (8, 6), (255, 0, 0))
    palette, clear = red.convert("P"), Image.new("RGBA", (8, 6), (255, 0, 0, 255))
    cmyk = red.convert("CMYK")
    for name, image in [("p.png", palette), ("p.gif", palette), ("rgba.webp", clear),
                        ("c.jpg", cmyk), ("b.bmp", red)]:  # fmt: skip
        image.save(tmp_path / "cat" / name, **({"lossless": True} if "webp" in name else {}))

    data = files.images(tmp_path, in_memory_mb=in_memory_mb)

    parts = [part.inputs["image"] for part in (data.train, data.validation, data.test)]
    assert {lazy.is_lazy(part) for part in parts} == {in_memory_mb == 0}
    means = np.concatenate([np.asarray(part).mean(axis=(2, 3)) for part in parts])
    assert (np.abs(means - [1, 0, 0]).max(axis=1) < 0.02).sum() == 5


def _empty_class(folder: Path) -> None:
    (classes(folder) / "bird").mkdir()
    (folder / "bird" / "readme.txt").write_text("later")


def _animated(folder: Path) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = classes(folder) / "cat" / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _tiff(folder: Path) -> None:
    picture(classes(folder) / "cat" / "scan.tif")


def _turned(folder: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter: upright, it has 8 rows of 6 pixels
    picture(classes(folder) / "cat" / "9.jpg", exif=exif)


def _corrupt(folder: Path) -> None:
    path = classes(folder) / "dog" / "7.png"
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 255
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("in_memory_mb", [0, 512])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_empty_class, NoRows, "the folder bird has no .png or .jpg or .jpeg or .webp or .bmp or "),
        (_animated, InvalidData, "cat/moving.gif has 2 frames; save one picture a file"),
        (_tiff, InvalidData, "cat/scan.tif: save it as PNG or JPEG, or take it out"),
        (_turned, WrongShape, "cat/9.jpg has 8x6 pixels, those before 6x8; give size="),
        (_corrupt, InvalidData, "dog/7.png is no image (PNG, JPEG, WEBP, BMP or GIF), or is cut"),
    ],
)
def test_a_mistake_in_pictures_is_found_before_training(
    tmp_path: Path, make: Callable[[Path], None], error: type, message: str, in_memory_mb: float
) -> None:
    make(tmp_path)

    with pytest.raises(InvalidData) as caught:
        files.images(tmp_path, in_memory_mb=in_memory_mb)

    assert str(caught.value).startswith(message)
    assert type(caught.value) is error


def test_a_picture_that_breaks_during_training_is_named(tmp_path: Path) -> None:
    data = files.images(classes(tmp_path), in_memory_mb=0)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")

    with pytest.raises(InvalidData, match=r"^(cat|dog)/\d+.png is no image"):
        data.train.inputs["image"][:3]


def test_masks_are_classes_and_void_does_not_count(tmp_path: Path) -> None:
    from PIL import Image

    pairs(tmp_path)
    with Image.open(tmp_path / "masks" / "3.png") as grey:
        palette = grey.copy()
    palette.putpalette([value for colour in range(256) for value in (colour, 9, 7)])
    palette.save(tmp_path / "masks" / "3.png")
    with Image.open(tmp_path / "masks" / "3.png") as written:
        assert written.mode == "P"

    data = files.segmentation(tmp_path, labels=LABELS)
    smaller = files.segmentation(tmp_path, labels=LABELS, size=(3, 4), in_memory_mb=0)

    for part in (data.train, data.validation, data.test):
        assert part.inputs["image"].shape[1:] == (3, 6, 8)
        assert part.target.shape[1:] == (6, 8)
        assert (part.target[:, 0] == -1).all()
        assert set(np.unique(part.target[:, 1:])) == {0, 1, 2}
    assert data.labels == tuple(LABELS)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 1, 2]
    assert smaller.train.target.shape == (9, 3, 4)
    assert set(np.unique(smaller.train.target)) <= {-1, 0, 1, 2}


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "gif"])
def test_pictures_of_every_format_are_scaled_with_their_masks(tmp_path: Path, ending: str) -> None:
    pairs(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
        picture(path.with_suffix(f".{ending}"))

    data = files.segmentation(tmp_path, labels=LABELS, size=(3, 4))

    assert data.train.inputs["image"].shape == (9, 3, 3, 4)
    assert data.train.target.shape == (9, 3, 4)
    assert data.source == f"file:0.{ending} and 11 more"  # masks are no rows


def _no_mask(folder: Path) -> None:
    (pairs(folder) / "masks" / "4.png").unlink()


def _no_picture(folder: Path) -> None:
    (pairs(folder) / "images" / "4.jpg").unlink()


def _two_pictures(folder: Path) -> None:
    picture(pairs(folder) / "images" / "4.png")


def _other_size(folder: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 7)).save(pairs(folder) / "masks" / "4.png")


def _turned_picture(folder: Path) -> None:
    from PIL import Image

    pairs(folder)
    for number in range(12):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(folder / "images" / f"{number}.jpg", exif=exif)


def _beyond(folder: Path) -> None:
    from PIL import Image

    mask = np.zeros((6, 8), np.uint8)
    mask[2, 3] = 3
    Image.fromarray(mask).save(pairs(folder) / "masks" / "4.png")


def _colours(folder: Path) -> None:
    picture(pairs(folder) / "masks" / "4.png")


def _black_and_white(folder: Path) -> None:
    from PIL import Image

    for path in (pairs(folder) / "masks").iterdir():
        Image.fromarray(GENERATOR.integers(0, 2, (6, 8)).astype(np.uint8) * 255).save(path)


def _no_folder(folder: Path) -> None:
    (pairs(folder) / "masks").rename(folder / "labels")


@pytest.mark.parametrize("options", [{}, {"in_memory_mb": 0}, {"size": (6, 8)}], ids=str)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_no_mask, InvalidData, "images/4.jpg has no mask: add masks/4.png"),
        (_no_picture, InvalidData, "masks/4.png has no picture in images: add it, or remove it"),
        (_two_pictures, InvalidData, "images/4.png and images/4.jpg have one mask"),
        (_other_size, WrongShape, "masks/4.png has 7x8 pixels, and images/4.jpg has 6x8"),
        (_turned_picture, WrongShape, "masks/0.png has 6x8 pixels, and images/0.jpg has 8x6"),
        (
            _beyond,
            UnknownLabel,
            "masks/4.png: the pixel in row 3, column 4 has the number 3; 3 labels are 0 to 2, and "
            "255 is void",
        ),
        (_colours, InvalidData, "masks/4.png has the mode RGB; a mask is grey or has a palette"),
        (
            _black_and_white,
            InvalidData,
            "file:0.jpg and 11 more: the masks have no class but 'sky'; 255 does not count: if it "
            "is a class, save the masks with its number; it takes two classes",
        ),
        (_no_folder, NoRows, "has no folder masks: it takes images/, masks/"),
    ],
)
def test_a_mistake_in_masks_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], None], error: type, message: str, options: Any
) -> None:
    make(tmp_path)

    with pytest.raises(InvalidData) as caught:
        files.segmentation(tmp_path, labels=LABELS, **options)

    assert message in str(caught.value)
    assert type(caught.value) is error
