"""Report of a training run: log lines, report.json, and plots."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from training.data.dataset import BEST_POSSIBLE
from training.evaluation import plots
from training.evaluation.metrics import PRIMARY
from training.manifest import Evaluation, Manifest

if TYPE_CHECKING:
    from training.recipe import Task

# Fields of the manifest that report.json repeats.
FIELDS = ("task", "metrics", "baselines", "evaluation", "data", "hyperparameters", "training")
BASELINES = 3  # most baselines in a table, so that a line fits 120 characters


def write(
    card: Manifest,
    *,
    history: Sequence[Mapping[str, float]],
    outputs: NDArray[Any],
    target: NDArray[Any],
    labels: Sequence[str] = (),
    folders: Sequence[Path],
    search: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a run's report.json and plots into each of `folders`.

    Returns the paths in the first folder. The plots are learning.png and, by task, confusion.png or
    residuals.png. `outputs` and `target` belong to the test part, shaped as `metrics.compute` takes
    them; `search` lists the trials of a hyperparameter search.
    """
    first, *copies = dict.fromkeys(folders)
    first.mkdir(parents=True, exist_ok=True)
    document = {name: card[name] for name in FIELDS if name in card}  # type: ignore[literal-required]
    document |= {"search": search} if search else {}
    text = json.dumps(document | {"history": list(history)}, indent=2, ensure_ascii=False)
    (first / "report.json").write_text(text + "\n", encoding="utf-8")
    paths = [first / "report.json", *_plot(card, history, outputs, target, labels, first)]
    for folder in copies:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(path, folder / path.name)
    return paths


def best_baseline(card: Manifest) -> tuple[str, float] | None:
    """Return the best baseline's name and primary metric from a manifest."""
    primary = PRIMARY[card["task"]]
    scores = {
        name: values[primary.metric]
        for name, values in card["baselines"].items()
        if primary.metric in values and name != BEST_POSSIBLE
    }
    if not scores:
        return None
    name = (max if primary.higher_is_better else min)(scores, key=lambda name: scores[name])
    return name, scores[name]


def lines(card: Manifest) -> list[str]:
    """Format a run's metrics and baselines as table lines for the log.

    Lines about the lead, the groups and the calibration follow. The metric definitions of SageMaker
    jobs (`log_lines.py`) read `test_<metric>=` from it.
    """
    evaluation: Mapping[str, Any] = card.get("evaluation", {})
    baselines = card["baselines"]
    names = sorted(baselines, key=lambda name: _rank(card["task"], name, baselines[name]))
    names = names[:BASELINES]
    rows = [["test", "95 % interval", *names]]
    for metric, value in card["metrics"].items():
        interval = evaluation.get("intervals", {}).get(metric)
        scores = [baselines[name].get(metric) for name in names]
        rows.append(
            [
                f"test_{metric}={value:.4f}",
                "{:.4f} to {:.4f}".format(*interval) if interval else "",
                *("" if score is None else f"{score:.4f}" for score in scores),
            ]
        )
    primary = PRIMARY[card["task"]]
    summary = _summary(card["evaluation"], primary.metric) if "evaluation" in card else []
    return _aligned(rows) + summary


def _plot(
    card: Manifest,
    history: Sequence[Mapping[str, float]],
    outputs: NDArray[Any],
    target: NDArray[Any],
    labels: Sequence[str],
    folder: Path,
) -> list[Path]:
    paths = []
    try:
        if history:
            paths.append(folder / "learning.png")
            plots.learning_curves(history, card["task"], paths[-1], best_baseline(card))
        if card["task"] == "classification":
            paths.append(folder / "confusion.png")
            plots.confusion(outputs, target, labels, paths[-1])
        elif card["task"] == "regression":
            paths.append(folder / "residuals.png")
            plots.residuals(outputs, target, paths[-1])
    except ModuleNotFoundError as missing:
        print(f"no pictures: {missing.name} is not installed", flush=True)
        return [path for path in paths if path.exists()]
    return paths


def _rank(task: Task, name: str, values: Mapping[str, float]) -> tuple[bool, float]:
    """Return a baseline's sort key: `best possible` first, then better scores."""
    primary = PRIMARY[task]
    value = values.get(primary.metric, 0.0)
    return name != BEST_POSSIBLE, -value if primary.higher_is_better else value


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad table cells into lines, first column left-aligned, others right-aligned."""
    first, *rest = zip(*rows, strict=True)
    columns = [_padded(first, str.ljust), *(_padded(column, str.rjust) for column in rest)]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _padded(cells: Sequence[str], justify: Any) -> list[str]:
    width = max(map(len, cells))
    return [justify(cell, width) for cell in cells]


def _summary(evaluation: Evaluation, metric: str) -> list[str]:
    summary = []
    if "lead" in evaluation:
        lead = evaluation["lead"]
        low, high = lead["interval"]
        doubt = "; it may be none" if low <= 0 <= high else "; it is worse" if high < 0 else ""
        interval = f"({low:+.4f} to {high:+.4f}{doubt})"
        summary.append(f"{metric}: {lead['by']:+.4f} over {lead['over']} {interval}")
    if "groups" in evaluation:
        groups = evaluation["groups"]
        worst, best = groups["worst"][0], groups["best"][0]
        summary.append(
            f"{groups['count']} test groups by {groups['by']}: "
            f"worst {worst['group']} {worst[metric]:.4f} ({worst['rows']} rows), "
            f"best {best['group']} {best[metric]:.4f}"
        )
    if "calibration" in evaluation:
        summary.append(_calibration_line(evaluation["calibration"]))
    return summary


def _calibration_line(calibration: Mapping[str, Any]) -> str:
    line = f"expected calibration error {calibration['expected_error']:.4f}"
    if "temperature" not in calibration:
        return line
    before, temperature = calibration["expected_error_before"], calibration["temperature"]
    return f"{line}, {before:.4f} before temperature {temperature:.2f}"
