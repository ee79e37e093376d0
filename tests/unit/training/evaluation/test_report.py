"""Report of a run: printed lines, report.json, and the numbers in the plots."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import log_lines
from training.data import Dataset, Examples, split
from training.evaluation import plots, report
from training.evaluation.evaluate import evaluate, evaluate_baselines
from training.evaluation.metrics import compute

pytestmark = pytest.mark.train
PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = [
    {
        "epoch": epoch,
        "loss": 1 / epoch,
        "validation_loss": 1.5 / epoch,
        "validation_accuracy": 1 - 1 / epoch,
    }
    for epoch in range(1, 6)
]


def classified(groups: int = 0) -> tuple[Any, Dataset]:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 3, 400)
    x = generator.normal(size=(400, 4)).astype(np.float32)
    named = np.array([f"s{row % groups}" for row in range(400)]) if groups else None
    examples = Examples({"x": x}, target, named)
    data = split(
        examples,
        source="made",
        sha256="0",
        by="speaker" if groups else "row",
        labels=["a", "b", "$c"],
    )
    outputs = (
        np.eye(3)[data.test.target] * 0.6 + generator.dirichlet(np.ones(3), len(data.test)) * 0.4
    )
    return outputs, data


def card(task: Any, outputs: Any, data: Dataset) -> Any:
    return {
        "task": task,
        "metrics": compute(task, outputs, data.test),
        "baselines": evaluate_baselines(task, data),
        "evaluation": evaluate(task, outputs, data),
        "data": {"source": data.source},
        "hyperparameters": {},
        "training": {},
        "samples": ["not in the report"],
    }


def size(path: Path) -> tuple[int, int]:
    raw = path.read_bytes()
    assert raw.startswith(PNG)
    return int.from_bytes(raw[16:20]), int.from_bytes(raw[20:24])


def test_a_classifiers_report_and_plots_are_in_both_folders(tmp_path: Path) -> None:
    outputs, data = classified()
    folders = [tmp_path / "model", tmp_path / "output"]

    made = report.write(
        card("classification", outputs, data),
        history=HISTORY,
        outputs=outputs,
        target=data.test.target,
        labels=data.labels,
        folders=folders,
    )

    assert [path.name for path in made] == ["report.json", "learning.png", "confusion.png"]
    for folder in folders:
        document = json.loads((folder / "report.json").read_text())
        assert document["history"] == HISTORY
        assert document["evaluation"]["intervals"]["accuracy"]
        assert "samples" not in document
        assert min(size(folder / "learning.png") + size(folder / "confusion.png")) > 300


def test_a_regressions_report_has_its_residuals(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(size=300)
    data = split(Examples({"x": y[:, None]}, y), source="made", sha256="0")
    outputs = data.test.target + generator.normal(size=len(data.test)) * 0.1

    made = report.write(
        card("regression", outputs, data),
        history=[],
        outputs=outputs,
        target=data.test.target,
        folders=[tmp_path],
    )

    assert [path.name for path in made] == ["report.json", "residuals.png"]
    assert min(size(tmp_path / "residuals.png")) > 300


def test_plots_show_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    figure = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: drawn.append(figure(*size)) or drawn[-1])
    outputs, data = classified()

    plots.learning_curves(HISTORY, "classification", tmp_path / "l.png", ("majority class", 0.4))
    plots.confusion(outputs, data.test.target, data.labels, tmp_path / "c.png")
    plots.residuals(np.array([1.0, 2, 4]), np.array([1.0, 2, 3]), tmp_path / "r.png")

    learning, confusion, residuals = drawn
    assert [list(line.get_ydata()) for line in learning.axes[0].lines] == [
        [row["loss"] for row in HISTORY],
        [row["validation_loss"] for row in HISTORY],
    ]
    assert set(learning.axes[1].lines[1].get_ydata()) == {0.4}
    written = {text.get_position(): int(text.get_text()) for text in confusion.axes[0].texts}
    counts = plots.confusion_counts(outputs, data.test.target)
    assert written == {(column, row): counts[row, column] for row, column in np.argwhere(counts)}
    assert [text.get_text() for text in confusion.axes[0].get_xticklabels()] == ["a", "b", r"\$c"]
    assert sorted(residuals.axes[0].lines[1].get_ydata()) == [1, 2, 4]


def test_many_classes_and_points_keep_a_plot_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 500, 5000)

    plots.confusion(
        np.eye(500)[generator.permutation(target)],
        target,
        [f"label {n}" for n in range(500)],
        tmp_path / "c.png",
    )
    plots.residuals(
        generator.normal(size=200_000), generator.normal(size=200_000), tmp_path / "r.png"
    )

    assert (tmp_path / "c.png").stat().st_size + (tmp_path / "r.png").stat().st_size < 400_000


def test_plots_need_no_home_and_leave_no_files(tmp_path: Path) -> None:
    """A training container's user may have no home that can be written."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    code = (
        "import sys; from pathlib import Path; from training.evaluation import plots\n"
        "plots.learning_curves([{'epoch': 1, 'loss': 1.0}], 'regression', Path(sys.argv[1]))"
    )
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MPLCONFIGDIR", "XDG_CACHE_HOME")
    }

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "l.png"],
        env=clean | {"HOME": str(home), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert min(size(tmp_path / "l.png")) > 300
    assert [*home.iterdir(), *temporary.iterdir()] == []


def test_the_report_is_written_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outputs, data = classified()

    made = report.write(
        card("classification", outputs, data),
        history=HISTORY, outputs=outputs, target=data.test.target, folders=[tmp_path],
    )  # fmt: skip

    assert [path.name for path in made] == ["report.json"]
    assert "no pictures: matplotlib" in capsys.readouterr().out


def test_lines_show_metric_interval_baseline_lead_and_groups() -> None:
    outputs, data = classified(groups=12)
    made = card("classification", outputs, data)

    lines = report.lines(made)

    assert lines[0].split("  ")[0] == "test"
    low, high = made["evaluation"]["intervals"]["accuracy"]
    for part in (
        f"test_accuracy={made['metrics']['accuracy']:.4f}",
        f"{low:.4f} to {high:.4f}",
        f"{made['baselines']['majority class']['accuracy']:.4f}",
    ):
        assert part in lines[1]
    assert any(line.startswith("accuracy: +") and " over " in line for line in lines)
    assert any("test groups by speaker: worst s" in line for line in lines)
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("by", "interval", "verdict"),
    [
        (0.1, [0.02, 0.2], "(+0.0200 to +0.2000)"),
        (0.1, [0.0, 0.2], "(+0.0000 to +0.2000; it may be none)"),
        (-0.1, [-0.2, 0.05], "(-0.2000 to +0.0500; it may be none)"),
        (-0.1, [-0.2, -0.05], "(-0.2000 to -0.0500; it is worse)"),
    ],
)
def test_the_verdict_on_a_lead_is_that_of_its_interval(
    by: float, interval: list[float], verdict: str
) -> None:
    made = {
        "task": "regression",
        "metrics": {"rmse": 1.0},
        "baselines": {"mean": {"rmse": 1.0 + by}},
        "evaluation": {"lead": {"over": "mean", "by": by, "interval": interval}},
    }

    assert report.lines(made)[-1].endswith(f"over mean {verdict}")  # type: ignore[arg-type]


def test_a_lead_whose_interval_includes_zero_is_marked() -> None:
    made = {
        "task": "regression",
        "metrics": {"rmse": 1.0},
        "baselines": {
            "mean": {"rmse": 1.1},
            "median": {"rmse": 1.2},
            "best possible": {"rmse": 0.9},
        },
        "evaluation": {"lead": {"over": "mean", "by": 0.1, "interval": [-0.05, 0.2]}},
    }

    lines = report.lines(made)  # type: ignore[arg-type]

    assert lines[0].split() == ["test", "95", "%", "interval", "best", "possible", "mean", "median"]
    assert lines[1].split() == ["test_rmse=1.0000", "0.9000", "1.1000", "1.2000"]
    assert lines[2] == "rmse: +0.1000 over mean (-0.0500 to +0.2000; it may be none)"
    assert report.best_baseline(made) == ("mean", 1.1)  # type: ignore[arg-type]


def test_the_jobs_metric_definitions_read_the_report() -> None:
    import re

    outputs, data = classified()
    text = "\n".join(report.lines(card("classification", outputs, data)))

    assert re.search(log_lines.metrics("classification")["test:accuracy"], text)
