"""Examples, and a data set of them in three parts that no row and no group shares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidData, InvalidValue, WrongShape

PARTS = ("train", "validation", "test")
BEST_POSSIBLE = "best possible"  # reference of the generators that know their noise: unbeatable, no baseline
SPLIT_SEED = (
    20  # fixed: a split that moves with the training seed would leak test rows into earlier models
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows: inputs by tensor name, each (n, ...), float32, int64, or object arrays of str; target (n, ...).

    `groups` (n,) says which rows belong together: one speaker, one user, one module. `references` holds what the source of
    the data says of each row without a model, by name: a naive forecast, the best possible one.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    groups: NDArray[Any] | None = None
    references: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> Examples:
        """These rows, in this order."""
        return Examples(
            {name: values[rows] for name, values in self.inputs.items()},
            self.target[rows],
            None if self.groups is None else self.groups[rows],
            {name: values[rows] for name, values in self.references.items()},
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set in three parts. `test` is touched once, after training."""

    train: Examples
    validation: Examples
    test: Examples
    source: str  # "sklearn:digits", "synthetic:speech-formant@1?seed=7", "file:churn.csv"
    sha256: str  # of the raw values, before any scaling
    split: Mapping[
        str, Any
    ]  # {"seed": 20, "by": "row" or what a group is, "train": rows, "validation": …, "test": …}
    labels: tuple[str, ...] = ()  # class names, where the data itself knows them
    columns: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # input → what its columns are, where it is a table


def digest(*arrays: NDArray[Any]) -> str:
    """sha256 of raw values: numbers to 4 decimals (machines differ in the last bits), texts as UTF-8, shapes."""
    told = hashlib.sha256()
    for values in arrays:
        told.update(f"{values.shape};".encode())
        if values.dtype.kind == "f":
            known = np.isfinite(values)
            whole = np.rint(np.where(known, values, 0).astype(np.float64) * 10_000).astype("<i8")
            told.update(np.where(known, whole, -(2**63)).astype("<i8").tobytes())
        elif values.dtype.kind in "iub":
            told.update(values.astype("<i8").tobytes())
        else:
            told.update(
                b"".join(
                    str(text).encode("utf-8", "surrogatepass") + b"\0" for text in values.ravel()
                )
            )
    return told.hexdigest()


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
    """Rows in three parts; `by` other than "row" says what a group is, and no group is in two parts.

    Numbers get the types of tensors: float64 becomes float32, whole targets int64. With `gaps`, inputs may hold NaN.

    Class numbers have the same share in every part, as far as groups allow; `stratify` says otherwise. Parts that the
    user made beforehand are given as they are, instead of their share.

    Raises:
        InvalidData: inputs and target differ in length, or hold what they may not; too few rows, groups, or rows of one
            class to have the parts; a group in two that were given.
    """
    examples = _checked(examples, source, gaps, columns or {})
    validation, test = (
        _checked(part, f"{source}, {name} part", gaps, columns or {})
        if isinstance(part, Examples)
        else part
        for name, part in zip(PARTS[1:], (validation, test), strict=True)
    )
    if stratify is None:
        stratify = examples.target.ndim == 1 and examples.target.dtype.kind in "iub"
    classes = examples.target if stratify else np.zeros(len(examples), np.int64)
    given = [part if isinstance(part, Examples) else None for part in (None, validation, test)]
    shares = [0.0 if isinstance(part, Examples) else part for part in (validation, test)]
    if by == "row":
        rows = _rows(classes, shares, labels, source)
    elif examples.groups is None:
        raise InvalidData(f"{source}: a split by {by} needs the group of each row")
    else:
        rows = _groups(classes, examples.groups, shares, by, source)
    parts = [
        examples.take(taken) if ready is None else ready
        for ready, taken in zip(given, rows, strict=True)
    ]
    if by != "row":
        _check_groups(parts, by, source)
    sizes = {name: len(part) for name, part in zip(PARTS, parts, strict=True)}
    train, tuning, held_out = parts
    return Dataset(
        train,
        tuning,
        held_out,
        source=source,
        sha256=sha256,
        split={"seed": SPLIT_SEED, "by": by, **sizes},
        labels=tuple(labels),
        columns={name: tuple(names) for name, names in (columns or {}).items()},
    )


def _checked(
    examples: Examples, source: str, gaps: bool, columns: Mapping[str, Sequence[str]]
) -> Examples:
    """`examples` with the types of tensors."""
    inputs = {name: _plain(np.asarray(values)) for name, values in examples.inputs.items()}
    target = np.asarray(examples.target)
    if target.dtype.kind not in "fiub":
        raise InvalidValue(
            f"{source}: the target is no number; give class numbers, and names of the classes as labels"
        )
    target = target.astype(np.float32 if target.dtype.kind == "f" else np.int64, copy=False)
    beside = inputs if examples.groups is None else {**inputs, "groups": examples.groups}
    for name, values in beside.items():
        if not values.ndim or len(values) != len(target):
            counts = f"{name!r} has {len(values) if values.ndim else 0} rows, and the target has {len(target)}"
            raise WrongShape(f"{source}: {counts}")
    for name, values in {**inputs, "target": target}.items():
        if values.dtype.kind != "f":
            continue
        wrong = np.isinf(values) if gaps and name != "target" else ~np.isfinite(values)
        if wrong.any():
            row, *others = (int(number) for number in np.argwhere(wrong)[0])
            at = f", column {columns[name][others[0]]!r}" if name in columns and others else ""
            at = at or (f", column {others[0] + 1}" if len(others) == 1 else "")
            advice = "fill it, or leave the row out"
            raise InvalidValue(
                f"{source}, row {row + 1}{at}: {name!r} holds {values[row][*others]}; {advice}"
            )
    return replace(examples, inputs=inputs, target=target)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "U":
        return values.astype(object)
    return (
        values.astype(np.float32)
        if values.dtype.kind == "b" or values.dtype == np.float64
        else values
    )


def _rows(
    classes: NDArray[Any], shares: Sequence[float], labels: Sequence[str], source: str
) -> list[NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    values, counts = np.unique(classes, return_counts=True)
    sizes = [round(len(classes) * share) for share in shares]
    wanted = 1 + sum(share > 0 for share in shares)
    if min(
        size for size, share in zip([len(classes), *sizes], [1, *shares], strict=True) if share
    ) < max(len(values), 1):
        what = f" with {len(values)} classes in each" if len(values) > 1 else ""
        raise InvalidData(f"{source}: {len(classes)} rows are too few for {wanted} parts{what}")
    if counts.min() < wanted:
        rare = values[counts.argmin()]
        name = labels[rare] if len(labels) > rare else rare
        has = f"{counts.min()} row{'s' if counts.min() > 1 else ''}"
        raise InvalidData(
            f"{source}: class {str(name)!r} has {has}; each needs {wanted}, one for every part"
        )

    def parts(rows: NDArray[np.int64], size: int) -> Any:
        if not size:
            return rows, rows[:0]
        return train_test_split(
            rows, test_size=size, stratify=classes[rows], random_state=SPLIT_SEED
        )

    rest, held_out = parts(np.arange(len(classes)), sizes[1])
    train, tuning = parts(rest, sizes[0])
    return [train, tuning, held_out]


def _groups(
    classes: NDArray[Any], groups: NDArray[Any], fractions: Sequence[float], by: str, source: str
) -> list[NDArray[np.int64]]:
    """Largest group first, each to the part whose class counts it brings closest to what they should be."""
    shares = np.array([1 - sum(fractions), *fractions])
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < (shares > 0).sum():
        raise InvalidData(
            f"{source}: {len(names)} groups ({by}) are too few for {(shares > 0).sum()} parts"
        )
    _, class_of = np.unique(classes, return_inverse=True)
    counts = np.zeros((len(names), class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    wanted = np.outer(shares, counts.sum(axis=0))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    have, part_of = np.zeros_like(wanted), np.zeros(len(names), np.int64)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        cost = (
            ((have + counts[group] - wanted) ** 2 - (have - wanted) ** 2) / np.maximum(wanted, 1e-9)
        ).sum(axis=1)
        cost[shares == 0] = np.inf
        empty = (have.sum(axis=1) == 0) & (shares > 0)
        if left <= empty.sum():
            cost[~empty] = np.inf  # no part goes without
        part_of[group] = cost.argmin()
        have[part_of[group]] += counts[group]
    return [np.flatnonzero(part_of[group_of] == part) for part in range(3)]


def _check_groups(parts: Sequence[Examples], by: str, source: str) -> None:
    first: dict[Any, str] = {}
    for name, part in zip(PARTS, parts, strict=True):
        if part.groups is None:
            raise InvalidData(
                f"{source}: a split by {by} needs the group of each row of the {name} part"
            )
        for group in np.unique(part.groups).tolist():
            if group in first:
                raise InvalidData(
                    f"{source}: {by} {str(group)!r} is in the {first[group]} and in the {name} part"
                )
            first[group] = name
