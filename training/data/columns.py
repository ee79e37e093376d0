"""Parsers of table columns into numbers, quantities, categories, texts and class numbers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sources import locate, unknown_label
from training.errors import InvalidValue, MissingColumn

Array = NDArray[Any]
Units = Mapping[str, float]  # unit → factor that converts to the base unit, whose factor is 1

# Spellings of a missing number, compared in lower case.
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
BOOLEANS = {
    **dict.fromkeys(["true", "yes", "t", "y", "1"], 1.0),
    **dict.fromkeys(["false", "no", "f", "n", "0"], 0.0),
}
QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
# Numbers that a date becomes, each a column "<name> <part>". float32 is exact to 3 minutes.
EPOCH = datetime(1970, 1, 1)  # UTC, without saying so
DATE_PARTS: Mapping[str, Callable[[datetime], float]] = {
    "days since 1970": lambda moment: (moment - EPOCH).total_seconds() / 86_400,
    "weekday": lambda moment: float(moment.weekday()),  # 0 is Monday
    "month": lambda moment: float(moment.month),
}
# A column is numeric if more than this share of its non-missing cells are numbers; the rest of its
# cells are then mistakes.
MOSTLY = 0.8


@dataclass
class Table:
    """Unparsed cells of a table by column, with each row's source file."""

    columns: dict[str, list[Any]]
    files: list[tuple[str, int]] = field(default_factory=list)  # (file name, number of rows)
    first: int = 2  # row number of a file's first data row; row 1 is the header

    def place(self, row: int) -> str:
        """Format a table row's file name and row number for error messages.

        The header of a CSV file is row 1.
        """
        return locate(self.files, row, self.first)

    def column(self, name: str) -> list[Any]:
        """Return the cells of a table column, looked up by name.

        Raises:
            MissingColumn: the table has no column of this name.
        """
        if name in self.columns:
            return self.columns[name]
        close = difflib.get_close_matches(name, self.columns, n=1)
        names = ", ".join(map(repr, list(self.columns)[:12]))
        hint = f"did you mean {close[0]!r}?" if close else f"it has {names}"
        raise MissingColumn(f"{self.files[0][0]} has no column {name!r}; {hint}")


def by_kind(
    table: Table,
    named: Mapping[str, Sequence[str] | None],
    more_numbers: Sequence[str],
    reserved: set[str],
) -> dict[str, list[str]]:
    """Choose which columns of a table are numeric and which are categorical.

    Returns the column names by kind, `numbers` and `categories`: the named ones or, if none are
    named, all but the reserved, classified by their cells.
    """
    kinds = {kind: list(names or ()) for kind, names in named.items()}
    if all(names is None for names in named.values()):
        free = [name for name in table.columns if name not in reserved]
        kinds["numbers"] = [name for name in free if _mostly_numbers(table.columns[name])]
        dates = [
            name
            for name in free
            if name not in kinds["numbers"] and _mostly(table.columns[name], _is_date)
        ]
        kinds["categories"] = [name for name in free if name not in [*kinds["numbers"], *dates]]
        kinds["numbers"] += date_columns(dates)
    kinds["numbers"] += more_numbers
    return kinds


def date_columns(names: Sequence[str]) -> list[str]:
    """Return the names of the columns that dates become.

    >>> date_columns(["signup"])
    ['signup days since 1970', 'signup weekday', 'signup month']
    """
    return [f"{name} {part}" for name in names for part in DATE_PARTS]


def _date_part(table: Table, name: str) -> tuple[str, str] | None:
    """Split the name of a date's column into column and part."""
    for part in DATE_PARTS:
        column = name.removesuffix(f" {part}")
        if column != name and column in table.columns and name not in table.columns:
            return column, part
    return None


def inputs(
    table: Table,
    kinds: Mapping[str, Sequence[str]],
    booleans: Sequence[str],
    quantities: Mapping[str, Units],
    text_columns: Sequence[str],
    optional: Sequence[str],
) -> dict[str, Array]:
    """Parse table columns into arrays: `numbers`, `categories`, and one per text column.

    Raises:
        InvalidValue: a cell is missing or cannot be parsed.
    """
    arrays: dict[str, Array] = {}
    numbers, categories = kinds.get("numbers", ()), kinds.get("categories", ())
    if numbers:
        parsed = [_numbers(table, name, booleans, quantities, optional) for name in numbers]
        arrays["numbers"] = np.column_stack(parsed).astype(np.float32)
    if categories:
        columns = [texts(table, name, name in optional) for name in categories]
        arrays["categories"] = np.column_stack(columns)
    return arrays | {name: texts(table, name, name in optional) for name in text_columns}


def _numbers(
    table: Table,
    name: str,
    booleans: Sequence[str],
    quantities: Mapping[str, Units],
    optional: Sequence[str],
) -> NDArray[np.float64]:
    """Parse a column of numbers, booleans, quantities, or date parts."""
    date = _date_part(table, name)
    if date is None:
        return _parsed(table, name, _parser(name, booleans, quantities), name in optional)
    column, part = date
    return _parsed(table, column, lambda cell: DATE_PARTS[part](_date(cell)), column in optional)


def values(table: Table, names: Sequence[str]) -> NDArray[np.float32]:
    """Parse numeric table columns into float32 (n, columns); refuse empty cells."""
    columns = [_parsed(table, name, _number, False) for name in names]
    return np.column_stack(columns).astype(np.float32)


def flags(table: Table, names: Sequence[str]) -> NDArray[np.int64]:
    """Parse columns of yes and no into 1 and 0 (n, columns)."""
    return np.column_stack([_parsed(table, name, _boolean, False) for name in names]).astype(
        np.int64
    )


def texts(table: Table, name: str, optional: bool) -> Array:
    """Return a table column's cells as strings, missing ones as "".

    The result is an object array (n,).

    Raises:
        InvalidValue: a cell is missing, and the column is not `optional`.
    """
    cells = table.column(name)
    strings = np.empty(len(cells), object)
    for row, cell in enumerate(cells):
        gap = cell.strip() == "" if isinstance(cell, str) else _missing(cell)
        if gap and not optional:
            raise _gap(table, row, name)
        strings[row] = "" if gap else str(cell)
    return strings


def times(table: Table, name: str) -> Array:
    """Parse a table column of numbers or ISO 8601 dates.

    The result (n,) holds floats or datetime64.

    Raises:
        InvalidValue: a cell is missing, or neither a number nor such a date.
    """
    cells = table.column(name)
    if _mostly_numbers(cells):
        return _parsed(table, name, _number, False)
    moments = np.empty(len(cells), "datetime64[us]")
    for row, cell in enumerate(cells):
        if _missing(cell):
            raise _gap(table, row, name)
        try:
            moments[row] = _date(cell)
        except ValueError as error:
            place = f"{table.place(row)}, column {name!r}"
            raise InvalidValue(f"{place}: {str(cell)[:60]!r} {error}") from None
    return moments


def _date(cell: Any) -> datetime:
    """Parse an ISO 8601 date, in UTC."""
    try:
        moment = datetime.fromisoformat(str(cell).strip())
    except ValueError:
        raise ValueError("is no date like 2026-01-31 or 2026-01-31T12:00") from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _is_date(cell: Any) -> bool:
    try:
        _date(cell)
    except ValueError:
        return False
    return True


def class_numbers(
    table: Table, name: str, labels: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Encode the labels in a table column as class numbers.

    Returns the numbers (n,) and the names of all classes. Without `labels`, the classes are sorted:
    numbers by size, then words.

    Raises:
        UnknownLabel: a cell is none of the labels.
    """
    cells = [cell.strip() for cell in texts(table, name, False)]
    labels = labels or tuple(sorted(set(cells), key=_natural))
    number_of = {label: number for number, label in enumerate(labels)}
    for row, cell in enumerate(cells):
        if cell not in number_of:
            raise unknown_label(cell, labels, f"{table.place(row)}, column {name!r}")
    return np.array([number_of[cell] for cell in cells], np.int64), labels


def _mostly_numbers(cells: Sequence[Any]) -> bool:
    return _mostly(cells, _is_number)


def _mostly(cells: Sequence[Any], is_kind: Callable[[Any], bool]) -> bool:
    present = [cell for cell in cells if not _missing(cell)]
    return sum(map(is_kind, present)) > MOSTLY * len(present)


def _is_number(cell: Any) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _parsed(
    table: Table, name: str, parse: Callable[[Any], float], optional: bool
) -> NDArray[np.float64]:
    """Parse a table column into floats (n,), missing cells as NaN."""
    cells = table.column(name)
    numbers = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if _missing(cell):
            if not optional:
                raise _gap(table, row, name)
            continue
        try:
            numbers[row] = parse(cell)
        except ValueError as error:
            place = f"{table.place(row)}, column {name!r}"
            raise InvalidValue(f"{place}: {str(cell)[:60]!r} {error}") from None
    return numbers


def _natural(label: str) -> tuple[float, str]:
    """Return a label's sort key: numbers by value, before words."""
    try:
        return float(label), label
    except ValueError:
        return math.inf, label


def _gap(table: Table, row: int, name: str) -> InvalidValue:
    advice = "fill it, or name the column in optional="
    return InvalidValue(f"{table.place(row)}: column {name!r} is empty; {advice}")


def _parser(
    name: str, booleans: Sequence[str], quantities: Mapping[str, Units]
) -> Callable[[Any], float]:
    if name in booleans:
        return _boolean
    if name in quantities:
        return lambda cell: _quantity(cell, quantities[name])
    return _number


def _number(cell: Any) -> float:
    if isinstance(cell, str) and "_" in cell:  # float() reads 1_000 as 1000
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
    """Convert a text like "2500 g" to a number in base units.

    The base unit has the factor 1.

    >>> _quantity("2500 g", {"kg": 1, "g": 0.001}), _quantity("3kg", {"kg": 1, "g": 0.001})
    (2.5, 3.0)
    """
    match = QUANTITY.fullmatch(str(cell))
    if match is None:
        raise ValueError("is no quantity")
    if match[2] not in units:
        names = ", ".join(unit or "none" for unit in units)
        raise ValueError(f"has the unit {match[2] or 'none'}; known are {names}")
    return float(match[1]) * units[match[2]]
