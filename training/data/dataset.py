"""Examples, and a data set of them in three parts that no row and no group shares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidData

SPLIT_SEED = 20  # fixed: a split that moves with the training seed would leak test rows into earlier models


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows: inputs by tensor name, each (n, ...), float32, int64, or object arrays of str; target (n, ...).

    `groups` (n,) says which rows belong together: one speaker, one user, one module. `known` holds what the source of
    the data says of each row without a model, by name: a naive forecast, the best possible one.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    groups: NDArray[Any] | None = None
    known: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int64] | Sequence[int] | slice) -> Examples:
        """These rows, in this order."""
        return Examples(
            {name: values[rows] for name, values in self.inputs.items()},
            self.target[rows],
            None if self.groups is None else self.groups[rows],
            {name: values[rows] for name, values in self.known.items()},
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set in three parts. `test` is touched once, after training."""

    train: Examples
    validation: Examples
    test: Examples
    source: str  # "sklearn:digits", "synthetic:speech-formant@1?seed=7", "file:churn.csv"
    sha256: str  # of the raw values, before any scaling
    split: Mapping[str, Any]  # {"seed": 20, "by": "row" or what a group is, "train": rows, "validation": …, "test": …}
    labels: tuple[str, ...] = ()  # class names, where the data itself knows them


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
            told.update(b"".join(str(text).encode("utf-8", "surrogatepass") + b"\0" for text in values.ravel()))
    return told.hexdigest()


def split(
    examples: Examples,
    *,
    source: str,
    sha256: str,
    by: str = "row",
    labels: Sequence[str] = (),
    stratify: bool | None = None,
    validation: float = 0.1,
    test: float = 0.2,
) -> Dataset:
    """Rows in three parts; `by` other than "row" says what a group is, and no group is in two parts.

    Class numbers have the same share in every part, as far as groups allow; `stratify` says otherwise.

    Raises:
        InvalidData: too few rows, groups, or rows of one class to have three parts.
    """
    if stratify is None:
        stratify = examples.target.ndim == 1 and examples.target.dtype.kind in "iub"
    classes = examples.target if stratify else np.zeros(len(examples), np.int64)
    if by == "row":
        parts = _rows(classes, validation, test, labels, source)
    elif examples.groups is None:
        raise InvalidData(f"{source}: a split by {by} needs the group of each row")
    else:
        parts = _groups(classes, examples.groups, validation, test, by, source)
    sizes = {name: len(rows) for name, rows in zip(("train", "validation", "test"), parts, strict=True)}
    train, tuning, held_out = (examples.take(rows) for rows in parts)
    return Dataset(
        train,
        tuning,
        held_out,
        source=source,
        sha256=sha256,
        split={"seed": SPLIT_SEED, "by": by, **sizes},
        labels=tuple(labels),
    )


def _rows(
    classes: NDArray[Any], validation: float, test: float, labels: Sequence[str], source: str
) -> list[NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    values, counts = np.unique(classes, return_counts=True)
    sizes = [round(len(classes) * share) for share in (validation, test)]
    if min(sizes) < len(values):
        raise InvalidData(
            f"{source}: {len(classes)} rows are too few for three parts with {len(values)} classes in each"
        )
    if counts.min() < 3:
        rare = values[counts.argmin()]
        name = labels[rare] if len(labels) > rare else rare
        raise InvalidData(f"{source}: class {str(name)!r} has {counts.min()} rows; each needs 3, one for every part")

    def parts(rows: NDArray[np.int64], size: int) -> Any:
        return train_test_split(rows, test_size=size, stratify=classes[rows], random_state=SPLIT_SEED)

    rest, held_out = parts(np.arange(len(classes)), sizes[1])
    train, tuning = parts(rest, sizes[0])
    return [train, tuning, held_out]


def _groups(
    classes: NDArray[Any], groups: NDArray[Any], validation: float, test: float, by: str, source: str
) -> list[NDArray[np.int64]]:
    """Largest group first, each to the part whose class counts it brings closest to what they should be."""
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < 3:
        raise InvalidData(f"{source}: {len(names)} groups ({by}) are too few for three parts")
    _, class_of = np.unique(classes, return_inverse=True)
    counts = np.zeros((len(names), class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    shares = np.array([1 - validation - test, validation, test])
    wanted = np.outer(shares, counts.sum(axis=0))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    have, part_of = np.zeros_like(wanted), np.zeros(len(names), np.int64)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        cost = (((have + counts[group] - wanted) ** 2 - (have - wanted) ** 2) / np.maximum(wanted, 1e-9)).sum(axis=1)
        empty = have.sum(axis=1) == 0
        if left <= empty.sum():
            cost[~empty] = np.inf  # no part goes without
        part_of[group] = cost.argmin()
        have[part_of[group]] += counts[group]
    return [np.flatnonzero(part_of[group_of] == part) for part in range(3)]
