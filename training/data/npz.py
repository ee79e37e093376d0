"""Loader of data sets from the arrays in NumPy .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples
from training.data.sources import Location, Part, class_numbers, load, locate
from training.errors import InvalidData, InvalidValue, MissingColumn, NoRows, WrongShape

Array = NDArray[Any]
# Kind of a stored NumPy dtype → dtype of the tensor.
DTYPES = {"f": np.float32, "b": np.float32, "i": np.int64, "u": np.int64, "U": object}


def arrays(
    location: Location,
    *,
    target: str,
    inputs: Sequence[str] = (),
    groups: str | None = None,
    weights: str | None = None,
    labels: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Dataset:
    """Load named arrays of .npz files as inputs, target and groups.

    The first axis of each array is the rows. `inputs` [all but target, groups and weights] become
    float32, int64 or str. `weights` are factors by which rows count in training. A target of whole
    numbers or texts is a class. Inputs named in `optional` may hold NaN.

    Raises:
        InvalidData: an array is missing, has another size, or holds unusable values.
    """

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        names = list(train.examples.inputs if train else inputs)
        special = [name for name in (target, groups, weights) if name]
        stored = [_read(path, special, names) for path in paths]
        shapes = train.examples.inputs if train else stored[0]
        for path, columns in zip(paths, stored, strict=True):
            _check(path, columns, shapes, optional)
        merged = {name: np.concatenate([columns[name] for columns in stored]) for name in stored[0]}
        rows = [(path.name, len(file[target])) for path, file in zip(paths, stored, strict=True)]
        values, classes = class_numbers(
            merged.pop(target),
            train.labels if train else labels,
            lambda row: f"{locate(rows, row)}, {target!r}",
        )
        members = merged.pop(groups).astype(str) if groups else None
        factors = merged.pop(weights) if weights else None
        return Part(Examples(merged, values, members, weights=factors), classes)

    return load(location, (".npz",), read, by=groups or "row")


def _read(path: Path, special: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
    """Read the inputs and special arrays of one .npz file.

    `special` begins with the target. Without `names`, all other arrays are inputs.
    """
    stored, target = _arrays_in(path), special[0]
    columns = [*(names or sorted(set(stored) - set(special))), *special]
    for name in [*special, *columns]:
        if name not in stored:
            has = ", ".join(map(repr, sorted(stored)))
            raise MissingColumn(f"{path.name} has no array {name!r}; it has {has}")
        values = stored[name]
        if not values.ndim or not len(values):
            raise NoRows(f"{path.name}: {name!r} has no rows")
        if len(values) != len(stored[target]):
            counts = f"{name!r} has {len(values)} rows and {target!r} has {len(stored[target])}"
            raise WrongShape(f"{path.name}: {counts}")
        if values.dtype.kind not in DTYPES:
            kinds = f"{values.dtype.name}; numbers or texts are known"
            raise InvalidValue(f"{path.name}: {name!r} holds {kinds}")
    return {name: stored[name].astype(DTYPES[stored[name].dtype.kind]) for name in columns}


def _arrays_in(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path):  # refuses .npy and pickles, which np.load would open
            pass
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "allow_pickle" in str(error)
        why = "holds pickled objects, which are refused" if pickled else "is no .npz file"
        raise InvalidData(f"{path.name} {why}") from error


def _check(
    path: Path, columns: Mapping[str, Array], shapes: Mapping[str, Array], optional: Sequence[str]
) -> None:
    """Raise an error unless rows have the expected shape and finite values."""
    for name, values in columns.items():
        shape = values.shape[1:]
        if name in shapes and shape != shapes[name].shape[1:]:
            earlier = f"those before have {list(shapes[name].shape[1:])}"
            raise WrongShape(f"{path.name}: a row of {name!r} has shape {list(shape)}, {earlier}")
        if name in optional or values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise InvalidValue(f"{path.name}, row {row + 1}: {name!r} holds a NaN or an infinity")
