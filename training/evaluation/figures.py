"""Numbers behind a run's pictures, small enough for the manifest.

The console draws them: learning curves, confusion matrix, histogram of errors. The reliability
diagram's are in `evaluation["calibration"]`. plots.py draws the same from all test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import PRIMARY
from training.evaluation.plots import confusion_counts

if TYPE_CHECKING:
    from training.recipe import Task

Array = NDArray[Any]
MOST_EPOCHS = 60  # points of a curve
MOST_CLASSES = 20  # rows of a confusion matrix
BINS = 21  # bars of a histogram, so that one is in the middle
NAME_LENGTH = 40  # characters of a class's name
DIGITS = 5  # significant ones


def collect(
    task: Task,
    outputs: Array,
    target: Array,
    labels: Sequence[str],
    history: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Return the figures that a task has, by name; finite numbers alone.

    `outputs` and `target` belong to the test part, shaped as `metrics.compute` takes them.
    """
    figures: dict[str, Any] = {}
    if len(history) > 1:
        figures["learning"] = _learning(task, history)
    if task == "classification":
        figures["confusion"] = _confusion(outputs, target, labels)
    elif task == "regression":
        figures["residuals"] = _residuals(outputs, target)
    return {name: figure for name, figure in figures.items() if figure}


def _learning(task: Task, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return columns by epoch: losses and the primary metric."""
    step = math.ceil(len(history) / MOST_EPOCHS)
    rows = [*history[step - 1 :: step]]
    if rows[-1] is not history[-1]:
        rows.append(history[-1])
    names = ("loss", "validation_loss", f"validation_{PRIMARY[task].metric}")
    columns = {name: [_rounded(row.get(name)) for row in rows] for name in names}
    kept = {name: column for name, column in columns.items() if any(v is not None for v in column)}
    return {"epoch": [int(row["epoch"]) for row in rows], **kept} if kept else {}


def _confusion(probabilities: Array, target: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Return counts by actual class (row) and predicted class."""
    counts = confusion_counts(probabilities, target)
    shown = np.arange(len(counts))
    if len(counts) > MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    names = [labels[at] if at < len(labels) else str(at) for at in shown.tolist()]
    return {
        "labels": [name[:NAME_LENGTH] for name in names],
        "counts": counts[np.ix_(shown, shown)].tolist(),
        "classes": len(counts),
    }


def _residuals(values: Array, target: Array) -> dict[str, Any]:
    """Return a histogram of the middle 99 % of errors."""
    error = values.reshape(-1).astype(np.float64) - target.reshape(-1)
    error = error[np.isfinite(error)]
    if not error.size:
        return {}
    low, high = np.percentile(error, [0.5, 99.5]).tolist()
    counts, edges = np.histogram(error, BINS, range=(low, high))
    return {"edges": [_rounded(edge) for edge in edges.tolist()], "counts": counts.tolist()}


def _rounded(value: float | None) -> float | None:
    """Round to significant digits; None for what JSON cannot hold.

    >>> _rounded(0.123456789), _rounded(math.inf)
    (0.12346, None)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
