"""Baselines that need no model: majority class, mean, popularity, byte counts, TF-IDF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset, Examples, lazy

Array = NDArray[Any]
Encoder = Callable[[Mapping[str, Array]], Any]  # inputs by name → matrix (n, d)
FEW = 50  # distinct values; a column with at most these is a category, not a text
WORDS = 20_000  # largest vocabulary of a text column's TF-IDF
# Weight of a byte's own frequency, in counted pairs, when smoothing pair frequencies.
PAIR_WEIGHT = 10.0
GAPLESS = 0.9  # share of rows whose targets continue those of the row before
TINY = 1e-9  # keeps a logarithm or a division finite


def outputs(task: str, data: Dataset) -> dict[str, Array]:
    """Compute each baseline's predictions for the test part, by baseline name.

    They are shaped as `metrics.compute` takes them. The data set's own reference predictions
    (`Examples.references`) follow those of the task.
    """
    baselines: dict[str, Array] = {
        "classification": _classification,
        "multilabel": _multilabel,
        "segmentation": _segmentation,
        "regression": _regression,
        "ranking": _ranking,
        "generation": _generation,
        "embedding": _embedding,
    }[task](data)
    return baselines | dict(data.test.references)


def _classification(data: Dataset) -> dict[str, Array]:
    """Predict class probabilities by class frequency, and by nearest class mean."""
    target, validated = data.train.target, data.validation.target
    largest = max(int(part.target.max()) for part in (data.train, data.validation, data.test))
    classes = max(len(data.labels), largest + 1)
    counts = np.bincount(target, minlength=classes)
    encode = encoder(data.train, data.validation, data.test)
    present = counts > 0
    one_hot = np.eye(classes)
    sums = sum(matrix.T @ one_hot[target[part]] for part, matrix in _encoded(data.train, encode))
    means = np.asarray(sums.T) / np.maximum(counts, 1)[:, None]
    distances = [_distances(part, encode, means) for part in (data.validation, data.test)]

    def log_loss(width: float) -> float:
        shares = _gaussian_shares(distances[0], present, width)
        likelihood = shares[np.arange(len(validated)), validated]
        return float(-np.log(np.maximum(likelihood, TINY)).mean())

    offsets = means[present] - means[present].mean(axis=0)
    spread = float((offsets**2).sum(axis=1).mean())
    width = min(max(spread, TINY) * np.geomspace(0.1, 10, 9), key=log_loss)
    return {
        "majority class": np.tile(counts / counts.sum(), (len(data.test), 1)),
        "nearest class mean": _gaussian_shares(distances[1], present, width),
    }


def _multilabel(data: Dataset) -> dict[str, Array]:
    """Predict each label by its frequency, and every label."""
    shape = data.test.target.shape
    return {
        "label frequency": np.broadcast_to(data.train.target.mean(axis=0), shape),
        "every label": np.ones(shape),
    }


def _segmentation(data: Dataset) -> dict[str, Array]:
    """Predict each pixel's class by class frequency, overall and at its place."""
    target = data.train.target
    targets = (part.target for part in (data.train, data.validation, data.test))
    classes = max(len(data.labels), *(int(lazy.largest(target)) + 1 for target in targets))
    counts = np.zeros((*target.shape[1:], classes), np.int64)
    for chunk in lazy.read_chunks(target):
        counts += np.stack([(chunk == number).sum(axis=0) for number in range(classes)], axis=-1)
    overall = counts.sum(axis=(0, 1)) / max(int(counts.sum()), 1)
    shape = (*data.test.target.shape, classes)
    baselines = {"majority class": np.broadcast_to(overall, shape)}
    if data.test.target.shape[1:] == counts.shape[:2]:
        smoothed = counts + overall
        by_place = smoothed / smoothed.sum(axis=-1, keepdims=True)
        baselines["class by place"] = np.broadcast_to(by_place, shape)
    return baselines


def _distances(part: Examples, encode: Encoder, means: Array) -> Array:
    """Compute the squared distances (n, classes) of rows to class means.

    The squared length of a row is the same for all classes, so it is left out.
    """
    products = [np.asarray(matrix @ means.T) for _, matrix in _encoded(part, encode)]
    distances: Array = (means**2).sum(axis=1)[None] - 2 * np.concatenate(products)
    return distances


def _gaussian_shares(distances: Array, present: Array, width: float) -> Array:
    """Compute class probabilities from equally wide Gaussians around each class mean.

    The result is (n, classes); classes that are not `present` in training get 0.
    """
    distance = np.where(present, distances, np.inf)
    score = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / width)
    shares: Array = score / score.sum(axis=1, keepdims=True)
    return shares


def _regression(data: Dataset) -> dict[str, Array]:
    shape = (len(data.test), *data.train.target.shape[1:])
    constant = {
        "mean": np.broadcast_to(data.train.target.mean(axis=0), shape),
        "median": np.broadcast_to(np.median(data.train.target, axis=0), shape),
    }
    last = _last_values(data)
    return constant if last is None else constant | {"last value": last}


def _last_values(data: Dataset) -> Array | None:
    """Forecast each test row by the last value before it.

    Returns None where the task is no forecast.

    The last value is that of the series in the inputs (n, steps, channels) or, in a table that was
    split by time, the target of the latest earlier row; if a row's targets are the next steps of
    one series, the step before its first.
    """
    windows = [name for name, values in data.train.inputs.items() if values.ndim == 3]
    if len(windows) == 1 and data.train.inputs[windows[0]].dtype.kind == "f":
        return _last_steps(data, windows[0])
    return _earlier_targets(data) if data.split.get("by") == "time" else None


def _last_steps(data: Dataset, name: str) -> Array:
    """Repeat the last step of the channel nearest to the targets."""
    train, test = data.train.inputs[name][:, -1], data.test.inputs[name][:, -1]
    target = data.train.target.reshape(len(train), -1).mean(axis=1)
    channel = int(np.square(train - target[:, None]).mean(axis=0).argmin())
    values = test[:, channel].reshape(-1, *[1] * (data.train.target.ndim - 1))
    return np.broadcast_to(values, (len(test), *data.train.target.shape[1:]))


def _earlier_targets(data: Dataset) -> Array | None:
    """Return the latest target before the time of each test row."""
    parts = (data.train, data.validation, data.test)
    if any(part.times is None for part in parts):
        return None
    times = np.concatenate([np.asarray(part.times) for part in parts])
    targets = np.concatenate([part.target for part in parts])
    order = np.argsort(times, kind="stable")
    before = np.searchsorted(times[order], np.asarray(data.test.times), side="left") - 1
    targets = targets[order]
    earlier: Array = targets[np.maximum(before, 0)]
    if step := _steps_between(targets):  # later columns were not known yet
        earlier = np.broadcast_to(earlier[:, step - 1 : step], earlier.shape)
    return earlier


def _steps_between(targets: Array) -> int:
    """Return the steps between targets of one row and the next.

    `targets` (n, k) are in order of time. The result is 0 where they are not windows of one series
    that overlap, apart from a few gaps.
    """
    if targets.ndim != 2:
        return 0
    for step in range(1, targets.shape[1]):
        if (targets[1:, :-step] == targets[:-1, step:]).all(axis=1).mean() >= GAPLESS:
            return step
    return 0


def _ranking(data: Dataset) -> dict[str, Array]:
    """Score items for each test user by popularity, and randomly.

    The popularity of an item is its number of training users.
    """
    popularity = np.maximum(data.train.target, 0).sum(axis=0).astype(np.float64)
    shape = (len(data.test), len(popularity))
    return {
        "popularity": np.broadcast_to(popularity, shape),
        "random": np.random.default_rng(0).random(shape),
    }


def _generation(data: Dataset) -> dict[str, Array]:
    """Compute each test byte's cost in nats from byte and byte-pair frequencies."""
    (before,), target = data.train.inputs.values(), data.train.target
    (test_before,), test_target = data.test.inputs.values(), np.maximum(data.test.target, 0)
    largest = max(int(part.max()) for part in (before, target, test_before, test_target))
    size = 1 + max(256 - 1, largest)
    pairs = np.zeros((size, size), np.int64)
    for part in lazy.chunks(before, target):
        first, second = before[part], target[part]
        real = second >= 0
        numbers = first[real] * size + second[real]
        pairs += np.bincount(numbers, minlength=size * size).reshape(size, size)
    single = pairs.sum(axis=0) + 1.0
    single /= single.sum()
    totals = pairs.sum(axis=1, keepdims=True)
    double = (pairs + PAIR_WEIGHT * single) / (totals + PAIR_WEIGHT)
    return {
        "byte frequencies": -np.log(single)[test_target],
        "byte pairs": -np.log(double)[test_before, test_target],
    }


def _embedding(data: Dataset) -> dict[str, Array]:
    """Compute similarities (n, n) of text pairs: random, and by TF-IDF."""
    rows = len(data.test)
    similarities: dict[str, Array] = {"random": np.random.default_rng(0).random((rows, rows))}
    sides = list(data.test.inputs.values())
    if len(sides) == 2 and all(values.dtype.kind in "Oi" for values in sides):
        from sklearn.feature_extraction.text import TfidfVectorizer

        corpus = [text for values in data.train.inputs.values() for text in _strings(values)]
        vectorizer = TfidfVectorizer(sublinear_tf=True).fit(corpus)
        left, right = (vectorizer.transform(_strings(values)) for values in sides)
        similarities["TF-IDF"] = np.asarray((left @ right.T).todense())
    return similarities


def _strings(values: Array) -> list[str]:
    """Convert an array of texts, or of zero-padded bytes, to strings."""
    if values.dtype.kind == "i":
        return [bytes(row[row > 0].tolist()).decode(errors="replace") for row in values]
    return [str(text) for text in values.ravel()]


def encoder(train: Examples, *parts: Examples) -> Encoder:
    """Return a function that encodes inputs as features (n, d).

    The matrix is sparse for texts. The encoding is fitted on `train`. Texts become TF-IDF,
    categories one-hot columns, token numbers counts, of which the other parts may hold larger ones.
    Tables are standardised, their gaps filled with the mean. Everything else is flattened.
    """
    from scipy import sparse

    columns = {
        name: _column_encoder(values, [part.inputs[name] for part in parts])
        for name, values in train.inputs.items()
    }

    def encode(inputs: Mapping[str, Array]) -> Any:
        encoded = [columns[name](values) for name, values in inputs.items()]
        if any(map(sparse.issparse, encoded)):
            return sparse.hstack(encoded, format="csr")
        return np.concatenate(encoded, axis=1)

    return encode


def _encoded(part: Examples, encode: Encoder) -> Iterator[tuple[slice, Any]]:
    """Yield chunks of a part's rows, and their features."""
    for rows in lazy.chunks(*part.inputs.values()):
        yield rows, encode({name: values[rows] for name, values in part.inputs.items()})


def _column_encoder(train: Array, rest: list[Array]) -> Callable[[Array], Any]:
    if train.dtype.kind in "OUS":
        return _text_encoder(_flat(train))
    if train.dtype.kind in "iu" and train.ndim == 2:
        size = 1 + max(int(part.max()) for part in (train, *rest) if len(part))
        return lambda tokens: _token_counts(tokens, max(size, 1))
    is_table = train.ndim <= 2
    if lazy.is_bounded(train) and not is_table:  # no gaps to fill
        return lambda values: _flat(values).astype(np.float64)
    mean, deviation = (each.reshape(-1) for each in lazy.moments(train))
    scale = np.where(deviation > 0, deviation, 1)

    def encode(values: Array) -> Array:
        rows = _flat(values)
        filled: Array = np.where(np.isfinite(rows), rows, mean)
        return (filled - mean) / scale if is_table else filled

    return encode


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _token_counts(tokens: Array, size: int) -> Any:
    from scipy import sparse

    real = tokens.ravel() >= 0
    rows = np.repeat(np.arange(len(tokens)), tokens.shape[1])[real]
    entries = np.ones(len(rows)), (rows, tokens.ravel()[real])
    return sparse.csr_array(entries, shape=(len(tokens), size))


def _text_encoder(train: Array) -> Callable[[Array], Any]:
    """Encode text columns one-hot if few values occur, else as TF-IDF."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import OneHotEncoder

    train = train.astype(str)
    if max(len(np.unique(column)) for column in train.T) <= FEW:
        encoder = OneHotEncoder(handle_unknown="ignore").fit(train)
        return lambda values: encoder.transform(_flat(values).astype(str))
    vectorizers = [
        TfidfVectorizer(sublinear_tf=True, max_features=WORDS).fit(column) for column in train.T
    ]

    def encode(values: Array) -> Any:
        columns = zip(vectorizers, _flat(values).astype(str).T, strict=True)
        return sparse.hstack([fitted.transform(texts) for fitted, texts in columns], format="csr")

    return encode
