"""Training rows of an existing model: inputs, answers, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import columns, lazy, sources
from training.data.arrays.mapping import MappedRows, read_arrays
from training.data.columns import Table
from training.data.tables import ENDINGS, read_table
from training.errors import InvalidArtifact, MissingColumn
from training.evaluation.distributions import spread
from training.export import graphs
from training.export.graphs import first_line
from training.publishing.requests import DTYPES
from training.recipe import Arrays

ANSWERED = 1000  # rows that the model is asked for
BATCH = 256  # rows at a time, where the model takes any number


@dataclass(frozen=True)
class Rows:
    """Inputs (n, ...) by name, their column names, class numbers (n,)."""

    inputs: Arrays
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    target: NDArray[Any] | None = None


def read(path: Path, session: Any, target: str | None, labels: Sequence[str]) -> Rows:
    """Read rows of NumPy arrays or of a table (CSV, Parquet).

    Arrays are those of an .npz file or of a folder's .npy files by name; large ones stay on disk.

    `target` is left out of the inputs; with `labels` it holds the classes.

    A table has a column for each input (n,) or (n, 1); or all its columns but `target`, in order,
    are the one input (n, columns).

    Raises:
        TrainingError: the file is unreadable, or does not have what the model takes.
    """
    if not path.exists():
        raise InvalidArtifact(f"there is no file or folder {path}")
    if path.is_dir() or path.suffix.lower() == ".npz":
        return _arrays(path, session, target, labels)
    if path.suffix.lower() in ENDINGS:
        return _table(read_table([path]), session, target, labels)
    kinds = f"give .npz, {', '.join(ENDINGS)}, or a folder of .npy files"
    raise InvalidArtifact(f"--data {path.name}: {kinds}")


def _arrays(path: Path, session: Any, target: str | None, labels: Sequence[str]) -> Rows:
    arrays = read_arrays(path)
    names = [value.name for value in session.get_inputs()]
    for name in [*names, *([target] if target else [])]:
        if name not in arrays or not arrays[name].ndim:
            held = ", ".join(arrays) or "no array"
            raise MissingColumn(f"{path.name} has no rows {name!r}; it holds {held}")
    if len({len(arrays[name]) for name in names}) > 1:
        raise InvalidArtifact(f"{path.name}: its arrays differ in their number of rows")
    inputs = {value.name: _converted(value, arrays[value.name]) for value in session.get_inputs()}
    if target is None or not labels:
        return Rows(inputs)
    values = np.array(arrays[target], object if arrays[target].dtype.kind == "U" else None)
    classes, _ = sources.class_numbers(values, labels, lambda row: f"{path.name}, row {row + 1}")
    return Rows(inputs, target=classes)


def _converted(value: Any, array: NDArray[Any]) -> NDArray[Any]:
    datatype = graphs.DATATYPES[value.type]
    if datatype != "BYTES" and array.dtype.kind not in "fiub":
        raise InvalidArtifact(f"input {value.name} takes {datatype}; the data hold {array.dtype}")
    if array.dtype.kind not in "fiub":
        return array.astype(DTYPES[datatype])
    return lazy.array(MappedRows([array], DTYPES[datatype]), sources.IN_MEMORY_MB)


def _table(table: Table, session: Any, target: str | None, labels: Sequence[str]) -> Rows:
    values = session.get_inputs()
    classes = columns.class_numbers(table, target, tuple(labels))[0] if target and labels else None
    names = [name for name in table.columns if name != target]
    if all(value.name in names for value in values):
        inputs = {value.name: _column(table, value) for value in values}
        return Rows(inputs, target=classes)
    if len(values) == 1 and len(values[0].shape) == 2 and values[0].shape[1] in (len(names), None):
        return Rows({values[0].name: _side_by_side(table, names, values[0])}, _named(values, names),
                    classes)  # fmt: skip
    takes = ", ".join(f"{value.name} {list(value.shape)}" for value in values)
    raise InvalidArtifact(
        f"{table.files[0][0]} has {len(names)} columns ({', '.join(names[:12])}), and the model "
        f"takes {takes}; name the column to predict with --target, or give .npz"
    )


def _named(values: Sequence[Any], names: Sequence[str]) -> dict[str, Sequence[str]]:
    return {values[0].name: names}


def _column(table: Table, value: Any) -> NDArray[Any]:
    """Return a table's column as an input (n,) or (n, 1)."""
    array = _side_by_side(table, [value.name], value)
    return array if len(value.shape) == 2 else array[:, 0]


def _side_by_side(table: Table, names: Sequence[str], value: Any) -> NDArray[Any]:
    datatype = graphs.DATATYPES[value.type]
    if datatype == "BYTES":
        return np.column_stack([columns.texts(table, name, True) for name in names])
    numbers = columns.inputs(table, {"numbers": names}, (), {}, (), names)["numbers"]
    return numbers.astype(DTYPES[datatype])


def batches(session: Any, inputs: Arrays) -> list[Arrays]:
    """Return up to ANSWERED rows, spread over all, in batches."""
    fixed = [value.shape[0] for value in session.get_inputs() if value.shape]
    size = next((size for size in fixed if isinstance(size, int)), None)
    batch = size or BATCH
    available = len(next(iter(inputs.values())))
    count = min(available, max(ANSWERED, batch))
    rows = spread(available, count - count % batch if size else count)
    return [
        {name: values[rows[start : start + batch]] for name, values in inputs.items()}
        for start in range(0, len(rows), batch)
    ]


def answer(session: Any, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Run a model on up to ANSWERED rows; return its outputs.

    They are spread over all rows. A model with a fixed batch gets whole ones, at least one.

    Raises:
        InvalidArtifact: it does not answer them; the reason is the runtime's.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        parts = [session.run(names, dict(batch)) for batch in batches(session, inputs)]
    except Exception as error:  # the runtime raises native errors of any kind
        reason = first_line(error)
        raise InvalidArtifact(f"the model does not answer the rows of --data: {reason}") from error
    return {
        name: np.concatenate(arrays)
        for name, *arrays in zip(names, *parts, strict=True)
        if arrays and arrays[0].ndim
    }
