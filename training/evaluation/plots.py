"""Pictures of a training run: learning curves, and the confusion matrix or the residuals of the test part. PNG."""

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

from training.evaluation import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from training.recipe import Task

Array = NDArray[Any]
BLUE, ORANGE, GREY, LIGHT = "#1f5fa8", "#d9661f", "#6b7280", "#d7dce2"
MOST_CLASSES = 30  # in a picture
MOST_WRITTEN = 15  # with their numbers in the fields
MOST_POINTS = 2000


def learning_curves(
    history: Sequence[Mapping[str, float]],
    task: Task,
    path: Path,
    baseline: tuple[str, float] | None = None,
) -> None:
    """Loss and primary metric by epoch; `baseline` is a name and what it reaches, drawn as a line."""
    metric = metrics.PRIMARY[task].metric
    score = [row.get(f"validation_{metric}") for row in history]
    panels = 2 if any(value is not None for value in score) else 1
    figure = _figure(4.6 * panels, 3.4)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    _curve(axes[0], epochs, [row.get("loss") for row in history], BLUE, "training")
    _curve(axes[0], epochs, [row.get("validation_loss") for row in history], ORANGE, "validation")
    _label(axes[0], "loss", "epoch", "")
    if panels == 2:
        _curve(axes[1], epochs, score, ORANGE, "validation")
        if baseline is not None:
            axes[1].axhline(
                baseline[1], color=GREY, linestyle="--", linewidth=1, label=f"{baseline[0]} (test)"
            )
        _label(axes[1], _words(metric), "epoch", "")
    for one in axes:
        one.legend(frameon=False, fontsize=8)
        one.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)


def confusion(probabilities: Array, target: Array, labels: Sequence[str], path: Path) -> None:
    """Which class was taken for which, and how often a confidence was right; the worst classes where there are many."""
    counts = metrics.confusion(probabilities, target)
    shown = np.arange(len(counts))
    if len(counts) > MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    names = [
        _short(labels[number] if number < len(labels) else str(number)) for number in shown.tolist()
    ]
    part = counts[np.ix_(shown, shown)]
    share = part / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    side = min(max(3.4, 0.42 * len(shown) + 1.6), 9.5)
    figure = _figure(side + 3.4, side + 0.4)
    left, right = figure.subplots(1, 2, width_ratios=[side, 3.2])
    left.imshow(share, cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(len(names)), names)
    if max(map(len, names)) * len(names) > 45:  # they would run into each other
        for text in left.get_xticklabels():
            text.set(rotation=60, ha="right", rotation_mode="anchor")
    left.set_yticks(range(len(names)), names)
    title = (
        "confusion matrix"
        if len(shown) == len(counts)
        else f"the {len(shown)} most confused of {len(counts)} classes"
    )
    _label(left, title, "predicted", "actual", grid=False)
    if len(names) <= MOST_WRITTEN:
        for row, column in np.ndindex(*part.shape):
            if part[row, column]:
                colour = "white" if share[row, column] > 0.6 else "black"
                left.text(
                    column,
                    row,
                    str(part[row, column]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
    _reliability(right, probabilities, target)
    figure.savefig(path, dpi=110)


def residuals(values: Array, target: Array, path: Path) -> None:
    """Predicted against actual, and the distribution of what lies between."""
    actual, predicted = target.reshape(-1).astype(np.float64), values.reshape(-1).astype(np.float64)
    kept = np.random.default_rng(0).permutation(len(actual))[:MOST_POINTS]
    figure = _figure(9.2, 3.9)
    left, right = figure.subplots(1, 2)
    low, high = float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))
    left.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--", label="exact")
    left.plot(
        actual[kept],
        predicted[kept],
        ".",
        color=BLUE,
        markersize=4 if len(kept) > 300 else 8,
        alpha=0.5,
        markeredgewidth=0,
    )
    _label(left, f"{len(kept)} of {len(actual)} test values", "actual", "predicted")
    left.legend(frameon=False, fontsize=8)
    error = predicted - actual
    low, high = np.percentile(error, [0.5, 99.5]).tolist()
    right.hist(
        error,
        range=(low, high),
        bins=min(40, 4 + math.isqrt(len(error))),
        color=BLUE,
        edgecolor="white",
        linewidth=0.4,
    )
    right.axvline(0, color=GREY, linewidth=1, linestyle="--")
    right.axvline(error.mean(), color=ORANGE, linewidth=1.4, label=f"mean {error.mean():.3g}")
    _label(right, "residuals, the middle 99 %", "predicted - actual", "test values")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _reliability(axes: Axes, probabilities: Array, target: Array) -> None:
    found = metrics.calibration(probabilities, target)
    bins = found["bins"]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    largest = max(row["rows"] for row in bins)
    axes.scatter(
        [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins],
        s=[12 + 90 * row["rows"] / largest for row in bins],
        color=BLUE,
        zorder=3,
        clip_on=False,
    )
    axes.plot(
        [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins],
        color=BLUE,
        linewidth=1,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _label(
        axes,
        f"calibration, error {found['expected_error']:.3f}",
        "confidence",
        "share that is right",
    )


def _figure(width: float, height: float) -> Figure:
    """Drawn in memory by Agg: no display, no global state, and nothing written into a home that may be read-only."""
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
    known = [
        (epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None
    ]
    if known:
        marker = "o" if len(known) <= 30 else ""
        axes.plot(
            *zip(*known, strict=True),
            color=colour,
            label=name,
            marker=marker,
            markersize=3,
            linewidth=1.6,
        )


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
    """What fits an axis; a `$` would start mathematics."""
    return (label if len(label) <= 18 else label[:17] + "…").replace("$", r"\$")


def _words(metric: str) -> str:
    return metric.replace("_", " ")
