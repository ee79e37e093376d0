"""Finding, reading and splitting of users' train, validation and test files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import PARTS, Dataset, Examples, split
from training.errors import InvalidData, MissingColumn, NoRows, UnknownLabel

# Megabytes of an input, as tensors, up to which it is read at once; a larger one is read by batch.
IN_MEMORY_MB = 512
# A file or folder, to be split, or a mapping of train, validation and test to a file or folder.
Location = Path | Mapping[str, Path]


@dataclass(frozen=True)
class Part:
    """Examples of one data part (train, validation or test), with class labels.

    `columns` names the columns of a table, by input. `notes` are lines for the user.
    """

    examples: Examples
    labels: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# Function that reads the files of a part. Its second argument is the training part, or None while
# the training part itself is read.
Reader = Callable[[Sequence[Path], Part | None], Part]


def load(
    location: Location, endings: Sequence[str], read: Reader, *, by: str, deep: bool = False
) -> Dataset:
    """Find files by ending and load them as a split data set.

    Raises:
        InvalidData: the files are missing, unreadable, or do not match each other.
    """
    return load_files(find_parts(location, endings, deep=deep), read, by=by)


def load_files(
    paths: Mapping[str, Sequence[Path]], read: Reader, *, by: str, files_per_row: int = 1
) -> Dataset:
    """Load each part's files; split missing parts off the training part.

    Of several `files_per_row`, the first files are listed: pictures, and no masks.

    Raises:
        InvalidData: the files are unreadable or do not match each other.
    """
    source = title(paths["train"][: len(paths["train"]) // files_per_row])
    train = read(paths["train"], None)
    if len(train.labels) == 1:
        raise InvalidData(f"{source}: every row is of the class {train.labels[0]!r}; it takes two")
    parts = {name: read(paths[name], train) for name in PARTS[1:] if name in paths}
    data = split(
        train.examples,
        source=source,
        sha256=sha256([path for part in paths.values() for path in part]),
        by=by,
        labels=train.labels,
        columns=train.columns,
        gaps=True,  # the reader has refused gaps that are not allowed
        **{name: part.examples for name, part in parts.items()},  # type: ignore[arg-type]
    )
    notes = (note for part in (train, *parts.values()) for note in part.notes)
    return replace(data, notes=tuple(notes))


def find_parts(
    location: Location, endings: Sequence[str], *, deep: bool = False
) -> dict[str, list[Path]]:
    """List the data files of each part (train, validation, test), by ending.

    Files of a single folder are the training part.

    Raises:
        InvalidData: there is no training part, or a part has no such file.
    """
    folders = folders_by_part(location)
    return {name: find(folder, endings, deep=deep) for name, folder in folders.items()}


def folders_by_part(location: Location) -> dict[str, Path]:
    """Return each part's folder; a single one is the training part's.

    Raises:
        MissingColumn: there is no training part.
    """
    folders = {"train": location} if isinstance(location, Path) else location
    folders = {name: folders[name] for name in PARTS if name in folders}
    if "train" not in folders:
        names = ", ".join(sorted(folders)) or "none"
        raise MissingColumn(f"there is no channel train; there are {names}")
    return folders


def find(location: Path, endings: Sequence[str], *, deep: bool = False) -> list[Path]:
    """List a folder's data files with the given endings, sorted by name.

    If `location` is a file, it is listed whatever its ending. Hidden files are skipped. With
    `deep`, subfolders are searched, too.

    Raises:
        NoRows: there is no such file, or a file is empty.
    """
    if location.is_file():
        paths = [location]
    elif location.is_dir():
        paths = _find_in_folder(location, endings, deep)
    else:
        raise NoRows(f"there is no file or folder {location.name}")
    for path in paths:
        if path.stat().st_size == 0:
            raise NoRows(f"{path.name} is empty")
    return paths


def title(paths: Sequence[Path]) -> str:
    """Build a data set's source string from its first file's name.

    Folders are left out: they may hold private names.

    >>> title([Path("/data/a.csv"), Path("/data/b.csv")])
    'file:a.csv and 1 more'
    """
    return f"file:{paths[0].name}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def sha256(paths: Sequence[Path]) -> str:
    """Compute the SHA-256 of a file, or of several files' digests."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def locate(rows: Sequence[tuple[str, int]], row: int, first: int = 1) -> str:
    """Format the file name and row number of a row across files.

    `rows` lists (file name, number of rows). `first` is the number of a file's first row.

    >>> locate([("a.csv", 2), ("b.csv", 5)], 3, first=2)
    'b.csv, row 3'
    """
    for name, count in rows:
        if row < count:
            return f"{name}, row {row + first}"
        row -= count
    raise IndexError(row)


def class_numbers(
    values: NDArray[Any], labels: Sequence[str], place: Callable[[int], str]
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Encode an array of integers or texts as class numbers and labels.

    Returns the numbers (n,) and the names of all classes. Targets of floats or of several axes are
    returned unchanged. Without `labels`, the sorted texts or 0 to the largest number are the
    labels. `place` names a row in an error.

    Raises:
        UnknownLabel: a value is none of the labels.
    """
    if values.dtype.kind == "f" or values.ndim > 1:
        return values, tuple(labels)
    texts = values.dtype == object
    if not labels:
        numbers = range(0 if texts else int(values.max()) + 1)
        labels = sorted(set(values)) if texts else [str(number) for number in numbers]
    keys: Sequence[Any] = labels if texts else range(len(labels))
    number_of = {key: number for number, key in enumerate(keys)}
    classes = np.array([number_of.get(value, -1) for value in values.tolist()], np.int64)
    if (classes < 0).any():
        row = int((classes < 0).argmax())
        raise unknown_label(str(values[row]), [str(key) for key in keys], place(row))
    return classes, tuple(labels)


def unknown_label(label: str, labels: Sequence[str], place: str) -> UnknownLabel:
    """Make the UnknownLabel error for a label outside the known labels."""
    names = ", ".join(map(repr, labels[:10])) + (", …" if len(labels) > 10 else "")
    return UnknownLabel(f"{place}: {label!r} is none of the labels {names}")


def _find_in_folder(folder: Path, endings: Sequence[str], deep: bool) -> list[Path]:
    paths = sorted(folder.rglob("*") if deep else folder.iterdir())
    files = [path for path in paths if path.is_file() and not _hidden(path.relative_to(folder))]
    matching = [path for path in files if path.name.lower().endswith(tuple(endings))]
    if not matching:
        names = ", ".join(path.name for path in files[:3]) or "nothing"
        kinds = " or ".join(endings)
        raise NoRows(f"the folder {folder.name} holds no {kinds} file; it holds {names}")
    return matching


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
