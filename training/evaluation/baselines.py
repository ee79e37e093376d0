"""What needs no model: the majority, the mean, the most popular, counted bytes, shared words. Outputs for test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset, Examples

Array = NDArray[Any]
BEST_POSSIBLE = (
    "best possible"  # no baseline: what a model cannot beat, where a generator knows its noise
)
FEW = 50  # different values: a category, not a text


def outputs(task: str, data: Dataset) -> dict[str, Array]:
    """By baseline's name, what it says for each test row, as `evaluate.metrics` takes it.

    What the data set itself knows for its rows (`Examples.known`: last value, best possible, …) comes after the task's.
    """
    found: dict[str, Array] = {
        "classification": _classification,
        "regression": _regression,
        "ranking": _ranking,
        "generation": _generation,
        "embedding": _embedding,
    }[task](data)
    return found | dict(data.test.known)


def _classification(data: Dataset) -> dict[str, Array]:
    """Shares of the classes; and Gaussians around the class means, equally wide (no network)."""
    target = data.train.target
    classes = max(
        len(data.labels),
        *(int(part.target.max()) + 1 for part in (data.train, data.validation, data.test)),
    )
    counts = np.bincount(target, minlength=classes)
    train, validation, test = features(data.train, data.validation, data.test)
    means = np.asarray((train.T @ np.eye(classes)[target]).T) / np.maximum(counts, 1)[:, None]

    def likelihood(rows: Any, width: float) -> Array:
        distance = (means**2).sum(axis=1)[None] - 2 * np.asarray(
            rows @ means.T
        )  # but for a term of the row's own
        distance[:, counts == 0] = np.inf
        score = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / width)
        shares: Array = score / score.sum(axis=1, keepdims=True)
        return shares

    def surprise(width: float) -> float:
        shares = likelihood(validation, width)[
            np.arange(len(data.validation)), data.validation.target
        ]
        return float(-np.log(np.maximum(shares, 1e-9)).mean())

    spread = float(((means[counts > 0] - means[counts > 0].mean(axis=0)) ** 2).sum(axis=1).mean())
    width = min(max(spread, 1e-9) * np.geomspace(0.1, 10, 9), key=surprise)
    return {
        "majority class": np.tile(counts / counts.sum(), (len(data.test), 1)),
        "nearest class mean": likelihood(test, width),
    }


def _regression(data: Dataset) -> dict[str, Array]:
    shape = (len(data.test), *data.train.target.shape[1:])
    return {
        "mean": np.broadcast_to(data.train.target.mean(axis=0), shape),
        "median": np.broadcast_to(np.median(data.train.target, axis=0), shape),
    }


def _ranking(data: Dataset) -> dict[str, Array]:
    """Every user the same items: those that most users of the training part took."""
    taken = np.maximum(data.train.target, 0).sum(axis=0).astype(np.float64)
    chance = np.random.default_rng(0).random((len(data.test), len(taken)))
    return {"popularity": np.broadcast_to(taken, (len(data.test), len(taken))), "random": chance}


def _generation(data: Dataset) -> dict[str, Array]:
    """What each byte costs in nats: by its own frequency, and by that after the byte before it."""
    (before,), target = data.train.inputs.values(), data.train.target
    (test_before,), test_target = data.test.inputs.values(), np.maximum(data.test.target, 0)
    known = target >= 0
    size = 1 + max(
        256 - 1, *(int(part.max()) for part in (before, target, test_before, test_target))
    )
    single = np.bincount(target[known], minlength=size) + 1.0
    single /= single.sum()
    pairs = np.bincount(before[known] * size + target[known], minlength=size * size).reshape(
        size, size
    )
    weight = 10.0  # of the single frequency, in counts
    double = (pairs + weight * single) / (pairs.sum(axis=1, keepdims=True) + weight)
    return {
        "byte frequencies": -np.log(single)[test_target],
        "byte pairs": -np.log(double)[test_before, test_target],
    }


def _embedding(data: Dataset) -> dict[str, Array]:
    """Similarities (n, n): chance, and words in common weighted by their rarity (TF-IDF)."""
    rows = len(data.test)
    found: dict[str, Array] = {"random": np.random.default_rng(0).random((rows, rows))}
    if len(data.test.inputs) == 2 and all(
        values.dtype.kind in "Oi" for values in data.test.inputs.values()
    ):
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True).fit(
            [text for values in data.train.inputs.values() for text in _written(values)]
        )
        one, other = (words.transform(_written(values)) for values in data.test.inputs.values())
        found["TF-IDF"] = np.asarray((one @ other.T).todense())
    return found


def _written(values: Array) -> list[str]:
    """Texts as such, or as rows of bytes padded by 0."""
    if values.dtype.kind == "i":
        return [bytes(row[row > 0].tolist()).decode(errors="replace") for row in values]
    return [str(text) for text in values.ravel()]


def features(train: Examples, *others: Examples) -> list[Any]:
    """Every input as columns of one sparse matrix (n, d) a part: texts as TF-IDF, categories one-hot, token numbers
    counted, tables standardised with their gaps filled by the mean, all else as it is."""
    from scipy import sparse

    columns = [
        _columns(values, [part.inputs[name] for part in others])
        for name, values in train.inputs.items()
    ]
    return [sparse.hstack(parts, format="csr") for parts in zip(*columns, strict=True)]


def _columns(train: Array, others: list[Array]) -> list[Any]:
    from scipy import sparse

    parts = [part.reshape(len(part), -1) for part in (train, *others)]
    if train.dtype.kind in "OUS":
        return _texts(parts)
    if train.dtype.kind in "iu" and train.ndim == 2:
        size = 1 + max(int(part.max(initial=0)) for part in parts)
        return [_counts(part, size) for part in parts]
    known = np.isfinite(parts[0])
    mean = np.where(known, parts[0], 0).sum(axis=0, dtype=np.float64) / np.maximum(
        known.sum(axis=0), 1
    )
    filled = [np.where(np.isfinite(part), part, mean) for part in parts]
    if train.ndim <= 2:  # a table
        spread = filled[0].std(axis=0)
        filled = [(part - mean) / np.where(spread > 0, spread, 1) for part in filled]
    return [sparse.csr_array(part) for part in filled]


def _counts(tokens: Array, size: int) -> Any:
    from scipy import sparse

    kept = tokens.ravel() >= 0
    rows = np.repeat(np.arange(len(tokens)), tokens.shape[1])[kept]
    return sparse.csr_array(
        (np.ones(len(rows)), (rows, tokens.ravel()[kept])), shape=(len(tokens), size)
    )


def _texts(parts: list[Array]) -> list[Any]:
    """A column of few different values is a category."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import OneHotEncoder

    parts = [part.astype(str) for part in parts]
    if max(len(np.unique(column)) for column in parts[0].T) <= FEW:
        encoder = OneHotEncoder(handle_unknown="ignore").fit(parts[0])
        return [encoder.transform(part) for part in parts]
    columns = []
    for number in range(parts[0].shape[1]):
        words = TfidfVectorizer(sublinear_tf=True, max_features=20_000).fit(parts[0][:, number])
        columns.append([words.transform(part[:, number]) for part in parts])
    return [sparse.hstack(column, format="csr") for column in zip(*columns, strict=True)]
