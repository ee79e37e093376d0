"""Rows that are files in folders, decoded when they are used."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from training.data import lazy
from training.data.dataset import Dataset, Examples
from training.data.sources import Location, Part, load, title, unknown_label
from training.errors import InvalidData, NoRows

Array = NDArray[Any]
GroupOf = Callable[[Path], str]  # file → its group, e.g. lambda path: path.stem.split("_")[0]
# (files, the training part's values or None) → rows of the files
Rows = Callable[[Sequence[Path], Array | None], "FileRows"]

THREADS = 8  # at most; decoders leave Python's lock, and the network needs the other cores
ANNOUNCED = 10_000  # files whose first reading takes long enough to say so


@dataclass(frozen=True)
class FileRows:
    """Rows of an array, one a file, decoded by threads."""

    paths: Sequence[Path]
    decode: Callable[[Path], Array]  # file → row; raises InvalidData with the file's name
    row_shape: tuple[int, ...]
    bounds: tuple[float, float]  # limits of the values, which are finite
    kind: DTypeLike = np.float32

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of a row."""
        return np.dtype(self.kind)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: NDArray[np.int64]) -> Array:
        """Decode the files of these numbers."""
        values = np.empty((len(rows), *self.row_shape), self.dtype)

        def fill(position: int) -> None:
            values[position] = self.decode(self.paths[rows[position]])

        for _ in _threads(os.getpid()).map(fill, range(len(rows))):
            pass  # raises what a thread raised
        return values


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Return a process's threads; those of its parent are not its own."""
    return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), f"decode-{process}")


def load_classes(
    location: Location,
    endings: Sequence[str],
    name: str,
    rows: Rows,
    groups: GroupOf | None,
    by: str,
    labels: Sequence[str],
    in_memory_mb: float,
) -> Dataset:
    """Load files as a data set whose classes are the folder names.

    The values of the files become the input `name`.

    Raises:
        InvalidData: a file cannot be decoded or has no class, or a folder is empty.
    """
    roots = [location] if isinstance(location, Path) else list(location.values())

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        _check_folders(roots, paths, endings)
        classes = [_class(path, roots) for path in paths]
        names = train.labels if train else tuple(labels) or tuple(sorted(set(classes)))
        numbers = {label: number for number, label in enumerate(names)}
        for path, label in zip(paths, classes, strict=True):
            if label not in numbers:
                raise unknown_label(label, names, short_name(path))
        announce(paths)
        source = rows(paths, train.examples.inputs[name] if train else None)
        target = np.array([numbers[label] for label in classes], np.int64)
        members = group_names(paths, groups)
        return Part(Examples({name: lazy.array(source, in_memory_mb)}, target, members), names)

    return load(location, endings, read, by=by if groups else "row", deep=True)


def announce(paths: Sequence[Path]) -> None:
    """Say that many files are read once, which takes a while."""
    if len(paths) >= ANNOUNCED:
        print(f"{title(paths)}: reading each once, for broken files and copies", flush=True)


def group_names(paths: Sequence[Path], groups: GroupOf | None) -> Array | None:
    """Return each file's group (n,), or None."""
    return np.array([groups(path) for path in paths]) if groups else None


def short_name(path: Path) -> str:
    """Return a file's "folder/name" for error messages.

    File names alone may repeat between folders.
    """
    return f"{path.parent.name}/{path.name}"


def _class(path: Path, roots: Sequence[Path]) -> str:
    if path.parent in roots:
        raise InvalidData(f"{path.name} lies in no class's folder: put it into <label>/{path.name}")
    return path.parent.name


def _check_folders(roots: Sequence[Path], paths: Iterable[Path], endings: Sequence[str]) -> None:
    """Raise NoRows if a folder has no such file."""
    filled = {folder for parent in {path.parent for path in paths} for folder in
              (parent, *parent.parents)}  # fmt: skip
    for root in roots:
        if root not in filled:
            continue  # it belongs to another part
        for folder, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if Path(folder) not in filled:
                kinds = " or ".join(endings)
                raise NoRows(
                    f"the folder {Path(folder).name} has no {kinds} file: add some, or remove it"
                )
