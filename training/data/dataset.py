"""Data sets and their split into train, validation and test part.

A split by group keeps all rows of a group, such as a speaker, in one part; a split by time tests on
the latest rows. Identical rows stay in one part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import duplicates, lazy
from training.errors import InvalidData, InvalidValue, WrongShape

PARTS = ("train", "validation", "test")
SPLIT_SEED = 20  # fixed: splitting by training seed would leak test rows into earlier models
BEST_POSSIBLE = "best possible"  # reference of generators that know their noise; no baseline
ADVICE = "fill it, or leave the row out"


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of a data set: inputs, target, groups and reference predictions.

    Inputs, by tensor name, are (n, ...) float32, int64, or object arrays of str; the target is (n,
    ...). Large ones stay on disk (lazy.py). Rows of one group (one speaker, user, module) stay in
    one part. References are predictions that the source of the data makes without a model, such as
    a naive forecast or the best possible one.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    groups: NDArray[Any] | None = None  # (n,)
    references: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    times: NDArray[Any] | None = None  # (n,) numbers or datetime64, for a split by time
    weights: NDArray[Any] | None = None  # (n,) factors of the rows' losses in training [1]

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> Examples:
        """Select examples by row numbers, keeping the order of the numbers."""
        return Examples(
            {name: lazy.select(values, rows) for name, values in self.inputs.items()},
            lazy.select(self.target, rows),
            None if self.groups is None else self.groups[rows],
            {name: values[rows] for name, values in self.references.items()},
            None if self.times is None else self.times[rows],
            None if self.weights is None else self.weights[rows],
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """Data set split into train, validation and test examples, with its provenance.

    `test` is used once, after training.
    """

    train: Examples
    validation: Examples
    test: Examples
    source: str  # "sklearn:digits", "synthetic:speech-formant@1?seed=7", "file:churn.csv"
    sha256: str  # digest of the raw values, before any scaling
    # {"seed": 20, "by": "row", "time" or the kind of group, "train": rows, "validation": …,
    # "test": …, and where there are such: "copies", "identical_rows", "near_rows", "test_from"}
    split: Mapping[str, Any]
    labels: tuple[str, ...] = ()  # class names, if the source has them
    # Names of a table's columns, by input.
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # lines for the user about how the data are read


def digest(*arrays: NDArray[Any]) -> str:
    """Compute a SHA-256 over the shapes and values of arrays.

    Floats are rounded to 4 decimals, since machines differ in the last bits. Texts are hashed as
    UTF-8.
    """
    sha256 = hashlib.sha256()
    for values in arrays:
        sha256.update(f"{values.shape};".encode())
        for part in lazy.chunks(values) if values.ndim else [...]:
            sha256.update(_canonical_bytes(values[part]))
    return sha256.hexdigest()


def split(
    examples: Examples,
    *,
    source: str,
    sha256: str,
    by: str = "row",
    labels: Sequence[str] = (),
    columns: Mapping[str, Sequence[str]] | None = None,
    stratify: bool | None = None,
    validation: float | Examples = 0.1,
    test: float | Examples = 0.2,
    gaps: bool = False,
) -> Dataset:
    """Split examples into three parts, by row, group or time.

    `by` is "row", or the kind of group (`examples.groups`) that must stay in one part. Each part
    gets the same share of every class, as far as groups allow; `stratify` overrides this default
    for class numbers. With "time", the latest rows (`examples.times`) are the test part, and rows
    of one time stay in one part. `validation` and `test` are shares, or parts that the user has set
    apart.

    By row, copies of a row stay in one part. `Dataset.split` has the numbers of copies, and of
    validation and test rows that are, exactly or nearly, also training rows.

    Values get the dtypes of tensors: float64 becomes float32, whole targets become int64. Inputs
    may hold NaN only with `gaps`.

    Raises:
        InvalidData: inputs and target differ in length or hold unusable values; there are too few
            rows, groups, or rows of a class; a group is in two parts that the user set apart.
    """
    names = columns or {}
    examples = _checked(examples, source, gaps, names)
    separate = {
        name: _checked(part, f"{source}, {name} part", gaps, names)
        for name, part in zip(PARTS[1:], (validation, test), strict=True)
        if isinstance(part, Examples)
    }
    shares = [0.0 if isinstance(part, Examples) else part for part in (validation, test)]
    classes = _strata(examples.target, stratify)
    keys = duplicates.row_keys(examples.inputs)
    can_repeat = by == "row" and any(shares)
    copies = duplicates.copies(examples.inputs, keys) if can_repeat else None
    if by == "row":
        rows, copies = _split_distinct_rows(copies, classes, shares, labels, source)
    elif by == "time":
        rows = _split_times(examples.times, shares, source)
    else:
        rows = _split_groups(classes, examples.groups, shares, by, source)
    parts = [
        separate[name] if name in separate else examples.take(numbers)
        for name, numbers in zip(PARTS, rows, strict=True)
    ]
    train_part, validation_part, test_part = parts
    if by not in ("row", "time"):
        _check_groups(parts, by, source)
    record: dict[str, Any] = {"seed": SPLIT_SEED, "by": by}
    record |= {name: len(part) for name, part in zip(PARTS, parts, strict=True)}
    if copies is not None:
        record["copies"] = len(copies) - int(copies.max()) - 1
    if by == "time":
        record |= _first_times(parts)
    trained, *later = (
        duplicates.row_keys(separate[name].inputs) if name in separate else keys.take(numbers)
        for name, numbers in zip(PARTS, rows, strict=True)
    )
    record |= duplicates.leaks(train_part.inputs, trained, later)
    return Dataset(
        train_part,
        validation_part,
        test_part,
        source=source,
        sha256=sha256,
        split=record,
        labels=tuple(labels),
        columns={name: tuple(values) for name, values in names.items()},
    )


def _canonical_bytes(values: NDArray[Any]) -> bytes:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        whole = np.rint(np.where(finite, values, 0).astype(np.float64) * 10_000).astype("<i8")
        return np.where(finite, whole, -(2**63)).astype("<i8").tobytes()
    if values.dtype.kind in "iub":
        return values.astype("<i8").tobytes()
    texts = (str(text).encode("utf-8", "surrogatepass") for text in values.ravel())
    return b"".join(text + b"\0" for text in texts)


def _checked(
    examples: Examples, source: str, gaps: bool, columns: Mapping[str, Sequence[str]]
) -> Examples:
    """Check the lengths and values of examples, and convert to tensor dtypes."""
    inputs = {name: _tensor_dtype(values) for name, values in examples.inputs.items()}
    target = examples.target if lazy.is_lazy(examples.target) else np.asarray(examples.target)
    if target.dtype.kind not in "fiub":
        raise InvalidValue(
            f"{source}: the target is no number; "
            "give class numbers, and names of the classes as labels"
        )
    if not lazy.is_lazy(target):
        target = target.astype(np.float32 if target.dtype.kind == "f" else np.int64, copy=False)
    more = {"groups": examples.groups, "times": examples.times, "weights": examples.weights}
    arrays = inputs | {name: values for name, values in more.items() if values is not None}
    for name, values in arrays.items():
        rows = len(values) if values.ndim else 0
        if not values.ndim or rows != len(target):
            counts = f"{name!r} has {rows} rows, and the target has {len(target)}"
            raise WrongShape(f"{source}: {counts}")
    for name, values in inputs.items():
        _check_values(name, values, source, gaps, columns.get(name))
    _check_values("target", target, source, False, None)
    _check_weights(examples.weights, source)
    return replace(examples, inputs=inputs, target=target)


def _check_weights(weights: NDArray[Any] | None, source: str) -> None:
    if weights is None:
        return
    if weights.ndim != 1 or weights.dtype.kind not in "fiub":
        raise WrongShape(f"{source}: weights are one number a row")
    _check_values("weights", weights.astype(np.float64), source, False, None)
    if (weights < 0).any() or not weights.any():
        raise InvalidValue(f"{source}: weights are 0 or more, and some are above 0")


def _tensor_dtype(values: NDArray[Any]) -> NDArray[Any]:
    if lazy.is_lazy(values):
        return values  # its source has converted it
    values = np.asarray(values)
    if values.dtype.kind == "U":
        return values.astype(object)
    if values.dtype.kind == "b" or values.dtype == np.float64:
        return values.astype(np.float32)
    return values


def _check_values(
    name: str, values: NDArray[Any], source: str, gaps: bool, columns: Sequence[str] | None
) -> None:
    if values.dtype.kind != "f" or lazy.is_bounded(values):
        return
    unusable = np.isinf if gaps else lambda part: ~np.isfinite(part)
    for part in lazy.chunks(values):
        wrong = unusable(values[part])
        if wrong.any():
            break
    else:
        return
    row, *index = (int(number) for number in np.argwhere(wrong)[0])
    row += part.start
    column = ""
    if columns is not None and index:
        column = f", column {columns[index[0]]!r}"
    elif len(index) == 1:
        column = f", column {index[0] + 1}"
    value = values[row][*index]
    raise InvalidValue(f"{source}, row {row + 1}{column}: {name!r} holds {value}; {ADVICE}")


def _strata(target: NDArray[Any], stratify: bool | None) -> NDArray[Any]:
    """Return each row's class for stratified splitting, or zeros for unstratified."""
    if stratify is None:
        stratify = target.ndim == 1 and target.dtype.kind in "iub"
    return target if stratify else np.zeros(len(target), np.int64)


def _split_rows(
    classes: NDArray[Any], shares: Sequence[float], labels: Sequence[str], source: str
) -> list[NDArray[np.int64]]:
    """Split row numbers into train, validation and test, stratified by class."""
    validation, test = (round(len(classes) * share) for share in shares)
    smallest = min([len(classes), *(round(len(classes) * share) for share in shares if share > 0)])
    parts = 1 + sum(share > 0 for share in shares)
    _check_class_counts(classes, smallest, parts, labels, source)
    rest, test_rows = _cut(np.arange(len(classes)), test, classes)
    train_rows, validation_rows = _cut(rest, validation, classes)
    return [train_rows, validation_rows, test_rows]


def _split_distinct_rows(
    copies: NDArray[np.int64] | None,
    classes: NDArray[Any],
    shares: Sequence[float],
    labels: Sequence[str],
    source: str,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64] | None]:
    """Split row numbers, copies together where enough rows differ.

    Returns the parts, and `copies` unless they were split as other rows.
    """
    if copies is not None:
        try:
            return _split_copies(copies, classes, shares, labels, source), copies
        except InvalidData:  # too few different rows; `duplicates.leaks` counts what they cause
            copies = None
    return _split_rows(classes, shares, labels, source), copies


def _split_copies(
    copies: NDArray[np.int64],
    classes: NDArray[Any],
    shares: Sequence[float],
    labels: Sequence[str],
    source: str,
) -> list[NDArray[np.int64]]:
    """Split row numbers, keeping copies of a row together.

    `copies` holds each row's number among the distinct rows.
    """
    _, first = np.unique(copies, return_index=True)
    return [
        np.flatnonzero(np.isin(copies, numbers))
        for numbers in _split_rows(classes[first], shares, labels, source)
    ]


def _split_times(
    times: NDArray[Any] | None, shares: Sequence[float], source: str
) -> list[NDArray[np.int64]]:
    """Split row numbers at two times, the latest into the test part."""
    if times is None:
        raise InvalidData(f"{source}: a split by time needs the time of each row")
    order, rows, (validation, test) = np.argsort(times, kind="stable"), len(times), shares
    starts = np.flatnonzero(np.append(True, times[order][1:] != times[order][:-1]))
    parts = 1 + sum(share > 0 for share in shares)
    if len(starts) < parts:
        raise InvalidData(f"{source}: {len(starts)} times are too few for {parts} parts")
    second = first = len(starts)  # index in `starts` of the first time of test and validation part
    if test:
        second = first = _nearest(starts, rows * (1 - test), parts - 1, len(starts))
    if validation:
        first = _nearest(starts, rows * (1 - test - validation), 1, second)
    bounds = [*starts.tolist(), rows]
    return np.split(order, [bounds[first], bounds[second]])


def _nearest(starts: NDArray[np.int64], goal: float, low: int, high: int) -> int:
    """Return the index of the start nearest to a row number.

    The index is at least `low` and below `high`.
    """
    return low + int(np.abs(starts[low:high] - goal).argmin())


def _first_times(parts: Sequence[Examples]) -> dict[str, str]:
    """Return the first times of validation and test part."""
    return {
        f"{name}_from": str(part.times.min())
        for name, part in zip(PARTS[1:], parts[1:], strict=True)
        if part.times is not None and len(part)
    }


def _check_class_counts(
    classes: NDArray[Any], smallest: int, parts: int, labels: Sequence[str], source: str
) -> None:
    """Raise InvalidData if rows of a class are too few to split.

    Every part needs a row of each class. `smallest` is the number of rows of the smallest part.
    """
    values, counts = np.unique(classes, return_counts=True)
    if smallest < max(len(values), 1):
        each = f" with {len(values)} classes in each" if len(values) > 1 else ""
        raise InvalidData(f"{source}: {len(classes)} rows are too few for {parts} parts{each}")
    if counts.min() < parts:
        rare = values[counts.argmin()]
        name = labels[rare] if len(labels) > rare else rare
        has = f"{counts.min()} row{'s' if counts.min() > 1 else ''}"
        raise InvalidData(
            f"{source}: class {str(name)!r} has {has}; each needs {parts}, one for every part"
        )


def _cut(rows: NDArray[np.int64], size: int, classes: NDArray[Any]) -> Any:
    """Split row numbers into the rest and a stratified sample of `size`."""
    from sklearn.model_selection import train_test_split

    if not size:
        return rows, rows[:0]
    return train_test_split(rows, test_size=size, stratify=classes[rows], random_state=SPLIT_SEED)


def _split_groups(
    classes: NDArray[Any],
    groups: NDArray[Any] | None,
    fractions: Sequence[float],
    by: str,
    source: str,
) -> list[NDArray[np.int64]]:
    """Split row numbers into train, validation and test, keeping groups whole.

    Largest first, each group goes to the part whose class counts it brings closest to their goal.
    """
    if groups is None:
        raise InvalidData(f"{source}: a split by {by} needs the group of each row")
    shares = np.array([1 - sum(fractions), *fractions])
    names, group_of_row = np.unique(groups, return_inverse=True)
    if len(names) < (shares > 0).sum():
        raise InvalidData(
            f"{source}: {len(names)} groups ({by}) are too few for {(shares > 0).sum()} parts"
        )
    _, class_of_row = np.unique(classes, return_inverse=True)
    counts = np.zeros((len(names), class_of_row.max() + 1))
    np.add.at(counts, (group_of_row, class_of_row), 1)
    part_of_group = _assign(counts, shares)
    return [np.flatnonzero(part_of_group[group_of_row] == part) for part in range(3)]


def _assign(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign groups to data parts, bringing class counts close to their goals.

    `counts` are class counts (groups, classes), `shares` the goal of each part. The result is the
    part number of each group (groups,).
    """
    goal = np.outer(shares, counts.sum(axis=0))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    have, part_of_group = np.zeros_like(goal), np.zeros(len(counts), np.int64)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        growth = (have + counts[group] - goal) ** 2 - (have - goal) ** 2
        cost = (growth / np.maximum(goal, 1e-9)).sum(axis=1)
        cost[shares == 0] = np.inf
        empty = (have.sum(axis=1) == 0) & (shares > 0)
        if left <= empty.sum():
            cost[~empty] = np.inf  # the last groups fill the parts that are still empty
        part_of_group[group] = cost.argmin()
        have[part_of_group[group]] += counts[group]
    return part_of_group


def _check_groups(parts: Sequence[Examples], by: str, source: str) -> None:
    first: dict[Any, str] = {}
    for name, part in zip(PARTS, parts, strict=True):
        if part.groups is None:
            raise InvalidData(
                f"{source}: a split by {by} needs the group of each row of the {name} part"
            )
        for group in np.unique(part.groups).tolist():
            if group in first:
                parts_named = f"in the {first[group]} and in the {name} part"
                raise InvalidData(f"{source}: {by} {str(group)!r} is {parts_named}")
            first[group] = name
