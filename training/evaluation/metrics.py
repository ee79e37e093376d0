"""How good a model is: metrics of its task, how sure they are, for whom they hold, beside what naive ones reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.errors import InvalidData
from training.evaluation import baselines as naive

if TYPE_CHECKING:
    from training.manifest import Evaluation, Lead
    from training.recipe import Task

Metrics = dict[str, float]
Array = NDArray[Any]

TOP = 10  # of a ranking
LEVEL = 0.95
DRAWS = 1000
SEED = 0
LISTED = 5  # best and worst groups, most confused labels
MOST_CLASSES = 100  # more are too many for the statistics of each
MOST_SCORES = (
    1_000_000  # probabilities; the area under the curve of more would take minutes to draw anew
)
TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Primary:
    """The metric that decides for a task."""

    metric: str
    higher_is_better: bool


PRIMARY: dict[Task, Primary] = {
    "classification": Primary("accuracy", True),
    "regression": Primary("rmse", False),
    "ranking": Primary("ndcg_at_10", True),
    "generation": Primary("bits_per_byte", False),
    "embedding": Primary("recall_at_1", True),
}


def metrics(task: Task, outputs: Array, examples: Examples, labels: Sequence[str] = ()) -> Metrics:
    """The metrics of `outputs` for `examples`; those that are not defined here (one class only, …) are left out.

    By task, `outputs` and the target:
        classification  probabilities (n, classes); class numbers (n,)
        regression      values (n, ...); values (n, ...)
        ranking         scores (n, items), or item numbers best first, int64 (n, k >= 10);
                        relevance (n, items), -1 for items that are not to be ranked
        generation      logits (n, length, 256), or what each byte costs in nats (n, length);
                        bytes (n, length), -1 for padding
        embedding       both sides of each pair (n, 2, d), or similarities (n, n) whose diagonal are the pairs; unused

    Raises:
        InvalidData: the shapes do not fit each other.
    """
    _check(task, outputs, examples.target, labels)
    found = {name: float(value) for name, value in _sklearn(task, outputs, examples.target).items()}
    statistics = _statistics(task, outputs, examples.target)
    found = {
        name: float(value) for name, value in _finish(task, statistics.sum(axis=0)).items()
    } | found
    return {
        name: round(found[name], 6)
        for name in names(task)
        if math.isfinite(found.get(name, math.nan))
    }


def baselines(task: Task, data: Dataset) -> dict[str, Metrics]:
    """The same metrics, on the same test rows, for what needs no model; `best possible` where the data know it."""
    return {
        name: metrics(task, outputs, data.test)
        for name, outputs in naive.outputs(task, data).items()
    }


def details(
    task: Task,
    outputs: Array,
    data: Dataset,
    labels: Sequence[str] = (),
    *,
    plain: Array | None = None,
) -> Evaluation:
    """What a number alone does not say, small enough for a manifest (the test part of `data` is what is measured).

    `intervals` are bootstrap percentiles; groups are drawn whole where the split is by group. `lead` is the paired
    difference to the best baseline. `groups` names the worst and best ones, `classes` the worst labels, `calibration`
    how often a classifier is right at each confidence, and, where it has a temperature, at that of `plain` outputs.
    """
    test, primary = data.test, PRIMARY[task]
    by = str(data.split.get("by", "row"))
    groups = test.groups if by != "row" else None
    if groups is not None and len(np.unique(groups)) < 2:
        by, groups = "row", None
    statistics = _statistics(task, outputs, test.target)
    drawn = _finish(task, _bootstrap(statistics, groups))
    found: Evaluation = {
        "primary": {"metric": primary.metric, "higher_is_better": primary.higher_is_better},
        "rows": len(test),
        "intervals": {
            name: _interval(values) for name, values in drawn.items() if np.isfinite(values).any()
        },
        "bootstrap": {"level": LEVEL, "draws": len(drawn[primary.metric]), "seed": SEED, "by": by},
    }
    own = metrics(task, outputs, test)
    if "roc_auc" in own and outputs.size <= MOST_SCORES:
        found["intervals"]["roc_auc"] = _interval(_roc_areas(outputs, test.target, groups))
    lead = _lead(task, drawn[primary.metric], own, data, groups)
    if lead:
        found["lead"] = lead
    if test.groups is not None:
        found["groups"] = _by_group(task, statistics, test.groups, by)
    if task == "classification":
        found["classes"] = _by_class(outputs, test.target, labels or data.labels)
        found["calibration"] = calibration(outputs, test.target)
        if plain is not None:
            found["calibration"] |= {
                "expected_error_before": calibration(plain, test.target)["expected_error"],
                "log_loss_before": metrics(task, plain, test)["log_loss"],
            }
    return found


def confusion(probabilities: Array, target: Array) -> NDArray[np.int64]:
    """How often each class (row) was taken for each (column), (classes, classes)."""
    from sklearn.metrics import confusion_matrix

    counts: NDArray[np.int64] = confusion_matrix(
        target, probabilities.argmax(axis=1), labels=range(probabilities.shape[1])
    )
    return counts


def calibration(probabilities: Array, target: Array, bins: int = 10) -> dict[str, Any]:
    """Is a confidence of 80 % right in 80 %? The expected calibration error, and each bin of equal width."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == target
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rows = [
        {
            "confidence": round(float(confidence[bin_of == number].mean()), 4),
            "accuracy": round(float(right[bin_of == number].mean()), 4),
            "rows": int((bin_of == number).sum()),
        }
        for number in np.unique(bin_of)
    ]
    error = sum(row["rows"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(
        target
    )
    return {"expected_error": round(error, 4), "bins": rows}


# --- each task's numbers: statistics of a row, whose sums over any rows make the metrics of these rows ----------------


def _check(task: Task, outputs: Array, target: Array, labels: Sequence[str]) -> None:
    if len(outputs) != len(target):
        raise InvalidData(f"{len(outputs)} outputs for {len(target)} examples")
    if task == "classification" and labels and outputs.shape[1:] != (len(labels),):
        raise InvalidData(f"outputs of shape {list(outputs.shape[1:])} for {len(labels)} labels")
    if task == "classification" and (outputs.ndim != 2 or outputs.shape[1] <= target.max()):
        raise InvalidData(f"outputs of shape {list(outputs.shape)} for class {target.max()}")
    if task == "regression" and outputs.size != target.size:
        raise InvalidData(
            f"outputs of shape {list(outputs.shape)} for targets of shape {list(target.shape)}"
        )
    if task == "ranking" and outputs.dtype.kind == "i" and outputs.shape[1] < TOP:
        raise InvalidData(f"{outputs.shape[1]} items are ranked; it takes {TOP}")


def names(task: Task) -> tuple[str, ...]:
    """The metrics of `task`, in the order in which they are shown."""
    return {
        "classification": ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc"),
        "regression": ("rmse", "mae", "r2"),
        "ranking": ("ndcg_at_10", "recall_at_10", "mrr_at_10"),
        "generation": ("bits_per_byte", "perplexity", "accuracy"),
        "embedding": ("recall_at_1", "recall_at_10", "mrr"),
    }[task]


def _sklearn(task: Task, outputs: Array, target: Array) -> Metrics:
    """What scikit-learn measures."""
    from sklearn import metrics as sk

    if task == "classification":
        predicted, classes = outputs.argmax(axis=1), range(outputs.shape[1])
        found = {
            "accuracy": sk.accuracy_score(target, predicted),
            "macro_f1": sk.f1_score(target, predicted, average="macro", zero_division=0),
            "log_loss": sk.log_loss(target, _normal(outputs), labels=classes)
            if len(classes) > 1
            else math.nan,
        }
        if len(np.unique(target)) == len(classes) > 1:
            scores = outputs[:, 1] if len(classes) == 2 else _normal(outputs)
            found["roc_auc"] = sk.roc_auc_score(target, scores, multi_class="ovr")
        return found
    if task == "regression":
        values, expected = outputs.reshape(len(target), -1), target.reshape(len(target), -1)
        return {
            "rmse": sk.root_mean_squared_error(expected, values),
            "mae": sk.mean_absolute_error(expected, values),
            "r2": sk.r2_score(expected, values) if np.ptp(expected, axis=0).min() > 0 else math.nan,
        }
    return {}


def _statistics(task: Task, outputs: Array, target: Array) -> NDArray[np.float64]:
    """(n, k); the first column counts."""
    rows: Callable[[Array, Array], list[Array]] = {
        "classification": _classification,
        "regression": _regression,
        "ranking": _ranking,
        "generation": _generation,
        "embedding": _embedding,
    }[task]
    return np.column_stack(rows(outputs, target)).astype(np.float64)


def _finish(task: Task, sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Metrics of sums (..., k)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if task == "regression":
            return _finish_regression(sums)
        mean = sums[..., 1:] / sums[..., :1]
        if task == "generation":
            return {
                "bits_per_byte": mean[..., 0] / math.log(2),
                "perplexity": np.exp(mean[..., 0]),
                **({"accuracy": mean[..., 1]} if mean.shape[-1] > 1 else {}),
            }
        if task == "classification":
            found = {"accuracy": mean[..., 0], "log_loss": mean[..., 1]}
            if sums.shape[-1] > 3:
                actual, predicted, both = np.split(sums[..., 3:], 3, axis=-1)
                found["balanced_accuracy"] = _mean_of_known(both / actual)
                found["macro_f1"] = _mean_of_known(2 * both / (actual + predicted))
            return found
        return {name: mean[..., column] for column, name in enumerate(names(task))}


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, NaN left out."""
    known = np.isfinite(values)
    total: NDArray[np.float64] = np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
    return total


def _normal(probabilities: Array) -> NDArray[np.float64]:
    values = probabilities.astype(np.float64)
    normal: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return normal


def _classification(probabilities: Array, target: Array) -> list[Array]:
    predicted, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    surprise = -np.log(
        np.maximum(_normal(probabilities)[np.arange(len(target)), target], np.finfo(np.float64).eps)
    )
    columns = [np.ones(len(target)), predicted == target, surprise]
    if classes <= MOST_CLASSES:
        actual, taken = np.eye(classes)[target], np.eye(classes)[predicted]
        columns += [actual, taken, actual * taken]
    return columns


def _regression(values: Array, target: Array) -> list[Array]:
    expected = target.reshape(len(target), -1).astype(np.float64)
    error = values.reshape(len(target), -1) - expected
    centred = expected - expected.mean(axis=0)  # large offsets would cost the variance its digits
    return [np.ones(len(target)), error**2, abs(error), centred, centred**2]


def _finish_regression(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    squared, absolute, values, squares = np.split(sums[..., 1:], 4, axis=-1)
    rows = sums[..., :1]
    return {
        "rmse": np.sqrt(squared / rows).mean(axis=-1),
        "mae": (absolute / rows).mean(axis=-1),
        "r2": (1 - squared / (squares - values**2 / rows)).mean(axis=-1),
    }


def _ranking(outputs: Array, relevance: Array) -> list[Array]:
    """NDCG with gains as they are, as scikit-learn's; rows without a relevant item count nowhere."""
    if outputs.dtype.kind == "i":
        best = outputs[:, :TOP]
    else:
        scores = np.where(relevance < 0, -np.inf, outputs)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    gains = np.maximum(np.take_along_axis(relevance, best, axis=1), 0).astype(np.float64)
    ideal = -np.sort(-np.maximum(relevance, 0), axis=1)[:, :TOP]
    weights = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    some = ideal[:, 0] > 0
    hits = gains > 0
    first = np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)
    ndcg = (gains @ weights) / np.maximum(ideal @ weights[: ideal.shape[1]], TINY)
    recall = hits.sum(axis=1) / np.maximum((relevance > 0).sum(axis=1), 1)
    return [some, ndcg * some, recall * some, first * some]


def _generation(outputs: Array, target: Array) -> list[Array]:
    known = target >= 0
    if outputs.ndim == 2:
        return [known.sum(axis=1), np.where(known, outputs, 0).astype(np.float64).sum(axis=1)]
    totals, right = np.zeros(len(target)), np.zeros(len(target))
    for row, (logits, expected, kept) in enumerate(
        zip(outputs, target, known, strict=True)
    ):  # a row at a time: 256 x
        shifted = logits[kept].astype(np.float64) - logits[kept].max(
            axis=1, keepdims=True, initial=-np.inf
        )
        chosen = shifted[np.arange(kept.sum()), expected[kept]]
        totals[row] = (np.log(np.exp(shifted).sum(axis=1)) - chosen).sum()
        right[row] = (shifted.argmax(axis=1) == expected[kept]).sum()
    return [known.sum(axis=1), totals, right]


def _embedding(outputs: Array, _: Array) -> list[Array]:
    """The rank of each row's partner among all partners; ties count against it."""
    similarity = outputs
    if outputs.ndim == 3:
        one, other = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), TINY) for side in
                      (outputs[:, 0].astype(np.float64), outputs[:, 1].astype(np.float64)))  # fmt: skip
        similarity = one @ other.T
    rank = (similarity >= np.diagonal(similarity)[:, None]).sum(axis=1)
    return [np.ones(len(rank)), rank <= 1, rank <= TOP, 1 / rank]


# --- how sure, and for whom -------------------------------------------------------------------------------------------


def _bootstrap(statistics: NDArray[np.float64], groups: Array | None) -> NDArray[np.float64]:
    """Sums over rows drawn with replacement, (draws, k); the same draws for statistics of the same rows."""
    units = statistics if groups is None else _sum_by(statistics, groups)[1]
    return np.concatenate([counts @ units for counts in _draws(len(units))])


def _draws(units: int) -> Iterator[NDArray[np.int64]]:
    """How often each row, or group, is drawn, (some draws, units), until all have been made."""
    draws = DRAWS if units <= 20_000 else DRAWS // 5
    generator, chunk = np.random.default_rng(SEED), max(1, 2_000_000 // units)
    for start in range(0, draws, chunk):
        yield generator.multinomial(units, np.full(units, 1 / units), min(chunk, draws - start))


def _roc_areas(probabilities: Array, target: Array, groups: Array | None) -> NDArray[np.float64]:
    """The area under the curve of each draw, (draws,), NaN where a class was not drawn; no sum over rows makes it."""
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    scores, areas = _normal(probabilities), []
    number = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    for counts in _draws(int(number.max()) + 1):
        for some in np.array_split(counts, max(1, len(counts) * len(target) // 2_000_000)):
            weights = some[:, number].astype(np.float64)
            areas.append(
                np.mean(
                    [_roc_area(scores[:, one], target == one, weights) for one in classes], axis=0
                )
            )
    return np.concatenate(areas)


def _roc_area(scores: Array, positive: Array, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How likely a positive row outscores a negative one, half of the ties counted; weights (draws, n) → (draws,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of rows with the same score
    one, other = (
        np.add.reduceat(weights[:, order] * side[order], starts, axis=1)
        for side in (positive, ~positive)
    )
    below = other.cumsum(axis=1) - other / 2
    with np.errstate(invalid="ignore"):
        return (one * below).sum(axis=1) / (one.sum(axis=1) * other.sum(axis=1))  # type: ignore[no-any-return]


def _sum_by(statistics: NDArray[np.float64], groups: Array) -> tuple[Array, NDArray[np.float64]]:
    names, number = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, number, statistics)
    return names, sums


def _interval(values: NDArray[np.float64]) -> list[float]:
    edges = np.percentile(values[np.isfinite(values)], [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return [round(float(edge), 6) for edge in edges]


def _lead(
    task: Task, drawn: NDArray[np.float64], found: Metrics, data: Dataset, groups: Array | None
) -> Lead | None:
    """How much better than the best baseline: above zero is better, whatever the metric's direction."""
    primary = PRIMARY[task]
    sign = 1 if primary.higher_is_better else -1
    rivals = {
        name: values
        for name, values in naive.outputs(task, data).items()
        if name != naive.BEST_POSSIBLE
    }
    reached = {
        name: metrics(task, values, data.test)[primary.metric] for name, values in rivals.items()
    }
    if not reached:
        return None
    name = max(reached, key=lambda one: sign * reached[one])
    other = _finish(task, _bootstrap(_statistics(task, rivals[name], data.test.target), groups))[
        primary.metric
    ]
    return {
        "over": name,
        "by": round(sign * (found[primary.metric] - reached[name]), 6),
        "interval": _interval(sign * (drawn - other)),
    }


def _by_group(
    task: Task, statistics: NDArray[np.float64], groups: Array, by: str
) -> dict[str, Any]:
    primary = PRIMARY[task]
    names, sums = _sum_by(statistics, groups)
    values = _finish(task, sums)[primary.metric]
    known = np.flatnonzero(np.isfinite(values))
    order = known[
        np.argsort(-values[known] if primary.higher_is_better else values[known], kind="stable")
    ]
    rows = np.unique(groups, return_counts=True)[1]

    def listed(numbers: Array) -> list[dict[str, Any]]:
        return [
            {
                "group": str(names[number])[:80],
                "rows": int(rows[number]),
                primary.metric: round(float(values[number]), 6),
            }
            for number in numbers
        ]

    return {
        "by": by,
        "count": len(names),
        "mean": round(float(values[known].mean()), 6),
        "worst": listed(order[::-1][:LISTED]),
        "best": listed(order[:LISTED]),
    }


def _by_class(probabilities: Array, target: Array, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The classes with the lowest F1, worst first."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = np.unique(target)
    scores = precision_recall_fscore_support(
        target, probabilities.argmax(axis=1), labels=classes, zero_division=0
    )
    rows = [
        {
            "label": (labels[number] if number < len(labels) else str(number))[:80],
            "rows": int(support),
            "precision": round(float(precision), 4),
            "recall": round(float(recall), 4),
            "f1": round(float(f1), 4),
        }
        for number, precision, recall, f1, support in zip(classes, *scores, strict=True)
    ]
    return sorted(rows, key=lambda row: row["f1"])[: 2 * LISTED]
