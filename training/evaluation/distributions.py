"""Histograms of inputs, outputs and classes, the reference for drift.

Each histogram has `edges` that cut the number line into len(edges) + 1 bins, open at both ends:
value v is in bin i where edges[i - 1] <= v < edges[i]. The edges are quantiles, so that bins hold
similar counts, as the population stability index wants them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from training.data import lazy
from training.manifest import Distributions, Feature, Features

Array = NDArray[Any]

BINS = 10  # deciles, as for the population stability index
DISTINCT = 20  # numbers with at most so many different values get a bin for each
FEATURES = 128  # columns with a histogram of their own; wider inputs get one for all values
CATEGORIES = 50  # different texts of a column that are counted by name; more are free text
CLASSES = 256  # classes with a prior, the most frequent ones
BYTES = 64 * 1024  # JSON of the histograms of all inputs, or of all outputs
VALUES = 1_000_000  # numbers whose quantiles are computed; of more, every k-th row is taken
DIGITS = 6  # significant digits of an edge, where bins keep their rows
NAME_LENGTH = 80  # characters of a column's, category's or class's name


def describe(
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    parts: tuple[str, str],
    columns: Mapping[str, Sequence[str]] | None = None,
    labels: Sequence[str] = (),
    target: Array | None = None,
    one_label: bool = True,
) -> Distributions:
    """Compute the distributions of inputs and outputs for a manifest.

    Inputs are (n, ...), outputs (m, ...). `parts` names the rows of both. `columns` are the column
    names of inputs (n, columns). Outputs (m, labels) get a histogram of each label's scores, one of
    the largest score, and counts of the predicted labels. `target` (n,) are class numbers, from
    which the shares of classes are computed, or 0 and 1 for each label (n, labels). Without
    `one_label`, a row may have several, and there is no largest score.
    """
    named = columns or {}
    samples = {name: _sampled(values) for name, values in inputs.items()}
    answered = {name: _sampled(values) for name, values in outputs.items()}
    decisions = [
        feature
        for name, values in answered.items()
        if one_label and labels and values.shape[1:] == (len(labels),)
        for feature in _decisions(name, values, labels)
    ]
    answers = [*decisions, *_features(answered, dict.fromkeys(answered, labels))]
    described: Distributions = {
        "inputs": _within_limit(parts[0], _rows(inputs), _features(samples, named)),
        "outputs": _within_limit(parts[1], _rows(outputs), answers),
    }
    if target is not None and labels:
        described["priors"] = priors(target, labels)
    return described


def priors(target: Array, labels: Sequence[str]) -> dict[str, float]:
    """Compute the share of rows of the CLASSES most frequent classes.

    >>> priors(np.array([0, 0, 0, 1]), ["no", "yes"])
    {'no': 0.75, 'yes': 0.25}
    """
    counts = np.zeros(len(labels), np.int64)
    rows = 0
    for part in lazy.read_chunks(target):
        if target.ndim == 2 and target.shape[1] == len(labels):
            counts, rows = counts + (part > 0).sum(axis=0), rows + len(part)
        else:
            numbers = part[part >= 0]
            counts = counts + np.bincount(numbers, minlength=len(labels))
            rows += numbers.size
    frequent = np.sort(np.argsort(-counts, kind="stable")[:CLASSES])
    shares = (counts / max(rows, 1)).round(6)
    return {str(labels[number])[:NAME_LENGTH]: float(shares[number]) for number in frequent}


def spread(rows: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` row numbers, evenly spaced.

    >>> spread(10, 4)
    array([0, 2, 5, 7])
    """
    count = min(rows, most)
    return np.arange(count, dtype=np.int64) * rows // max(count, 1)


def _sampled(values: Array) -> Array:
    """Return every k-th row, so that at most VALUES numbers are left."""
    per_row = max(values[:1].size, 1)
    return values[:: max(1, -(-len(values) * per_row // VALUES))]


def _rows(arrays: Mapping[str, Array]) -> int:
    return max((len(values) for values in arrays.values()), default=0)


def _features(
    arrays: Mapping[str, Array], columns: Mapping[str, Sequence[str]]
) -> Iterator[Feature]:
    for name, values in arrays.items():
        if values.size:
            yield from _of_array(name, values, columns.get(name, ()))


def _within_limit(part: str, rows: int, features: Iterable[Feature]) -> Features:
    """Return the first histograms, up to BYTES, and count the rest."""
    kept: list[Feature] = []
    size = left_out = 0
    for feature in features:
        size += len(json.dumps(feature))
        if size > BYTES:
            left_out += 1
        else:
            kept.append(feature)
    described: Features = {"part": part, "rows": rows, "features": kept}
    if left_out:
        described["left_out"] = left_out
    return described


def _of_array(name: str, values: Array, columns: Sequence[str]) -> Iterator[Feature]:
    """Yield an array's histograms: by column, or of values and means."""
    is_text = values.dtype.kind in "OUS"
    width = values.shape[1] if values.ndim == 2 else 1
    if values.ndim <= 2 and width <= FEATURES:
        table = values.reshape(len(values), width)
        names = columns if len(columns) == width else [str(number) for number in range(width)]
        for number in range(width):
            column = table[:, number]
            counted = _texts(column) if is_text else _numbers(column, "value")
            yield _feature(name, counted, names[number] if values.ndim == 2 else None)
        return
    rows = values.reshape(len(values), -1)
    if is_text:
        yield _feature(name, _texts(_sampled(rows.ravel())))
        return
    # One row may hold more than VALUES numbers, as the logits of a language model do.
    yield _feature(name, _numbers(_sampled(rows.ravel()), "value"))
    yield _feature(name, _numbers(rows.mean(axis=1, dtype=np.float64), "mean"))


def _feature(name: str, counted: Mapping[str, Any], column: object = None) -> Feature:
    named = {} if column is None else {"feature": str(column)[:NAME_LENGTH]}
    return cast(Feature, {"name": name} | named | dict(counted))


def _numbers(values: Array, of: str) -> dict[str, Any]:
    """Count numbers (n,) between quantiles; NaN and infinities are missing."""
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    edges = _edges(finite)
    return {
        "of": of,
        "edges": edges,
        "counts": _counts(finite, edges).tolist(),
        "missing": len(numbers) - len(finite),
    }


def _edges(values: NDArray[np.float64]) -> list[float]:
    """Return ascending bin edges: quantiles, or midpoints of few values.

    They have as many digits as it takes for values to stay in their bins.

    >>> _edges(np.array([0.0, 1.0, 1.0])), _edges(np.array([2.0])), _edges(np.array([]))
    ([0.5], [], [])
    >>> _edges(np.array([1.7e9, 1.7e9 + 1]))  # Unix times, a second apart
    [1700000000.5]
    """
    if not len(values):
        return []
    distinct = np.unique(values)
    if len(distinct) <= DISTINCT:
        return _rounded((distinct[1:] + distinct[:-1]) / 2, values, movable=0)
    cuts = np.quantile(values, np.arange(1, BINS) / BINS)
    return _rounded(cuts, values, movable=len(values) // 100)


def _rounded(
    cuts: NDArray[np.float64], values: NDArray[np.float64], *, movable: int
) -> list[float]:
    """Round edges; no bin changes by more than `movable` values."""
    counts = _counts(values, cuts)
    for digits in range(DIGITS, 18):  # 17 digits are every float's own
        rounded = [float(f"{cut:.{digits}g}") for cut in cuts]
        if np.abs(_counts(values, rounded) - counts).max() <= movable:
            break
    return sorted(set(rounded))


def _counts(
    values: NDArray[np.float64], edges: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.int64]:
    bins = np.searchsorted(edges, values, side="right")
    return np.bincount(bins, minlength=len(edges) + 1)


def _texts(values: Array) -> dict[str, Any]:
    """Count categories (n,) by name, or the lengths of free texts."""
    texts = [str(value) for value in values.tolist()]
    present = [text for text in texts if text]
    lengths = np.array([len(text) for text in present], np.float64)
    is_short = lengths.max(initial=0) <= NAME_LENGTH
    counted = Counter(present) if is_short else Counter[str]()
    if not is_short or len(counted) > CATEGORIES:
        return _numbers(lengths, "length") | {"missing": len(texts) - len(present)}
    names = sorted(counted)
    return {
        "of": "category",
        "values": names,
        "counts": [counted[name] for name in names],
        "missing": len(texts) - len(present),
    }


def _decisions(name: str, scores: Array, labels: Sequence[str]) -> list[Feature]:
    """Return the histograms of largest scores and of predicted labels."""
    predicted = np.bincount(scores.argmax(axis=1), minlength=len(labels))
    frequent = np.sort(np.argsort(-predicted, kind="stable")[:CLASSES])
    decided = {
        "of": "label",
        "values": [str(labels[number])[:NAME_LENGTH] for number in frequent],
        "counts": predicted[frequent].tolist(),
        "missing": 0,
    }
    largest = _numbers(scores.max(axis=1), "largest")
    return [_feature(name, largest), _feature(name, decided)]
