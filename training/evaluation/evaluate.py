"""Model evaluation: confidence intervals, lead over baselines, worst groups and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data import Dataset, Examples
from training.data.dataset import BEST_POSSIBLE
from training.evaluation import baselines, bootstrap
from training.evaluation.calibration import reliability
from training.evaluation.metrics import PRIMARY, Metrics, compute, finish, statistics

if TYPE_CHECKING:
    from training.manifest import Evaluation, Lead
    from training.recipe import Task

Array = NDArray[Any]
LISTED = 5  # groups listed as best and as worst; twice as many classes
MOST_SCORES = 1_000_000  # probabilities; resampling ROC AUC of more would take minutes
NAME_LENGTH = 80  # characters of a group's or label's name, to keep the manifest small


def evaluate(
    task: Task,
    outputs: Array,
    data: Dataset,
    labels: Sequence[str] = (),
    *,
    uncalibrated: Array | None = None,
    rivals: Mapping[str, Array] | None = None,
) -> Evaluation:
    """Evaluate a model's test outputs: intervals, lead over baselines, groups, calibration.

    `outputs` are those for the test part of `data`. The result is small enough for a manifest.
    `intervals` are bootstrap percentiles of each metric; a data set split by group is resampled by
    group. `lead` is the paired difference to the best baseline. `groups` lists the best and worst
    groups, `classes` the worst labels, `calibration` the accuracy at each confidence. With
    `uncalibrated`, the outputs before temperature scaling, it has the errors before it, too.
    `rivals` are the outputs of the baselines, where they are known.
    """
    test = data.test
    by, groups = _resampling_unit(data)
    rows = statistics(task, outputs, test.target)
    draws = finish(task, bootstrap.resample(rows, groups))
    own = compute(task, outputs, test)
    evaluation = _with_intervals(task, draws, len(test), by)
    if "roc_auc" in own and outputs.size <= MOST_SCORES:
        areas = bootstrap.resample_roc_auc(outputs, test.target, groups)
        evaluation["intervals"]["roc_auc"] = bootstrap.interval(areas)
    rivals = baselines.outputs(task, data) if rivals is None else rivals
    lead = _lead(task, draws[PRIMARY[task].metric], own, data, groups, rivals)
    if lead:
        evaluation["lead"] = lead
    if test.groups is not None:
        evaluation["groups"] = _by_group(task, rows, test.groups, by)
    if task == "classification":
        evaluation["classes"] = _worst_classes(outputs, test.target, labels or data.labels)
        evaluation["calibration"] = _calibration(outputs, uncalibrated, test)
    return evaluation


def evaluate_baselines(
    task: Task, data: Dataset, rivals: Mapping[str, Array] | None = None
) -> dict[str, Metrics]:
    """Compute the metrics of each baseline on the test part of `data`.

    They include `best possible` where the data set has it. `rivals` are the outputs of the
    baselines, where they are known.
    """
    rivals = baselines.outputs(task, data) if rivals is None else rivals
    return {name: compute(task, outputs, data.test) for name, outputs in rivals.items()}


def _resampling_unit(data: Dataset) -> tuple[str, Array | None]:
    """Return the unit that the bootstrap draws, and the test rows' groups.

    The unit is "row" or the kind of group; the groups are None where rows are drawn.
    """
    by = str(data.split.get("by", "row"))
    groups = data.test.groups
    if by == "time":
        return "row", None
    if by == "row" or groups is None:
        return by, None
    return ("row", None) if len(np.unique(groups)) < 2 else (by, groups)


def _with_intervals(task: Task, draws: dict[str, Any], rows: int, by: str) -> Evaluation:
    primary = PRIMARY[task]
    return {
        "primary": {"metric": primary.metric, "higher_is_better": primary.higher_is_better},
        "rows": rows,
        "intervals": {
            name: bootstrap.interval(values)
            for name, values in draws.items()
            if np.isfinite(values).any()
        },
        "bootstrap": {
            "level": bootstrap.LEVEL,
            "draws": len(draws[primary.metric]),
            "seed": bootstrap.SEED,
            "by": by,
        },
    }


def _lead(
    task: Task,
    draws: Array,
    own: Metrics,
    data: Dataset,
    groups: Array | None,
    outputs: Mapping[str, Array],
) -> Lead | None:
    """Compute the model's lead over the best baseline, with its interval.

    It is positive if the model is better, whatever the direction of the metric.
    """
    metric = PRIMARY[task].metric
    sign = 1 if PRIMARY[task].higher_is_better else -1
    rivals = {name: values for name, values in outputs.items() if name != BEST_POSSIBLE}
    scores = {name: compute(task, values, data.test)[metric] for name, values in rivals.items()}
    if not scores:
        return None
    name = max(scores, key=lambda rival: sign * scores[rival])
    sums = bootstrap.resample(statistics(task, rivals[name], data.test.target), groups)
    return {
        "over": name,
        "by": round(sign * (own[metric] - scores[name]), 6),
        "interval": bootstrap.interval(sign * (draws - finish(task, sums)[metric])),
    }


def _by_group(task: Task, rows: NDArray[np.float64], groups: Array, by: str) -> dict[str, Any]:
    """Summarise the primary metric by group: mean, worst and best groups."""
    primary = PRIMARY[task]
    names, sums = bootstrap.sum_by_group(rows, groups)
    values = finish(task, sums)[primary.metric]
    counts = np.unique(groups, return_counts=True)[1]
    defined = np.flatnonzero(np.isfinite(values))
    sign = -1 if primary.higher_is_better else 1
    best_first = defined[np.argsort(sign * values[defined], kind="stable")]

    def listed(numbers: Array) -> list[dict[str, Any]]:
        return [
            {
                "group": str(names[number])[:NAME_LENGTH],
                "rows": int(counts[number]),
                primary.metric: round(float(values[number]), 6),
            }
            for number in numbers
        ]

    return {
        "by": by,
        "count": len(names),
        "mean": round(float(values[defined].mean()), 6),
        "worst": listed(best_first[::-1][:LISTED]),
        "best": listed(best_first[:LISTED]),
    }


def _calibration(outputs: Array, uncalibrated: Array | None, test: Examples) -> dict[str, Any]:
    """Compute the calibration of classifier outputs, and errors before temperature scaling."""
    after = reliability(outputs, test.target)
    if uncalibrated is None:
        return after
    before = reliability(uncalibrated, test.target)["expected_error"]
    log_loss = compute("classification", uncalibrated, test)["log_loss"]
    return after | {"expected_error_before": before, "log_loss_before": log_loss}


def _worst_classes(
    probabilities: Array, target: Array, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """List the classes of lowest F1, with precision and recall, worst first."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = np.unique(target)
    scores = precision_recall_fscore_support(
        target, probabilities.argmax(axis=1), labels=classes, zero_division=0
    )
    rows = [
        {
            "label": (labels[number] if number < len(labels) else str(number))[:NAME_LENGTH],
            "rows": int(support),
            "precision": round(float(precision), 4),
            "recall": round(float(recall), 4),
            "f1": round(float(f1), 4),
        }
        for number, precision, recall, f1, support in zip(classes, *scores, strict=True)
    ]
    return sorted(rows, key=lambda row: row["f1"])[: 2 * LISTED]
