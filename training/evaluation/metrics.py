"""Metrics by task: classification, segmentation, regression, ranking, generation, embedding.

Most are computed from sums of per-row statistics, so that resampling rows is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data import Examples
from training.errors import InvalidData

if TYPE_CHECKING:
    from training.recipe import Task

Metrics = dict[str, float]
Array = NDArray[Any]
Floats = NDArray[np.float64]

TOP = 10  # items of a ranking that count, the k of the metrics `..._at_10`
MOST_CLASSES = 100  # one-hot columns of more classes would fill the memory
TINY = 1e-15  # keeps a division by zero defined


@dataclass(frozen=True, slots=True)
class Primary:
    """Name and direction of a task's primary metric, which compares models."""

    metric: str
    higher_is_better: bool


PRIMARY: dict[Task, Primary] = {
    "classification": Primary("accuracy", True),
    "multilabel": Primary("macro_f1", True),
    "segmentation": Primary("mean_iou", True),
    "regression": Primary("rmse", False),
    "ranking": Primary("ndcg_at_10", True),
    "generation": Primary("bits_per_byte", False),
    "embedding": Primary("recall_at_1", True),
}
NAMES: dict[Task, tuple[str, ...]] = {  # in the order in which reports show them
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc"),
    "multilabel": ("macro_f1", "micro_f1", "exact_match", "log_loss", "mean_average_precision"),
    "segmentation": ("mean_iou", "pixel_accuracy", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
    "ranking": ("ndcg_at_10", "recall_at_10", "mrr_at_10"),
    "generation": ("bits_per_byte", "perplexity", "accuracy"),
    "embedding": ("recall_at_1", "recall_at_10", "mrr"),
}


def compute(task: Task, outputs: Array, examples: Examples, labels: Sequence[str] = ()) -> Metrics:
    """Compute a task's metrics by name, from model outputs and target.

    A metric that these examples leave undefined, such as ROC AUC with one class, is left out.

    `outputs` and `examples.target` by task:
        classification  probabilities (n, classes); class numbers (n,)
        multilabel      probabilities (n, labels); 0 or 1 (n, labels)
        segmentation    probabilities (n, height, width, classes); class numbers (n, height,
                        width), -1 for pixels that do not count
        regression      values (n, ...); values (n, ...)
        ranking         scores (n, items), or item numbers best first, int64 (n, k >= 10);
                        relevance (n, items), -1 for items that must not be ranked
        generation      logits (n, length, 256), or the cost of each byte in nats (n, length);
                        bytes (n, length), -1 for padding
        embedding       both sides of each pair (n, 2, d), or similarities (n, n) with the pairs
                        on the diagonal; the target is not used

    Raises:
        InvalidData: the shapes do not match.
    """
    target = examples.target
    _check(task, outputs, target, labels)
    values = finish(task, statistics(task, outputs, target).sum(axis=0))
    if task == "classification":
        values |= _metrics_without_sums(outputs, target)
    if task == "multilabel":
        values["mean_average_precision"] = _mean_average_precision(outputs, target)
    return {
        name: round(float(values[name]), 6)
        for name in NAMES[task]
        if name in values and math.isfinite(values[name])
    }


def statistics(task: Task, outputs: Array, target: Array) -> Floats:
    """Compute per-row statistics (n, k) whose sums determine a task's metrics.

    The first column is the weight of the row: 1, its number of bytes, or 0 to ignore it.
    """
    columns: Callable[[Array, Array], list[Array]] = {
        "classification": _classification,
        "multilabel": _multilabel,
        "segmentation": _segmentation,
        "regression": _regression,
        "ranking": _ranking,
        "generation": _generation,
        "embedding": _embedding,
    }[task]
    return np.column_stack(columns(outputs, target)).astype(np.float64)


def finish(task: Task, sums: Floats) -> dict[str, Floats]:
    """Compute a task's metrics (...) from summed row statistics (..., k)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if task == "classification":
            return _finish_classification(sums)
        if task == "multilabel":
            return _finish_multilabel(sums)
        if task == "segmentation":
            return _finish_segmentation(sums)
        if task == "regression":
            return _finish_regression(sums)
        if task == "generation":
            return _finish_generation(sums)
        means = sums[..., 1:] / sums[..., :1]
        return {name: means[..., column] for column, name in enumerate(NAMES[task])}


def roc_auc(probabilities: Array, target: Array, weights: Floats) -> Floats:
    """Compute the area under the ROC curve, averaged over one-versus-rest classes.

    `weights` (draws, n) weigh the rows; the areas are (draws,), NaN where a class has no weight.
    """
    if probabilities.shape[1] == 2:
        return _area(probabilities[:, 1], target == 1, weights)
    scores = _normalised(probabilities)
    areas = [
        _area(scores[:, number], target == number, weights) for number in range(scores.shape[1])
    ]
    mean: Floats = np.mean(areas, axis=0)
    return mean


def _check(task: Task, outputs: Array, target: Array, labels: Sequence[str]) -> None:
    shape = list(outputs.shape)
    if len(outputs) != len(target):
        raise InvalidData(f"{len(outputs)} outputs for {len(target)} examples")
    if task == "classification" and labels and shape[1:] != [len(labels)]:
        raise InvalidData(f"outputs of shape {shape[1:]} for {len(labels)} labels")
    if task == "classification" and (outputs.ndim != 2 or shape[1] <= target.max()):
        raise InvalidData(f"outputs of shape {shape} for class {target.max()}")
    if task in ("multilabel", "segmentation"):
        sizes = list(target.shape[: 3 if task == "segmentation" else 1])
        if shape[:-1] != sizes or (labels and shape[-1] != len(labels)):
            raise InvalidData(f"outputs of shape {shape} for targets of {list(target.shape)}")
    if task == "regression" and outputs.size != target.size:
        raise InvalidData(f"outputs of shape {shape} for targets of shape {list(target.shape)}")
    if task == "ranking" and outputs.dtype.kind == "i" and shape[1] < TOP:
        raise InvalidData(f"{shape[1]} items are ranked; at least {TOP} are needed")


def _classification(probabilities: Array, target: Array) -> list[Array]:
    predicted, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    likelihood = _normalised(probabilities)[np.arange(len(target)), target]
    costs = -np.log(np.maximum(likelihood, np.finfo(np.float64).eps))
    columns = [np.ones(len(target)), predicted == target, costs]
    if classes <= MOST_CLASSES:
        actual, assigned = np.eye(classes)[target], np.eye(classes)[predicted]
        columns += [actual, assigned, actual * assigned]
    return columns


def _finish_classification(sums: Floats) -> dict[str, Floats]:
    rows = sums[..., 0]
    values = {"accuracy": sums[..., 1] / rows, "log_loss": sums[..., 2] / rows}
    if sums.shape[-1] > 3:
        actual, assigned, both = np.split(sums[..., 3:], 3, axis=-1)
        values["balanced_accuracy"] = _mean_of_finite(both / actual)
        values["macro_f1"] = _mean_of_finite(2 * both / (actual + assigned))
    return values


def _metrics_without_sums(probabilities: Array, target: Array) -> dict[str, Any]:
    """Compute ROC AUC, and macro F1 of more than `MOST_CLASSES` classes."""
    from sklearn.metrics import f1_score

    values, classes = {}, probabilities.shape[1]
    if classes > MOST_CLASSES:
        predicted = probabilities.argmax(axis=1)
        values["macro_f1"] = f1_score(target, predicted, average="macro", zero_division=0)
    if len(np.unique(target)) == classes > 1:
        values["roc_auc"] = roc_auc(probabilities, target, np.ones((1, len(target))))[0]
    return values


def _multilabel(probabilities: Array, target: Array) -> list[Array]:
    predicted, actual = probabilities >= 0.5, target > 0
    chances = np.clip(probabilities.astype(np.float64), TINY, 1 - 1e-7)
    costs = -np.where(actual, np.log(chances), np.log1p(-chances)).mean(axis=1)
    exact = (predicted == actual).all(axis=1)
    return [np.ones(len(target)), exact, costs, actual, predicted, actual & predicted]


def _finish_multilabel(sums: Floats) -> dict[str, Floats]:
    rows = sums[..., 0]
    actual, predicted, both = np.split(sums[..., 3:], 3, axis=-1)
    total = (actual + predicted).sum(axis=-1)
    return {
        "exact_match": sums[..., 1] / rows,
        "log_loss": sums[..., 2] / rows,
        "macro_f1": _mean_of_finite(2 * both / (actual + predicted)),
        "micro_f1": 2 * both.sum(axis=-1) / total,
    }


def _mean_average_precision(probabilities: Array, target: Array) -> Any:
    """Average the labels' average precision; NaN where no label occurs."""
    from sklearn.metrics import average_precision_score

    present = (target > 0).any(axis=0)
    if not present.any():
        return math.nan
    return average_precision_score(target[:, present] > 0, probabilities[:, present])


def _segmentation(probabilities: Array, target: Array) -> list[Array]:
    classes, counts = probabilities.shape[-1], []
    for shares, classes_of_pixels in zip(probabilities, target, strict=True):
        real = classes_of_pixels >= 0
        actual, shares = classes_of_pixels[real], shares[real].astype(np.float64)
        predicted = shares.argmax(axis=-1)
        hits = predicted == actual
        likelihood = np.maximum(shares[np.arange(len(actual)), actual], TINY)
        counts.append([
            np.array([len(actual), hits.sum(), -np.log(likelihood).sum()]),
            *(np.bincount(each, minlength=classes) for each in (actual, predicted, actual[hits])),
        ])  # fmt: skip
    return [np.array([np.concatenate(each) for each in counts])]


def _finish_segmentation(sums: Floats) -> dict[str, Floats]:
    pixels = sums[..., 0]
    actual, predicted, both = np.split(sums[..., 3:], 3, axis=-1)
    return {
        "mean_iou": _mean_of_finite(both / (actual + predicted - both)),
        "pixel_accuracy": sums[..., 1] / pixels,
        "log_loss": sums[..., 2] / pixels,
    }


def _regression(values: Array, target: Array) -> list[Array]:
    expected = target.reshape(len(target), -1).astype(np.float64)
    error = values.reshape(len(target), -1) - expected
    # Subtracting the mean keeps the digits of the variance of a target far from zero.
    varies = np.ptp(expected, axis=0) > 0
    centred = np.where(varies, expected - expected.mean(axis=0), 0.0)
    return [np.ones(len(target)), error**2, abs(error), centred, centred**2]


def _finish_regression(sums: Floats) -> dict[str, Floats]:
    squared, absolute, values, squares = np.split(sums[..., 1:], 4, axis=-1)
    rows = sums[..., :1]
    return {
        "rmse": np.sqrt(squared / rows).mean(axis=-1),
        "mae": (absolute / rows).mean(axis=-1),
        "r2": (1 - squared / (squares - values**2 / rows)).mean(axis=-1),
    }


def _ranking(outputs: Array, relevance: Array) -> list[Array]:
    """Compute NDCG@10, recall@10 and reciprocal rank of each ranking.

    The gains of NDCG are linear, as scikit-learn's. Rows without a relevant item have weight 0.
    """
    if outputs.dtype.kind == "i":
        best = outputs[:, :TOP]
    else:
        scores = np.where(relevance < 0, -np.inf, outputs)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    gains = np.maximum(np.take_along_axis(relevance, best, axis=1), 0).astype(np.float64)
    ideal = -np.sort(-np.maximum(relevance, 0), axis=1)[:, :TOP]
    discounts = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    weight = ideal[:, 0] > 0
    hits = gains > 0
    reciprocal = np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)
    ndcg = (gains @ discounts) / np.maximum(ideal @ discounts[: ideal.shape[1]], TINY)
    recall = hits.sum(axis=1) / np.maximum((relevance > 0).sum(axis=1), 1)
    return [weight, ndcg * weight, recall * weight, reciprocal * weight]


def _generation(outputs: Array, target: Array) -> list[Array]:
    real = target >= 0
    if outputs.ndim == 2:
        return [real.sum(axis=1), np.where(real, outputs, 0).astype(np.float64).sum(axis=1)]
    costs, hits = np.zeros(len(target)), np.zeros(len(target))
    for row, keep in enumerate(real):  # row by row: float64 logits take 2 kB a byte of text
        costs[row], hits[row] = _text_cost(outputs[row, keep], target[row, keep])
    return [real.sum(axis=1), costs, hits]


def _text_cost(logits: Array, target: Array) -> tuple[float, int]:
    """Compute a text's cost in nats and number of correctly predicted bytes."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    chosen = shifted[np.arange(len(target)), target]
    cost = (np.log(np.exp(shifted).sum(axis=1)) - chosen).sum()
    return float(cost), int((shifted.argmax(axis=1) == target).sum())


def _finish_generation(sums: Floats) -> dict[str, Floats]:
    means = sums[..., 1:] / sums[..., :1]
    values = {
        "bits_per_byte": means[..., 0] / math.log(2),
        "perplexity": np.exp(means[..., 0]),
    }
    return values | ({"accuracy": means[..., 1]} if means.shape[-1] > 1 else {})


def _embedding(outputs: Array, _: Array) -> list[Array]:
    """Rank each embedding's true partner among all partners by similarity.

    Partners that tie rank before the true one.
    """
    similarity = _cosines(outputs) if outputs.ndim == 3 else outputs
    rank = (similarity >= np.diagonal(similarity)[:, None]).sum(axis=1)
    return [np.ones(len(rank)), rank <= 1, rank <= TOP, 1 / rank]


def _cosines(pairs: Array) -> Array:
    sides = pairs.astype(np.float64)
    left, right = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), TINY)
        for side in (sides[:, 0], sides[:, 1])
    )
    cosines: Array = left @ right.T
    return cosines


def _area(scores: Array, positive: Array, weights: Floats) -> Floats:
    """Compute the ROC AUC of scores for each draw of row weights.

    A tie counts half. `weights` (draws, n) weigh the rows; the result is (draws,).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # first row of each score
    hits, misses = (
        np.add.reduceat(weights[:, order] * side[order], starts, axis=1)
        for side in (positive, ~positive)
    )
    outscored = misses.cumsum(axis=1) - misses / 2
    with np.errstate(invalid="ignore"):
        area: Floats = (hits * outscored).sum(axis=1) / (hits.sum(axis=1) * misses.sum(axis=1))
    return area


def _mean_of_finite(values: Floats) -> Floats:
    """Average an array's finite values over its last axis."""
    finite = np.isfinite(values)
    mean: Floats = np.where(finite, values, 0).sum(axis=-1) / finite.sum(axis=-1)
    return mean


def _normalised(probabilities: Array) -> Floats:
    """Rescale probabilities to float64 rows that sum to 1."""
    values = probabilities.astype(np.float64)
    normal: Floats = values / values.sum(axis=1, keepdims=True)
    return normal
