"""Locations of ONNX external data, and flat file names replacing them.

A location is a path relative to the model: `model.onnx.data`, `./data/weights 1.bin`. Served files
have flat ASCII names, so the location in the model is overwritten, in the same number of bytes.
"""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from functions.core.errors import InvalidModel, shown
from functions.core.names import is_file_name


def weight_path(location: str) -> str:
    """Normalise an external-data location to a path within the model's folder.

    >>> weight_path("./data//weights 1.bin")
    'data/weights 1.bin'

    Raises:
        InvalidModel: the path leaves the folder; the code is `BAD_FILE_NAME`.
    """
    path = normal(posixpath.normpath(location))
    is_inside = not path.startswith(("/", "../")) and path not in (".", "..")
    if not location or not is_inside or not location.isprintable():
        raise bad_location(location)
    return path


def bad_location(location: str) -> InvalidModel:
    """Return the BAD_FILE_NAME error for weights outside the model's folder."""
    return InvalidModel(
        f"the model's weights are said to be in {shown(location)}: it has to be the path of a "
        "file in the model's folder, and neither the model nor the manifest",
        code="BAD_FILE_NAME",
    )


def normal(path: str) -> str:
    """Normalise a path to Unicode NFC, because macOS may decompose accented letters."""
    return unicodedata.normalize("NFC", path)


def flat_names(locations: Iterable[str], reserved: Iterable[str]) -> dict[str, str]:
    """Return a unique flat file name for each external-data path.

    >>> flat_names(["w.bin", "./w.bin", "data/w.bin"], ["model.onnx"])
    {'w.bin': 'w.bin', 'data/w.bin': 'data_w.bin'}

    Raises:
        InvalidModel: there is no such name; the code is `BAD_FILE_NAME`.
    """
    lengths: dict[str, list[int]] = {}
    for location in locations:
        lengths.setdefault(weight_path(location), []).append(len(location.encode()))
    names: dict[str, str] = {}
    used = set(reserved)
    for path in lengths:
        names[path] = _flat_name(path, lengths[path], used)
        used.add(names[path])
    return names


def _flat_name(path: str, lengths: Sequence[int], used: set[str]) -> str:
    plain = re.sub(rb"^[.-]|[^A-Za-z0-9._-]", b"_", path.encode()).decode()
    for name in chain([plain], (f"w{number}" for number in range(len(used) + 1))):
        fits = all(_padded(name, length) is not None for length in lengths)
        if fits and is_file_name(name) and name not in used:
            return name
    raise bad_location(path)


def _padded(name: str, length: int) -> str | None:
    """Pad a file name with `./` to `length` bytes; None if impossible.

    `./` or `.//` before a name changes nothing for the runtime.
    """
    gap = length - len(name)
    if gap < 0 or gap == 1:
        return None
    odd = gap % 2
    return ".//" * odd + "./" * ((gap - 3 * odd) // 2) + name


def relocate(model: Path, locations: Mapping[str, Sequence[int]], names: Mapping[str, str]) -> None:
    """Replace external-data file names in an ONNX file, in place.

    `locations` has the positions of each location in the file, `names` those of `flat_names()`.
    """
    with model.open("r+b") as file:
        for location, positions in locations.items():
            text = _padded(names[weight_path(location)], len(location.encode()))
            if text is None or text == location:
                continue
            for position in positions:
                file.seek(position)
                file.write(text.encode())
