"""Loader of data sets from NumPy's .npz and .npy files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import lazy
from training.data.arrays.mapping import DTYPES, MappedRows, read_npy, read_npz
from training.data.dataset import Dataset, Examples
from training.data.sources import (
    IN_MEMORY_MB,
    Location,
    Part,
    class_numbers,
    load,
    locate,
)
from training.errors import InvalidData, InvalidValue, MissingColumn, NoRows, WrongShape

Array = NDArray[Any]
MOST = np.iinfo(np.int64).max


def arrays(
    location: Location,
    *,
    target: str,
    inputs: Sequence[str] = (),
    groups: str | None = None,
    time: str | None = None,
    weights: str | None = None,
    labels: Sequence[str] = (),
    optional: Sequence[str] = (),
    in_memory_mb: float = IN_MEMORY_MB,
) -> Dataset:
    """Load named arrays of .npz or .npy files as a data set.

    Each .npz file has all arrays by name; or each .npy file of a folder is the array of its name.
    The first axis of each array is the rows. `inputs` [all that have no other use] become float32,
    int64 or str. `groups` is the array to split by; or `time` is one of numbers or datetime64,
    whose latest rows are the test part. `weights` are factors by which rows count in training. A
    target of whole numbers or texts is a class. Inputs named in `optional` may hold NaN.

    Arrays that take more than `in_memory_mb` as tensors stay on disk, and are read batch by batch:
    numbers that np.savez or np.save wrote, inputs and targets of several whole numbers a row.

    Raises:
        InvalidData: an array is missing, has another size, or holds unusable values.
    """
    if groups and time:
        raise InvalidData("arrays are split by groups or by time: leave one of them out")

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        names = list(train.examples.inputs if train else inputs)
        special = [name for name in (target, groups, time, weights) if name]
        stored = [_named(file, special, names, time) for file in _files(paths)]
        shapes = train.examples.inputs if train else stored[0].arrays
        for file in stored:
            _check(file, shapes, optional)
        merged = {
            name: _merged([file.arrays[name] for file in stored], in_memory_mb)
            for name in stored[0].arrays
            if name != time
        }
        rows = [(file.name, len(file.arrays[target])) for file in stored]
        values, classes = class_numbers(
            merged.pop(target),
            train.labels if train else labels,
            lambda row: f"{locate(rows, row)}, {target!r}",
        )
        members = np.asarray(merged.pop(groups)).astype(str) if groups else None
        factors = np.asarray(merged.pop(weights)) if weights else None
        # Not as float32, in which seconds since 1970 are two minutes apart.
        times = np.concatenate([file.arrays[time] for file in stored]) if time else None
        examples = Examples(merged, values, members, times=times, weights=factors)
        return Part(examples, classes, notes=_notes(stored, in_memory_mb))

    return load(location, (".npz", ".npy"), read, by=groups or ("time" if time else "row"))


@dataclass(frozen=True)
class Stored:
    """Arrays of an .npz file or a folder of .npy files."""

    name: str  # the file's or folder's
    arrays: Mapping[str, Array]
    compressed: Sequence[str] = ()


def _files(paths: Sequence[Path]) -> list[Stored]:
    npy = [path for path in paths if path.suffix.lower() == ".npy"]
    if not npy:
        return [Stored(path.name, *read_npz(path)) for path in paths]
    folder = npy[0].parent.name
    if len(npy) < len(paths):
        raise InvalidData(f"{folder} holds .npz and .npy files: keep one kind in a folder")
    return [Stored(folder, {path.stem: read_npy(path) for path in npy})]


def _named(
    stored: Stored, special: Sequence[str], names: Sequence[str], time: str | None
) -> Stored:
    """Return the inputs and special arrays, checked for kind and length.

    `special` begins with the target. Without `names`, all other arrays are inputs.
    """
    arrays_by_name, target = stored.arrays, special[0]
    columns = [*(names or sorted(set(arrays_by_name) - set(special))), *special]
    for name in [*special, *columns]:
        if name not in arrays_by_name:
            has = ", ".join(map(repr, sorted(arrays_by_name)))
            raise MissingColumn(f"{stored.name} has no array {name!r}; it has {has}")
        values = arrays_by_name[name]
        if not values.ndim or not len(values):
            raise NoRows(f"{stored.name}: {name!r} has no rows")
        rows = len(arrays_by_name[target])
        if len(values) != rows:
            counts = f"{name!r} has {len(values)} rows and {target!r} has {rows}"
            raise WrongShape(f"{stored.name}: {counts}")
        if name == time:
            _check_times(stored.name, name, values)
        elif values.dtype.kind not in DTYPES:
            kinds = f"{values.dtype.name}; numbers or texts are known"
            raise InvalidValue(f"{stored.name}: {name!r} holds {kinds}")
    return Stored(stored.name, {name: arrays_by_name[name] for name in columns}, stored.compressed)


def _check_times(file: str, name: str, values: Array) -> None:
    """Raise an error unless an array is one moment a row."""
    if values.dtype.kind not in "iufM" or values.ndim != 1:
        kind = f"{values.dtype.name} of shape {list(values.shape)}"
        raise InvalidValue(
            f"{file}: times {name!r} are {kind}; give one number or datetime64 a row"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values))) + 1
        raise InvalidValue(f"{file}, row {row}: {name!r} is no time")


def _check(stored: Stored, shapes: Mapping[str, Array], optional: Sequence[str]) -> None:
    """Raise an error unless rows have the expected shape and finite values."""
    for name, values in stored.arrays.items():
        shape = values.shape[1:]
        if name in shapes and shape != shapes[name].shape[1:]:
            earlier = f"those before have {list(shapes[name].shape[1:])}"
            raise WrongShape(f"{stored.name}: a row of {name!r} has shape {list(shape)}, {earlier}")
        if values.dtype == np.uint64 and (wrong := values > MOST).any():
            row = int(np.argwhere(wrong)[0][0]) + 1
            raise InvalidValue(
                f"{stored.name}, row {row}: {name!r} is above {MOST}, the largest int64"
            )
        if name in optional or values.dtype.kind != "f":
            continue
        for part in lazy.chunks(values):
            wrong = ~np.isfinite(values[part].astype(np.float32))
            if wrong.any():
                row = part.start + int(np.argwhere(wrong)[0][0]) + 1
                raise InvalidValue(f"{stored.name}, row {row}: {name!r} holds a NaN or an infinity")


def _merged(parts: Sequence[Array], in_memory_mb: float) -> Array:
    """Put arrays of several files one after another, as tensors."""
    dtypes = {np.dtype(DTYPES[part.dtype.kind]) for part in parts}
    if len(dtypes) > 1 or object in dtypes:
        return np.concatenate([part.astype(DTYPES[part.dtype.kind]) for part in parts])
    return lazy.array(MappedRows(parts), in_memory_mb)


def _notes(stored: Sequence[Stored], in_memory_mb: float) -> tuple[str, ...]:
    """Tell which large arrays are compressed, and how they would not be."""
    return tuple(
        f"{file.name}: {name!r} is compressed, so {values.nbytes / 1e6:,.0f} MB are read whole; "
        "write it with np.savez (not savez_compressed), and it stays on disk"
        for file in stored
        for name, values in file.arrays.items()
        if name in file.compressed and values.nbytes > in_memory_mb * 1e6
    )
