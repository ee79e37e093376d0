"""A user's own data, from a channel's folder: tables, arrays, MNIST's format, folders of images and of sounds.

Every loader takes a file or folder, which is split, or a mapping with a folder for `train` and, where they were set
apart beforehand, for `validation` and `test`. What is wrong ends in one sentence: InvalidData.
"""

from __future__ import annotations

import gzip
import math
import struct
import wave
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples
from training.data.sources import Read, Where, load, parts, place, unknown
from training.data.tables import table
from training.errors import InvalidData, InvalidValue, MissingColumn, NoRows, WrongShape

__all__ = ["arrays", "idx", "images", "sounds", "table"]

Array = NDArray[Any]
GroupOf = Callable[[Path], str]  # e.g. lambda path: path.stem.split("_")[0]
PLAIN = {
    "f": np.float32,
    "b": np.float32,
    "i": np.int64,
    "u": np.int64,
    "U": object,
}  # what NumPy kinds become
IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
UNTOLD = (
    2**31 - 2**16
)  # bytes of sound that a header claims where its writer did not know how many would come
MOST_PIXELS = 50_000_000  # of one image; more is a mistake or an attack


# --- NPZ --------------------------------------------------------------------------------------------------------------


def arrays(
    where: Where,
    *,
    target: str,
    inputs: Sequence[str] = (),
    groups: str | None = None,
    labels: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Dataset:
    """Arrays of .npz files, first axis the rows: `inputs` [all but target and groups] as float32, int64 or str.

    A target of whole numbers or texts is a class; inputs named `optional` may hold NaN.

    Raises:
        InvalidData: an array is missing, of another size, or holds what it may not.
    """

    def read(paths: Sequence[Path], before: Read | None) -> Read:
        names = list(before.examples.inputs if before else inputs)
        stored = [_npz(path, target, names, groups) for path in paths]
        first = {**before.examples.inputs} if before else stored[0]
        for path, one in zip(paths, stored, strict=True):
            for name, values in one.items():
                if name in first and values.shape[1:] != first[name].shape[1:]:
                    shapes = (
                        f"{list(values.shape[1:])}, those before have {list(first[name].shape[1:])}"
                    )
                    raise WrongShape(f"{path.name}: a row of {name!r} has shape {shapes}")
                if (
                    name not in optional
                    and values.dtype.kind == "f"
                    and not np.isfinite(values).all()
                ):
                    row = int(np.argwhere(~np.isfinite(values))[0][0])
                    raise InvalidValue(
                        f"{path.name}, row {row + 1}: {name!r} holds a NaN or an infinity"
                    )
        whole = {name: np.concatenate([one[name] for one in stored]) for name in stored[0]}
        rows = [(path.name, len(one[target])) for path, one in zip(paths, stored, strict=True)]
        known = before.labels if before else tuple(labels)
        values, known = _classes(
            whole.pop(target), known, lambda row: f"{place(rows, row)}, {target!r}"
        )
        return Read(
            Examples(whole, values, whole.pop(groups).astype(str) if groups else None), known
        )

    return load(parts(where, (".npz",)), read, by=groups or "row")


def _npz(path: Path, target: str, names: Sequence[str], groups: str | None) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path):  # NumPy opens other formats, too
            pass
        with np.load(path, allow_pickle=False) as stored:
            found: dict[str, Array] = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = (
            "holds pickled objects, which are refused"
            if "allow_pickle" in str(error)
            else "is no .npz file"
        )
        raise InvalidData(f"{path.name} {why}") from error
    apart = [target, *([groups] if groups else [])]
    wanted = [*(names or sorted(set(found) - set(apart))), *apart]
    for name in [*apart, *wanted]:
        if name not in found:
            raise MissingColumn(
                f"{path.name} has no array {name!r}; it has {', '.join(map(repr, sorted(found)))}"
            )
        if not found[name].ndim or not len(found[name]):
            raise NoRows(f"{path.name}: {name!r} has no rows")
        if len(found[name]) != len(found[target]):
            counts = f"{name!r} has {len(found[name])} rows and {target!r} has {len(found[target])}"
            raise WrongShape(f"{path.name}: {counts}")
        if found[name].dtype.kind not in PLAIN:
            raise InvalidValue(
                f"{path.name}: {name!r} holds {found[name].dtype.name}; numbers or texts are known"
            )
    return {name: found[name].astype(PLAIN[found[name].dtype.kind]) for name in wanted}


def _classes(
    values: Array, labels: Sequence[str], where: Callable[[int], str]
) -> tuple[Array, tuple[str, ...]]:
    """Class numbers (n,) and the names of all classes; or other values as they are."""
    if values.dtype.kind == "f" or values.ndim > 1:
        return values, tuple(labels)
    texts = values.dtype == object
    if not labels:
        labels = (
            sorted(set(values))
            if texts
            else [str(number) for number in range(int(values.max()) + 1)]
        )
    number_of = {label if texts else number: number for number, label in enumerate(labels)}
    numbers = np.array([number_of.get(value, -1) for value in values.tolist()], np.int64)
    if (numbers < 0).any():
        row = int((numbers < 0).argmax())
        raise unknown(
            str(values[row]),
            labels if texts else [str(number) for number in range(len(labels))],
            where(row),
        )
    return numbers, tuple(labels)


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx(where: Where, *, labels: Sequence[str] = ()) -> Dataset:
    """MNIST's format, plain or .gz: pairs like train-images-idx3-ubyte and train-labels-idx1-ubyte.

    `image` (n, 1, height, width) in [0, 1]. In one folder, files whose names start with t10k or test are the test part.

    Raises:
        InvalidData: a file has no partner, or is not what its first bytes say.
    """

    def read(paths: Sequence[Path], before: Read | None) -> Read:
        pairs = [(path, _partner(path, paths)) for path in paths if "images" in path.name]
        if not pairs:
            raise MissingColumn(
                f"{paths[0].name}: no name has the word images in it, and its partner's labels"
            )
        pictures, numbers = [_idx(path) for path, _ in pairs], [_idx(path) for _, path in pairs]
        size = before.examples.inputs["image"].shape[2:] if before else pictures[0].shape[1:]
        for (path, partner), images, classes in zip(pairs, pictures, numbers, strict=True):
            if images.ndim != 3 or classes.ndim != 1 or images.shape[1:] != size:
                shapes = f"{list(images.shape)} and {list(classes.shape)}"
                raise WrongShape(
                    f"{path.name} and {partner.name} have shapes {shapes}, not [n, {size[0]}, {size[-1]}] and [n]"
                )
            if len(images) != len(classes):
                raise WrongShape(
                    f"{path.name} has {len(images)} images and {partner.name} {len(classes)} labels"
                )
        rows = [
            (partner.name, len(classes))
            for (_, partner), classes in zip(pairs, numbers, strict=True)
        ]
        target, known = _classes(
            np.concatenate(numbers).astype(np.int64),
            before.labels if before else labels,
            lambda row: place(rows, row),
        )
        pixels = np.concatenate(pictures)
        most = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
        return Read(
            Examples({"image": (pixels / np.float32(most)).astype(np.float32)[:, None]}, target),
            known,
        )

    found = parts(where, ("ubyte", "ubyte.gz", ".idx", ".idx.gz"))
    if isinstance(where, Path):
        tests = [path for path in found["train"] if path.name.lower().startswith(("t10k", "test"))]
        if 0 < len(tests) < len(found["train"]):
            found = {"train": [path for path in found["train"] if path not in tests], "test": tests}
    return load(found, read, by="row")


def _partner(path: Path, paths: Sequence[Path]) -> Path:
    wanted = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    for other in paths:
        if other.name.removesuffix(".gz") == wanted:
            return other
    raise MissingColumn(f"{path.name} has no file of labels beside it, {wanted} or {wanted}.gz")


def _idx(path: Path) -> Array:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros or kind not in IDX or not 1 <= rank <= 4:
                raise InvalidData(
                    f"{path.name} is no IDX file: it starts with {zeros:04x}{kind:02x}{rank:02x}"
                )
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape) * np.dtype(IDX[kind]).itemsize
            raw = file.read(size + 1)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidData(f"{path.name} is no IDX file, or is cut off") from error
    if len(raw) != size:
        more = "more" if len(raw) > size else "fewer"
        raise WrongShape(f"{path.name} has {more} bytes than its shape {list(shape)} takes")
    if not size:
        raise NoRows(f"{path.name} has no rows: its shape is {list(shape)}")
    return np.frombuffer(raw, IDX[kind]).reshape(shape)


# --- folders of images and sounds: <label>/<name> ---------------------------------------------------------------------


def images(
    where: Where,
    *,
    size: tuple[int, int] | None = None,
    colour: Literal["grey", "rgb"] = "rgb",
    groups: GroupOf | None = None,
    by: str = "group",
    labels: Sequence[str] = (),
) -> Dataset:
    """PNG and JPEG files in one folder a class: `image` (n, 1 or 3, height, width) in [0, 1].

    All are of one size, or are scaled to `size`, (height, width) in pixels. What is transparent becomes white. `groups`
    says of a file which group it is of, and `by` what a group is.

    Raises:
        InvalidData: a file is no image, has another size, or lies in no or in an unknown class's folder.
    """

    def read_one(path: Path, first: Array | None) -> Array:
        pixels = _pixels(path, size, colour)
        if first is not None and pixels.shape != first.shape:
            (height, width), (high, wide) = pixels.shape[1:], first.shape[1:]
            raise WrongShape(
                f"{_named(path)} has {height}x{width} pixels, those before {high}x{wide}; give size=(height, width)"
            )
        return pixels

    return _by_folder(where, (".png", ".jpg", ".jpeg"), "image", read_one, groups, by, labels)


def _pixels(path: Path, size: tuple[int, int] | None, colour: str) -> Array:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise InvalidData(f"{_named(path)} needs Pillow: pip install pillow") from error
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise WrongShape(
                    f"{_named(path)} has {image.height}x{image.width} pixels; {MOST_PIXELS} are the most"
                )
            upright: Any = ImageOps.exif_transpose(image)
            upright.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
    ) as error:
        raise InvalidData(f"{_named(path)} is no PNG or JPEG image, or is cut off") from error
    if upright.mode.startswith("I"):  # 16 bits of grey
        upright = Image.fromarray(
            (np.asarray(upright).astype(np.float32) / 257).clip(0, 255).astype(np.uint8)
        )
    if upright.has_transparency_data:
        upright = Image.alpha_composite(
            Image.new("RGBA", upright.size, "white"), upright.convert("RGBA")
        )
    upright = upright.convert("L" if colour == "grey" else "RGB")
    if size is not None:
        upright = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright, np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def sounds(
    where: Where,
    *,
    rate: int = 16_000,
    seconds: float = 1.0,
    groups: GroupOf | None = None,
    by: str = "speaker",
    labels: Sequence[str] = (),
) -> Dataset:
    """WAV files in one folder a class: `audio` (n, rate x seconds) in [-1, 1].

    PCM of 8, 16, 24 or 32 bits; channels are averaged, other rates resampled, and what is shorter or longer than
    `seconds` is filled with silence or cut at its end. `groups` says of a file who speaks.

    Raises:
        InvalidData: a file is no such WAV, or lies in no or in an unknown class's folder.
    """

    def read_one(path: Path, _: Array | None) -> Array:
        sound, own_rate = _wav(path)
        if own_rate != rate:
            from scipy.signal import resample_poly

            shared = math.gcd(rate, own_rate)
            sound = resample_poly(sound, rate // shared, own_rate // shared)
        samples = round(rate * seconds)
        whole = np.zeros(samples, np.float32)
        whole[: len(sound)] = sound[:samples]
        return whole

    return _by_folder(where, (".wav",), "audio", read_one, groups, by, labels)


def _wav(path: Path) -> tuple[Array, int]:
    """Samples (n,) in [-1, 1], and how many there are in a second."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.getnframes()
            raw = file.readframes(frames)
    except (wave.Error, EOFError, struct.error) as error:
        raise InvalidData(
            f"{_named(path)} is no WAV file of PCM: {error or 'it is cut off'}"
        ) from error
    if width not in (1, 2, 3, 4) or not 1000 <= rate <= 400_000:
        raise InvalidData(
            f"{_named(path)} has samples of {8 * width} bits at {rate} Hz; 8 to 32 bits are known"
        )
    there = len(raw) // (width * channels)
    if there < frames and frames * width * channels < UNTOLD:
        raise InvalidData(f"{_named(path)} is cut off: {there} of {frames} samples are there")
    raw = raw[: there * width * channels]
    if not raw:
        raise NoRows(f"{_named(path)} has no sound")
    data = np.frombuffer(raw, np.uint8).reshape(-1, width)
    if width == 1:
        values = data[:, 0].astype(np.float64) / 128 - 1  # the one width without a sign
    else:
        wide = np.zeros((len(data), 4), np.uint8)
        wide[:, 4 - width :] = data  # little-endian: what is missing are the lowest bits
        values = wide.view("<i4")[:, 0] / 2**31
    return values.reshape(-1, channels).mean(axis=1).astype(np.float32), rate


def _named(path: Path) -> str:
    """With its class, for the same name may be in every folder."""
    return f"{path.parent.name}/{path.name}"


def _by_folder(
    where: Where,
    endings: Sequence[str],
    name: str,
    read_one: Callable[[Path, Array | None], Array],
    groups: GroupOf | None,
    by: str,
    labels: Sequence[str],
) -> Dataset:
    roots = [where] if isinstance(where, Path) else list(where.values())

    def read(paths: Sequence[Path], before: Read | None) -> Read:
        for path in paths:
            if path.parent in roots:
                raise InvalidData(
                    f"{path.name} lies in no class's folder: put it into <label>/{path.name}"
                )
        classes = [path.parent.name for path in paths]
        known = before.labels if before else (tuple(labels) or tuple(sorted(set(classes))))
        for path, label in zip(paths, classes, strict=True):
            if label not in known:
                raise unknown(label, known, f"{label}/{path.name}")
        values: list[Array] = []
        first = before.examples.inputs[name][0] if before else None
        for path in paths:
            values.append(
                read_one(path, first if first is not None else (values[0] if values else None))
            )
        target = np.array([known.index(label) for label in classes], np.int64)
        members = np.array([groups(path) for path in paths]) if groups else None
        return Read(Examples({name: np.stack(values)}, target, members), known)

    return load(parts(where, endings, deep=True), read, by=by if groups else "row")
