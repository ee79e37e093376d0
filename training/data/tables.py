"""CSV and Parquet: typed columns, with what is wrong told by file, row and column."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, Examples
from training.data.sources import Read, Where, load, parts, place, unknown
from training.errors import InvalidData, InvalidValue, MissingColumn, NoRows, WrongShape

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}  # in a column of numbers, in any case
BOOLEANS = {
    "true": 1.0,
    "yes": 1.0,
    "t": 1.0,
    "y": 1.0,
    "1": 1.0,
    "false": 0.0,
    "no": 0.0,
    "f": 0.0,
    "n": 0.0,
    "0": 0.0,
}
QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
csv.field_size_limit(
    2**24
)  # characters of a cell; the 131,072 of the standard library are too few for documents
MOSTLY = 0.8  # of its values are numbers: a column of numbers, and the others are mistakes

Units = Mapping[str, float]


@dataclass
class Table:
    """Columns of cells as they were read, and where each row is from."""

    columns: dict[str, list[Any]]
    files: list[tuple[str, int]] = field(default_factory=list)  # name, rows
    first: int = 2  # number of the first row in its file: below the header

    def __len__(self) -> int:
        return sum(rows for _, rows in self.files)

    def place(self, row: int) -> str:
        """Where a person finds it; the header is row 1."""
        return place(self.files, row, self.first)

    def column(self, name: str) -> list[Any]:
        if name not in self.columns:
            close = difflib.get_close_matches(name, self.columns, n=1)
            has = (
                f"did you mean {close[0]!r}?"
                if close
                else f"it has {', '.join(map(repr, list(self.columns)[:12]))}"
            )
            raise MissingColumn(f"{self.files[0][0]} has no column {name!r}; {has}")
        return self.columns[name]


def table(
    where: Where,
    *,
    target: str | Sequence[str],
    task: Literal["classification", "regression"] = "classification",
    numbers: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    booleans: Sequence[str] = (),
    texts: Sequence[str] = (),
    units: Mapping[str, Units] | None = None,
    optional: Sequence[str] = (),
    ignore: Sequence[str] = (),
    groups: str | None = None,
    labels: Sequence[str] = (),
    delimiter: str = ",",
) -> Dataset:
    """Rows of CSV (.csv, .tsv, .txt) or Parquet files, whose columns become up to two inputs, and one for each text:

        numbers     (n, k) float32: columns of numbers, of yes and no (1 and 0), and of quantities with `units`, e.g.
                    {"weight": {"kg": 1, "g": 0.001}} makes kilograms of "3 kg" and of "2500 g"; NaN where missing
        categories  (n, m) of str, "" where missing
        <text>      (n,) of str

    `Dataset.columns` names the columns of both in order. Without `numbers` and `categories`, each other column is of
    numbers if most of its values are. Only columns named `optional` may have gaps. `groups` is the column by which
    rows are split; `labels` are the classes, else those of the training part.

    Raises:
        InvalidData: one sentence that names the file, and column and row where there are such.
    """
    targets = [target] if isinstance(target, str) else list(target)
    if task == "classification" and len(targets) != 1:
        raise InvalidData(f"a classifier has one target column, not {len(targets)}")
    quantities = dict(units or {})
    apart = {*targets, *booleans, *texts, *quantities, *ignore, *([groups] if groups else [])}

    def read(paths: Sequence[Path], before: Read | None) -> Read:
        found = read_table(paths, delimiter)
        numeric, named = _kinds(found, numbers, categories, apart)
        numeric = [*numeric, *booleans, *quantities]
        if before is not None:
            numeric, named = (
                list(before.columns.get(name, ())) for name in ("numbers", "categories")
            )
        inputs: dict[str, NDArray[Any]] = {}
        if numeric:
            parsed = [
                _parsed(found, name, _parser(name, booleans, quantities), name in optional)
                for name in numeric
            ]
            inputs["numbers"] = np.column_stack(parsed).astype(np.float32)
        if named:
            inputs["categories"] = np.column_stack(
                [_text(found, name, name in optional) for name in named]
            )
        inputs |= {name: _text(found, name, name in optional) for name in texts}
        if not inputs:
            raise MissingColumn(
                f"{found.files[0][0]} has no column beside {', '.join(sorted(apart))}"
            )
        known_labels = tuple(before.labels if before else labels)
        if task == "classification":
            values, known_labels = _classes(found, targets[0], known_labels)
        else:
            values = np.column_stack(
                [_parsed(found, name, _number, False) for name in targets]
            ).astype(np.float32)
            values = values[:, 0] if isinstance(target, str) else values
        return Read(
            Examples(inputs, values, _text(found, groups, False).astype(str) if groups else None),
            known_labels,
            {
                name: tuple(names)
                for name, names in (("numbers", numeric), ("categories", named))
                if names
            },
        )

    return load(parts(where, (".csv", ".tsv", ".txt", ".parquet")), read, by=groups or "row")


def read_table(paths: Sequence[Path], delimiter: str = ",") -> Table:
    """All rows of all files, which have the same columns.

    Raises:
        InvalidData: a file cannot be read, is empty, or has other columns than the first.
    """
    whole: Table | None = None
    for path in paths:
        part = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, delimiter)
        if whole is None:
            whole = part
            continue
        if set(part.columns) != set(whole.columns):
            differing = sorted(set(part.columns) ^ set(whole.columns))[0]
            has, lacks = (
                (path.name, paths[0].name)
                if differing in part.columns
                else (paths[0].name, path.name)
            )
            raise MissingColumn(f"{lacks} has no column {differing!r}, {has} has one")
        for name, cells in part.columns.items():
            whole.columns[name].extend(cells)
        whole.files += part.files
    if whole is None:
        raise NoRows("there are no files")
    return whole


def _csv(path: Path, delimiter: str) -> Table:
    if path.suffix.lower() == ".tsv":
        delimiter = "\t"
    number = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, delimiter)
            columns: list[list[str]] = [[] for _ in header]
            for number, row in enumerate(reader, 2):
                if not row:
                    raise WrongShape(f"{path.name}, row {number} is blank: remove it")
                if len(row) != len(header):
                    raise WrongShape(
                        f"{path.name}, row {number} has {len(row)} values; there are {len(header)} columns"
                    )
                for cells, cell in zip(columns, row, strict=True):
                    cells.append(cell)
    except UnicodeDecodeError as error:
        raise InvalidData(
            f"{path.name}, after row {number}: {error.reason}; save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise InvalidData(f"{path.name}, after row {number}: {error}") from error
    if not columns[0]:
        raise NoRows(f"{path.name} has a header and no rows")
    return Table(dict(zip(header, columns, strict=True)), [(path.name, len(columns[0]))])


def _check_header(path: Path, header: Sequence[str], delimiter: str) -> None:
    if not any(header):
        raise NoRows(f"{path.name} has no header")
    for name in header:
        if header.count(name) > 1:
            raise InvalidData(
                f"{path.name}: the header names {name!r} twice"
                if name
                else f"{path.name}: a column has no name"
            )
    for other in (";", "\t", ","):
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise InvalidData(
                f"{path.name} has one column, {header[0][:60]!r}; give delimiter={other!r}"
            )


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InvalidData(
            f"{path.name} needs pyarrow: pip install pyarrow, or save it as CSV"
        ) from error
    try:
        read = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidData(
            f"{path.name} is no Parquet file: {str(error).splitlines()[0][:200]}"
        ) from error
    if not read.num_rows or not read.num_columns:
        raise NoRows(f"{path.name} has no rows")
    columns = {
        str(name): read.column(number).to_pylist() for number, name in enumerate(read.column_names)
    }
    return Table(columns, [(path.name, read.num_rows)], first=1)


# --- columns ----------------------------------------------------------------------------------------------------------


def _kinds(
    found: Table, numbers: Sequence[str] | None, categories: Sequence[str] | None, apart: set[str]
) -> tuple[list[str], list[str]]:
    """Columns of numbers and of categories, as named; or, where neither is, as they look."""
    if numbers is not None or categories is not None:
        return list(numbers or ()), list(categories or ())
    free = [name for name in found.columns if name not in apart]
    numeric = [name for name in free if _mostly_numbers(found.columns[name])]
    return numeric, [name for name in free if name not in numeric]


def _mostly_numbers(cells: Sequence[Any]) -> bool:
    told = [cell for cell in cells if not _missing(cell)]
    right = 0
    for cell in told:
        try:
            _number(cell)
        except ValueError:
            continue
        right += 1
    return right > MOSTLY * len(told)


def _missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _parsed(
    found: Table, name: str, parse: Callable[[Any], float], optional: bool
) -> NDArray[np.float64]:
    cells = found.column(name)
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if _missing(cell):
            if not optional:
                raise _gap(found, row, name)
            continue
        try:
            values[row] = parse(cell)
        except ValueError as error:
            raise InvalidValue(
                f"{found.place(row)}, column {name!r}: {str(cell)[:60]!r} {error}"
            ) from None
    return values


def _text(found: Table, name: str, optional: bool) -> NDArray[Any]:
    cells = found.column(name)
    values = np.empty(len(cells), object)
    for row, cell in enumerate(cells):
        gap = cell.strip() == "" if isinstance(cell, str) else _missing(cell)
        if gap and not optional:
            raise _gap(found, row, name)
        values[row] = "" if gap else str(cell)
    return values


def _classes(
    found: Table, name: str, labels: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    cells = [cell.strip() for cell in _text(found, name, False)]
    labels = labels or tuple(sorted(set(cells), key=_natural))
    number_of = {label: number for number, label in enumerate(labels)}
    for row, cell in enumerate(cells):
        if cell not in number_of:
            raise unknown(cell, labels, f"{found.place(row)}, column {name!r}")
    return np.array([number_of[cell] for cell in cells], np.int64), labels


def _natural(label: str) -> tuple[float, str]:
    """Numbers by their size, before words."""
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


def _gap(found: Table, row: int, name: str) -> InvalidValue:
    return InvalidValue(
        f"{found.place(row)}: column {name!r} is empty; fill it, or name the column in optional="
    )


def _parser(
    name: str, booleans: Sequence[str], units: Mapping[str, Units]
) -> Callable[[Any], float]:
    if name in booleans:
        return _boolean
    return (lambda cell: _quantity(cell, units[name])) if name in units else _number


def _number(cell: Any) -> float:
    if isinstance(cell, str) and "_" in cell:
        raise ValueError("is no number")
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError("is no number") from None
    if not math.isfinite(value):
        raise ValueError("is no finite number")
    return value


def _boolean(cell: Any) -> float:
    value = BOOLEANS.get(str(cell).strip().lower())
    if value is None:
        raise ValueError("is neither yes nor no")
    return value


def _quantity(cell: Any, units: Units) -> float:
    """`cell` in the unit whose factor is 1.

    >>> _quantity("2500 g", {"kg": 1, "g": 0.001}), _quantity("3kg", {"kg": 1, "g": 0.001})
    (2.5, 3.0)
    """
    match = QUANTITY.fullmatch(str(cell))
    if match is None:
        raise ValueError("is no quantity")
    if match[2] not in units:
        told = ", ".join(unit or "none" for unit in units)
        raise ValueError(f"has the unit {match[2] or 'none'}; known are {told}")
    return float(match[1]) * units[match[2]]
