"""Training from Python, as in a notebook, and a run repeated from its run.yaml."""

import errno
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import training
from training.data import Examples, split
from training.errors import InvalidCheckpoint, InvalidHyperparameter, InvalidRecipe
from training.fitting import checkpoint
from training.fitting.distributed import Ranks
from training.fitting.progress import Progress
from training.recipe import NetworkHyperparameters, Recipe
from training.runs import trackers
from training.runs.trackers import Tracker

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised by the exporters
]


@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    epochs: int = 2
    hidden: int = 4


def rows(_: object, knobs: Knobs) -> Any:
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    return split(
        Examples({"x": x}, (x[:, 0] > 0).astype(np.int64)), source="made", sha256="0",
        labels=("no", "yes"),
    )  # fmt: skip


CELL = Recipe(
    name="cell",
    description="A recipe that was written in a notebook.",
    task="classification",
    hyperparameters=Knobs,
    data=rows,
    model=lambda knobs: torch.nn.Sequential(
        torch.nn.Linear(3, knobs.hidden), torch.nn.ReLU(), torch.nn.Linear(knobs.hidden, 2)
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cell")


@pytest.fixture(scope="module")
def result(folder: Path) -> Any:
    epochs: list[float] = []
    result = training.run(
        CELL, model_dir=folder, callbacks=[lambda row: epochs.append(row["epoch"])], hidden=6
    )
    assert epochs == [1, 2]
    return result


def test_a_recipe_of_a_notebook_trains_and_predicts(result: Any, folder: Path) -> None:
    assert result.path == folder / "model.onnx"
    assert result.card["hyperparameters"]["hidden"] == 6
    assert result.metrics == result.card["metrics"]
    assert [row["epoch"] for row in result.history] == [1, 2]
    answers = result.predict({"x": np.zeros((5, 3), np.float32)})
    assert answers["probabilities"].shape == (5, 2)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert "hidden: 6" in (folder / "run.yaml").read_text()


def test_a_wrong_setting_is_an_error_and_no_exit(tmp_path: Path) -> None:
    with pytest.raises(InvalidHyperparameter, match="did you mean 'hidden'"):
        training.run(CELL, model_dir=tmp_path, hiden=3)
    with pytest.raises(InvalidRecipe, match="save it as a .py file"):
        training.run(CELL, model_dir=tmp_path, options=["--tune", "2", "--parallel", "2"])


@pytest.mark.parametrize("file", [None, Path(__file__)], ids=["a cell's", "a changed file's"])
@pytest.mark.parametrize("search", [[], ["--tune", "2"]], ids=["training", "search"])
def test_no_checkpoint_stands_in_for_a_recipe_that_cannot_be_compared(
    tmp_path: Path, file: Path | None, search: list[str]
) -> None:
    changed = replace(CELL, class_weights="balanced", file=file)
    options = [*search, "--checkpoint-dir", str(tmp_path / "state")]

    with pytest.raises(InvalidRecipe, match=r"save it as a \.py file and give its path"):
        training.run(changed, model_dir=tmp_path, options=options)
    assert not (tmp_path / "state").exists()


def test_a_callback_may_end_the_run(tmp_path: Path) -> None:
    def end(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(CELL, model_dir=tmp_path, callbacks=[end])


class Recorder:
    """Tracker and its place, which keep the calls of a run; `broken` ones raise."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[str] = []
        self.broken = broken

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        self._call(f"start {label} {settings['seed']}")
        return self

    def epoch(self, row: Any) -> None:
        self._call(f"epoch {row['epoch']:.0f}")

    def end(self, state: str, metrics: Any, files: Any, reason: str) -> None:
        self._call(f"end {state} {'test_accuracy' in metrics} {len(files) > 0}")

    def close(self, state: str) -> None:
        self._call(f"close {state}")

    def _call(self, call: str) -> None:
        self.calls.append(call)
        if call.startswith(self.broken or "-"):
            raise ConnectionError("the server\nis gone")


def track(monkeypatch: pytest.MonkeyPatch, *recorders: Recorder) -> None:
    backends = {f"place {number}": lambda r=r: r for number, r in enumerate(recorders)}
    monkeypatch.setattr(trackers, "open_runs", lambda *_, **__: trackers.Runs(backends))


@pytest.mark.parametrize("fails", [False, True])
def test_trackers_learn_of_a_failure_after_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    recorder = Recorder()
    track(monkeypatch, recorder)
    if fails:
        (tmp_path / "model.onnx").mkdir()  # where the file should be written

    with pytest.raises(OSError) if fails else nullcontext():  # noqa: PT011  (depends on the system)
        training.run(CELL, model_dir=tmp_path)

    ends = ["end failed False False", "close failed"] if fails else []
    assert recorder.calls == [
        "start model 0", "epoch 1", "epoch 2",
        *(ends or ["end complete True True", "close complete"]),
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["start", "epoch", "end", "close"])
def test_a_tracker_that_fails_is_warned_of_once_and_others_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
) -> None:
    bad, good = Recorder(broken), Recorder()
    track(monkeypatch, bad, good)

    training.run(CELL, model_dir=tmp_path, options=["--seeds", "2"])

    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: place 0 fails, and logs no more of this run: ConnectionError: the server is gone"
    ]
    failed_at = next(at for at, call in enumerate(bad.calls) if call.startswith(broken))
    ends = {"start": [], "epoch": ["end complete False False"], "end": [], "close": []}[broken]
    closes = [] if broken == "close" else ["close complete"]  # nothing stays open at the server
    assert bad.calls[failed_at + 1 :] == [*ends, *closes]
    epochs = ["epoch 1", "epoch 2"]
    assert good.calls == [
        "start seed-0 0", *epochs, "end complete True False",
        "start seed-1 1", *epochs, "end complete True False",
        "start model 0", *epochs, "end complete True True", "close complete",
    ]  # fmt: skip


OWN = """
from tests.unit.training.runs import test_notebook
from training.recipe import Recipe
recipe = test_notebook.CELL
"""


def test_a_run_is_repeated_from_its_file_and_changed_code_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    first, again = tmp_path / "first", tmp_path / "again"

    made = training.run(own, model_dir=first, hidden=5, seed=3)
    file = ["--config", str(first / "run.yaml")]
    from training.train import main

    assert main([*file, "--model-dir", str(again)], {}) == 0
    assert "results may differ" not in capsys.readouterr().out
    weights = [
        sorted(tensor.raw_data for tensor in onnx.load(path / "model.onnx").graph.initializer)
        for path in (first, again)
    ]
    assert weights[0] == weights[1]
    assert made.card["hyperparameters"]["seed"] == 3

    own.write_text(OWN + "CHANGED = 1\n")
    assert main([*file, "--model-dir", str(again)], {}) == 0
    assert "warning: the recipe's code is not that of the run" in capsys.readouterr().out


def test_progress_stays_on_one_line_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    progress = Progress(0, 4, Ranks())
    row = {"epoch": 1, "loss": 0.5, "validation_loss": 0.25, "examples_per_s": 10.0}

    progress.epoch(row, 2, 2)
    progress.epoch(row | {"epoch": 2}, 2, 4)

    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("\repoch 1/2")
    assert out.rstrip().endswith("left=0s")


def test_importing_the_package_imports_no_torch() -> None:
    import subprocess

    code = "import sys, training, training.recipe; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("option", ["--model-dir", "--checkpoint-dir"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.train import main

    own, file = tmp_path / "own.py", tmp_path / "file"
    own.write_text(OWN)
    file.write_text("")

    assert main([str(own), option, str(file / "folder")], {}) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {option} {file}/folder: nothing can be written there")
    assert "epoch" not in out.replace("epochs=", "")


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"epoch": 1})

    def full(_state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(InvalidCheckpoint, match="No space left on device.*the one before stays"):
        checkpoint.save(tmp_path, {"epoch": 2})

    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    assert torch.load(tmp_path / checkpoint.FILE) == {"epoch": 1}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], "nothing is kept; with --checkpoint-dir DIR"),
        (["--checkpoint-dir", "s"], "resumes from"),
    ],
)
def test_ctrl_c_says_what_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    kept: str,
) -> None:
    from training import train

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.chdir(tmp_path)

    assert train.main(["logistic", *options], {}) == 130
    assert kept in capsys.readouterr().err


def test_a_time_limit_is_above_zero(capsys: pytest.CaptureFixture[str]) -> None:
    from training.train import parse

    with pytest.raises(SystemExit):
        parse(["mlp", "--max-runtime", "-1"])
    assert "-1 is not above 0" in capsys.readouterr().err
