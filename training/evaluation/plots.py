"""PNG plots of a training run: learning curves, confusion matrix, reliability, residuals."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.calibration import reliability
from training.evaluation.metrics import PRIMARY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from training.recipe import Task

Array = NDArray[Any]
BLUE, ORANGE, GREY, LIGHT = "#1f5fa8", "#d9661f", "#6b7280", "#d7dce2"
DPI = 110
MOST_CLASSES = 30  # rows of a confusion matrix; more are not readable
MOST_COUNTS = 15  # classes up to which each cell shows its count
MOST_POINTS = 2000  # dots of a scatter plot; more only make the file larger
LABEL_WIDTH = 45  # characters of all x labels together; longer ones overlap unless rotated


def learning_curves(
    history: Sequence[Mapping[str, float]],
    task: Task,
    path: Path,
    baseline: tuple[str, float] | None = None,
) -> None:
    """Plot learning curves: loss and primary metric by epoch, beside a baseline.

    `baseline` is (name, value).
    """
    metric = PRIMARY[task].metric
    scores = [row.get(f"validation_{metric}") for row in history]
    panels = 2 if any(value is not None for value in scores) else 1
    figure = _figure(4.6 * panels, 3.4)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    _curve(axes[0], epochs, [row.get("loss") for row in history], BLUE, "training")
    _curve(axes[0], epochs, [row.get("validation_loss") for row in history], ORANGE, "validation")
    _label(axes[0], "loss", "epoch", "")
    if panels == 2:
        _curve(axes[1], epochs, scores, ORANGE, "validation")
        if baseline is not None:
            name, value = baseline
            axes[1].axhline(value, color=GREY, linestyle="--", linewidth=1, label=f"{name} (test)")
        _label(axes[1], _words(metric), "epoch", "")
    for panel in axes:
        panel.legend(frameon=False, fontsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=DPI)


def confusion(probabilities: Array, target: Array, labels: Sequence[str], path: Path) -> None:
    """Plot a classifier's confusion matrix beside its reliability diagram.

    Of many classes, the most confused are shown.
    """
    counts = confusion_counts(probabilities, target)
    shown = np.arange(len(counts))
    title = "confusion matrix"
    if len(counts) > MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
        title = f"the {len(shown)} most confused of {len(counts)} classes"
    side = min(max(3.4, 0.42 * len(shown) + 1.6), 9.5)  # inches, of the confusion matrix
    figure = _figure(side + 3.4, side + 0.4)
    left, right = figure.subplots(1, 2, width_ratios=[side, 3.2])
    _matrix(left, counts, shown)
    _class_ticks(left, [labels[n] if n < len(labels) else str(n) for n in shown.tolist()])
    _label(left, title, "predicted", "actual", grid=False)
    _reliability(right, probabilities, target)
    figure.savefig(path, dpi=DPI)


def confusion_counts(probabilities: Array, target: Array) -> NDArray[np.int64]:
    """Count predictions by actual class (row) and predicted class (column)."""
    from sklearn.metrics import confusion_matrix

    counts: NDArray[np.int64] = confusion_matrix(
        target, probabilities.argmax(axis=1), labels=range(probabilities.shape[1])
    )
    return counts


def residuals(values: Array, target: Array, path: Path) -> None:
    """Plot predicted against actual values, beside a histogram of the errors."""
    actual, predicted = target.reshape(-1).astype(np.float64), values.reshape(-1).astype(np.float64)
    figure = _figure(9.2, 3.9)
    left, right = figure.subplots(1, 2)
    _scatter(left, actual, predicted)
    _error_histogram(right, predicted - actual)
    figure.savefig(path, dpi=DPI)


def _matrix(axes: Axes, counts: NDArray[np.int64], shown: Array) -> None:
    part = counts[np.ix_(shown, shown)]
    share = part / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(shown) > MOST_COUNTS:
        return
    for row, column in np.argwhere(part):
        colour = "white" if share[row, column] > 0.6 else "black"
        text = axes.text(column, row, str(part[row, column]), color=colour, fontsize=8)
        text.set(ha="center", va="center")


def _class_ticks(axes: Axes, labels: Sequence[str]) -> None:
    names = [_short(label) for label in labels]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    if max(map(len, names)) * len(names) > LABEL_WIDTH:
        for text in axes.get_xticklabels():
            text.set(rotation=60, ha="right", rotation_mode="anchor")


def _scatter(axes: Axes, actual: Array, predicted: Array) -> None:
    points = np.random.default_rng(0).permutation(len(actual))[:MOST_POINTS]
    ends = [float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", label="exact")
    size = 4 if len(points) > 300 else 8
    dots = axes.plot(actual[points], predicted[points], ".", color=BLUE, markersize=size)
    dots[0].set(alpha=0.5, markeredgewidth=0)
    _label(axes, f"{len(points)} of {len(actual)} test values", "actual", "predicted")
    axes.legend(frameon=False, fontsize=8)


def _error_histogram(axes: Axes, error: Array) -> None:
    low, high = np.percentile(error, [0.5, 99.5]).tolist()
    bins = min(40, 4 + math.isqrt(len(error)))
    axes.hist(error, bins, range=(low, high), color=BLUE, edgecolor="white", linewidth=0.4)
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.axvline(error.mean(), color=ORANGE, linewidth=1.4, label=f"mean {error.mean():.3g}")
    _label(axes, "residuals, the middle 99 %", "predicted - actual", "test values")
    axes.legend(frameon=False, fontsize=8)


def _reliability(axes: Axes, probabilities: Array, target: Array) -> None:
    calibration = reliability(probabilities, target)
    bins = calibration["bins"]
    confidences = [row["confidence"] for row in bins]
    accuracies = [row["accuracy"] for row in bins]
    largest = max(row["rows"] for row in bins)
    sizes = [12 + 90 * row["rows"] / largest for row in bins]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.scatter(confidences, accuracies, s=sizes, color=BLUE, zorder=3, clip_on=False)
    axes.plot(confidences, accuracies, color=BLUE, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    title = f"calibration, error {calibration['expected_error']:.3f}"
    _label(axes, title, "confidence", "share that is right")


def _figure(width: float, height: float) -> Figure:
    """Create a Matplotlib figure without a display or a writable home folder.

    Matplotlib writes its font cache into MPLCONFIGDIR: a temporary folder, removed at exit.
    """
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="matplotlib-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = folder
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(
    axes: Axes, epochs: Sequence[float], values: Sequence[float | None], colour: str, name: str
) -> None:
    points = [point for point in zip(epochs, values, strict=True) if point[1] is not None]
    if not points:
        return
    marker = "o" if len(points) <= 30 else ""
    [line] = axes.plot(*zip(*points, strict=True), color=colour, label=name)
    line.set(marker=marker, markersize=3, linewidth=1.6)


def _label(axes: Axes, title: str, x: str, y: str, *, grid: bool = True) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT)
    if grid:
        axes.grid(color=LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)


def _short(label: str) -> str:
    """Shorten an axis label to 18 characters and escape `$`.

    Matplotlib reads text between `$` as mathematics.
    """
    return (label if len(label) <= 18 else label[:17] + "…").replace("$", r"\$")


def _words(metric: str) -> str:
    return metric.replace("_", " ")
