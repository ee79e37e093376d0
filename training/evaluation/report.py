"""The end of a run: a few lines to read, report.json, and pictures beside the model and in the job's output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from training.evaluation import metrics, plots
from training.evaluation.baselines import BEST_POSSIBLE
from training.manifest import Evaluation, Manifest

if TYPE_CHECKING:
    from training.recipe import Task

KEPT = ("task", "metrics", "baselines", "evaluation", "data", "hyperparameters", "training")
BESIDE = 3  # baselines in the table


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
    """report.json, learning.png and confusion.png or residuals.png in each of `folders`; the paths in the first.

    `outputs` and `target` are those of the test part, as `evaluate.metrics` takes them; `search` is what a search for
    hyperparameters tried.
    """
    first, *others = dict.fromkeys(folders)
    first.mkdir(parents=True, exist_ok=True)
    document = {name: card[name] for name in KEPT if name in card}  # type: ignore[literal-required]
    document |= {"search": search} if search else {}
    text = json.dumps(document | {"history": list(history)}, indent=2, ensure_ascii=False)
    (first / "report.json").write_text(text + "\n", encoding="utf-8")
    made = [first / "report.json", *_draw(card, history, outputs, target, labels, first)]
    for folder in others:
        folder.mkdir(parents=True, exist_ok=True)
        for path in made:
            shutil.copyfile(path, folder / path.name)
    return made


def _draw(
    card: Manifest,
    history: Sequence[Mapping[str, float]],
    outputs: NDArray[Any],
    target: NDArray[Any],
    labels: Sequence[str],
    folder: Path,
) -> list[Path]:
    made = []
    try:
        if history:
            made.append(folder / "learning.png")
            plots.learning_curves(history, card["task"], made[-1], best_baseline(card))
        if card["task"] == "classification":
            made.append(folder / "confusion.png")
            plots.confusion(outputs, target, labels, made[-1])
        elif card["task"] == "regression":
            made.append(folder / "residuals.png")
            plots.residuals(outputs, target, made[-1])
    except ModuleNotFoundError as missing:
        print(f"no pictures: {missing.name} is not installed", flush=True)
        return [path for path in made if path.exists()]
    return made


def best_baseline(card: Manifest) -> tuple[str, float] | None:
    """Name and primary metric of the baseline that is hardest to beat."""
    primary = metrics.PRIMARY[card["task"]]
    reached = {
        name: values[primary.metric]
        for name, values in card["baselines"].items()
        if primary.metric in values and name != BEST_POSSIBLE
    }
    if not reached:
        return None
    name = (max if primary.higher_is_better else min)(reached, key=lambda one: reached[one])
    return name, reached[name]


def lines(card: Manifest) -> list[str]:
    """The result beside the baselines, one line a metric (job.py's metric definitions know `test_<metric>=`), then how
    sure it is and whom it serves worst."""
    primary = metrics.PRIMARY[card["task"]]
    found: Mapping[str, Any] = card.get("evaluation", {})
    names = sorted(
        card["baselines"], key=lambda name: _rank(card["task"], name, card["baselines"][name])
    )[:BESIDE]
    head = ["test", "95 % interval", *names]
    rows = [head]
    for metric, value in card["metrics"].items():
        low, high = found.get("intervals", {}).get(metric, (None, None))
        beside = [card["baselines"][name].get(metric) for name in names]
        rows.append(
            [
                f"test_{metric}={value:.4f}",
                f"{low:.4f} to {high:.4f}" if low is not None else "",
                *(f"{one:.4f}" if one is not None else "" for one in beside),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return table + (_told(card["evaluation"], primary.metric) if "evaluation" in card else [])


def _rank(task: Task, name: str, values: Mapping[str, float]) -> tuple[bool, float]:
    """Best first, and what nothing can beat before all."""
    primary = metrics.PRIMARY[task]
    value = values.get(primary.metric, 0.0)
    return name != BEST_POSSIBLE, -value if primary.higher_is_better else value


def _told(evaluation: Evaluation, metric: str) -> list[str]:
    told = []
    if "lead" in evaluation:
        lead = evaluation["lead"]
        low, high = lead["interval"]
        sure = "" if low > 0 else "; it may be none"
        told.append(
            f"{metric}: {lead['by']:+.4f} over {lead['over']} ({low:+.4f} to {high:+.4f}{sure})"
        )
    if "groups" in evaluation:
        groups = evaluation["groups"]
        worst, best = groups["worst"][0], groups["best"][0]
        told.append(
            f"{groups['count']} test groups by {groups['by']}: worst {worst['group']} {worst[metric]:.4f} "
            f"({worst['rows']} rows), best {best['group']} {best[metric]:.4f}"
        )
    if "calibration" in evaluation:
        found = evaluation["calibration"]
        before = ""
        if "temperature" in found:
            before = f", {found['expected_error_before']:.4f} before temperature {found['temperature']:.2f}"
        told.append(f"expected calibration error {found['expected_error']:.4f}{before}")
    return told
