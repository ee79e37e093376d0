"""Loader of data sets from CSV and Parquet tables with typed columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from training.data import columns
from training.data.columns import Table, Units
from training.data.dataset import Dataset, Examples
from training.data.sources import Location, Part, load
from training.errors import InvalidData, MissingColumn, NoRows, WrongShape

# Longest cell in characters; the csv module's default of 131,072 is too short for documents.
csv.field_size_limit(2**24)
ENDINGS = (".csv", ".tsv", ".txt", ".parquet")


def table(
    location: Location,
    *,
    target: str | Sequence[str],
    task: Literal["classification", "multilabel", "regression"] = "classification",
    numbers: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    booleans: Sequence[str] = (),
    dates: Sequence[str] = (),
    texts: Sequence[str] = (),
    units: Mapping[str, Units] | None = None,
    optional: Sequence[str] = (),
    ignore: Sequence[str] = (),
    groups: str | None = None,
    time: str | None = None,
    weights: str | None = None,
    labels: Sequence[str] = (),
    delimiter: str = ",",
) -> Dataset:
    """Load CSV (.csv, .tsv, .txt) or Parquet files as a data set.

    The columns become up to two inputs, and one for each text:

        numbers     (n, k) float32: columns of numbers, of yes and no (1 and 0), and of quantities
                    with `units`; NaN where a cell is missing. The units {"weight": {"kg": 1,
                    "g": 0.001}} convert "3 kg" and "2500 g" to kilograms. A column of ISO dates
                    becomes three: days since 1970 (UTC), weekday (0 is Monday) and month.
        categories  (n, m) of str, "" where missing
        <text>      (n,) of str

    `Dataset.columns` names the columns of both in order. Without `numbers` and `categories`, a
    column is one of numbers or dates if most of its cells are, else a category. Only columns named
    in `optional` may have gaps. `groups` is the column to split by; or `time` is one of numbers or
    ISO dates, whose latest rows are the test part. `weights` is a column of factors by which rows
    count in training. `labels` are the classes [those of the training
    part].

    Raises:
        InvalidData: one sentence that names the file and, where it applies, column and row.
    """
    targets = [target] if isinstance(target, str) else list(target)
    if task == "classification" and len(targets) != 1:
        raise InvalidData(f"a classifier has one target column, not {len(targets)}")
    if groups and time:
        raise InvalidData("a table is split by groups or by time: leave one of them out")
    quantities = dict(units or {})
    units_of_split = [name for name in (groups, time, weights) if name]
    reserved = {*targets, *booleans, *dates, *texts, *quantities, *ignore, *units_of_split}

    def read(paths: Sequence[Path], train: Part | None) -> Part:
        rows = read_table(paths, delimiter)
        named = {"numbers": numbers, "categories": categories}
        more = [*booleans, *quantities, *columns.date_columns(dates)]
        kinds = columns.by_kind(rows, named, more, reserved)
        if train is not None:
            kinds = {kind: list(names) for kind, names in train.columns.items()}
        inputs = columns.inputs(rows, kinds, booleans, quantities, texts, optional)
        if not inputs:
            names = ", ".join(sorted(reserved))
            raise MissingColumn(f"{rows.files[0][0]} has no column beside {names}")
        classes = tuple(train.labels if train else labels)
        values: NDArray[Any]
        if task == "classification":
            values, classes = columns.class_numbers(rows, targets[0], classes)
        elif task == "multilabel":
            values, classes = columns.flags(rows, targets), classes or tuple(targets)
        else:
            values = columns.values(rows, targets)
            values = values[:, 0] if isinstance(target, str) else values
        members = columns.texts(rows, groups, False).astype(str) if groups else None
        times = columns.times(rows, time) if time else None
        factors = columns.values(rows, [weights])[:, 0] if weights else None
        used = {kind: tuple(names) for kind, names in kinds.items() if names}
        return Part(Examples(inputs, values, members, times=times, weights=factors), classes, used)

    return load(location, ENDINGS, read, by=groups or ("time" if time else "row"))


def read_table(paths: Sequence[Path], delimiter: str = ",") -> Table:
    """Read CSV or Parquet files of the same columns into one table.

    Raises:
        InvalidData: a file cannot be read, is empty, or has other columns than the first.
    """
    merged: Table | None = None
    for path in paths:
        part = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, delimiter)
        if merged is None:
            merged = part
            continue
        _check_columns(path, part, paths[0], merged)
        for name, cells in part.columns.items():
            merged.columns[name].extend(cells)
        merged.files += part.files
    if merged is None:
        raise NoRows("there are no files")
    return merged


def _check_columns(path: Path, part: Table, first_path: Path, first: Table) -> None:
    differing = sorted(set(part.columns) ^ set(first.columns))
    if not differing:
        return
    has, lacks = path.name, first_path.name
    if differing[0] in first.columns:
        has, lacks = lacks, has
    raise MissingColumn(f"{lacks} has no column {differing[0]!r}, {has} has one")


def _csv(path: Path, delimiter: str) -> Table:
    if path.suffix.lower() == ".tsv":
        delimiter = "\t"
    number = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, delimiter)
            cells: list[list[str]] = [[] for _ in header]
            for number, row in enumerate(_without_blank_end(reader), 2):
                _check_row(path, number, row, len(header))
                for column, cell in zip(cells, row, strict=True):
                    column.append(cell)
    except UnicodeDecodeError as error:
        reason = f"{error.reason}; save it as UTF-8"
        raise InvalidData(f"{path.name}, after row {number}: {reason}") from error
    except csv.Error as error:
        raise InvalidData(f"{path.name}, after row {number}: {error}") from error
    if not cells[0]:
        raise NoRows(f"{path.name} has a header and no rows")
    return Table(dict(zip(header, cells, strict=True)), [(path.name, len(cells[0]))])


def _without_blank_end(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield rows without the blank ones at the end."""
    blank: list[list[str]] = []
    for row in rows:
        if any(cell.strip() for cell in row):
            yield from blank
            yield row
            blank = []
        else:
            blank.append(row)


def _check_row(path: Path, number: int, row: Sequence[str], width: int) -> None:
    if not row:
        raise WrongShape(f"{path.name}, row {number} is blank: remove it")
    if len(row) != width:
        raise WrongShape(
            f"{path.name}, row {number} has {len(row)} values; there are {width} columns"
        )


def _check_header(path: Path, header: Sequence[str], delimiter: str) -> None:
    if not any(header):
        raise NoRows(f"{path.name} has no header")
    for name in header:
        if header.count(name) > 1:
            twice = f"the header names {name!r} twice" if name else "a column has no name"
            raise InvalidData(f"{path.name}: {twice}")
    for candidate in (";", "\t", ","):
        if len(header) == 1 and candidate != delimiter and candidate in header[0]:
            column = f"one column, {header[0][:60]!r}"
            raise InvalidData(f"{path.name} has {column}; give delimiter={candidate!r}")


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InvalidData(
            f"{path.name} needs pyarrow: pip install pyarrow, or save it as CSV"
        ) from error
    try:
        stored = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InvalidData(f"{path.name} is no Parquet file: {reason}") from error
    if not stored.num_rows or not stored.num_columns:
        raise NoRows(f"{path.name} has no rows")
    cells = {
        str(name): stored.column(number).to_pylist()
        for number, name in enumerate(stored.column_names)
    }
    return Table(cells, [(path.name, stored.num_rows)], first=1)
