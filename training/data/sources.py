"""Where a user's data lie: the files of a channel's folder, what they are called, and the parts they make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.data.dataset import PARTS, Dataset, Examples, split
from training.errors import InvalidData, MissingColumn, NoRows, UnknownLabel

Where = (
    Path | Mapping[str, Path]
)  # a file or folder that is split, or one for each of train, validation and test


@dataclass(frozen=True)
class Read:
    """What was read of some files: rows, and what later files have to agree with."""

    examples: Examples
    labels: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Reader = Callable[
    [Sequence[Path], Read | None], Read
]  # (files, the training part if it was read before)


def parts(where: Where, endings: Sequence[str], *, deep: bool = False) -> dict[str, list[Path]]:
    """The files with one of `endings` by part; of a single folder they are all of the training part.

    Raises:
        InvalidData: there are none.
    """
    folders = (
        {"train": where}
        if isinstance(where, Path)
        else {name: where[name] for name in PARTS if name in where}
    )
    if "train" not in folders:
        raise MissingColumn(
            f"there is no channel train; there are {', '.join(sorted(folders)) or 'none'}"
        )
    return {name: find(folder, endings, deep=deep) for name, folder in folders.items()}


def load(paths: Mapping[str, Sequence[Path]], read: Reader, *, by: str) -> Dataset:
    """Read the files of the training part, and then those of the parts that the user has set apart.

    Raises:
        InvalidData: what is there does not fit.
    """
    train = read(paths["train"], None)
    if len(train.labels) == 1:
        raise InvalidData(
            f"{title(paths['train'])}: every row is of the class {train.labels[0]!r}; it takes two"
        )
    given = {name: read(paths[name], train).examples for name in PARTS[1:] if name in paths}
    return split(
        train.examples,
        source=title(paths["train"]),
        sha256=sha256([path for part in paths.values() for path in part]),
        by=by,
        labels=train.labels,
        columns=train.columns,
        gaps=True,  # where there may be none, the reader said so
        **given,  # type: ignore[arg-type]
    )


def find(where: Path, endings: Sequence[str], *, deep: bool = False) -> list[Path]:
    """The file, or those in the folder (`deep`: at any depth), by name; hidden ones do not count.

    Raises:
        NoRows: there is none.
    """
    if where.is_file():
        found = [where]
    elif where.is_dir():
        every = sorted(
            path for path in (where.rglob("*") if deep else where.iterdir()) if path.is_file()
        )
        every = [
            path
            for path in every
            if not any(part.startswith(".") for part in path.relative_to(where).parts)
        ]
        found = [path for path in every if path.name.lower().endswith(tuple(endings))]
        if not found:
            others = ", ".join(path.name for path in every[:3]) or "nothing"
            raise NoRows(
                f"the folder {where.name} holds no {' or '.join(endings)} file; it holds {others}"
            )
    else:
        raise NoRows(f"there is no file or folder {where.name}")
    for path in found:
        if path.stat().st_size == 0:
            raise NoRows(f"{path.name} is empty")
    return found


def title(paths: Sequence[Path]) -> str:
    """The source of a data set; names of files, never of folders."""
    return f"file:{paths[0].name}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def sha256(paths: Sequence[Path]) -> str:
    """Of one file its own; of several, that of their digests in order."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def place(rows: Sequence[tuple[str, int]], row: int, first: int = 1) -> str:
    """Where a person finds a row of several files, given as (name, rows); `first` is the number of a file's first row.

    >>> place([("a.csv", 2), ("b.csv", 5)], 3, first=2)
    'b.csv, row 3'
    """
    for name, count in rows:
        if row < count:
            return f"{name}, row {row + first}"
        row -= count
    raise IndexError(row)


def unknown(label: str, labels: Sequence[str], where: str) -> UnknownLabel:
    """The error for a class that is none of `labels`."""
    told = ", ".join(repr(one) for one in labels[:10]) + (", …" if len(labels) > 10 else "")
    return UnknownLabel(f"{where}: {label!r} is none of the labels {told}")
