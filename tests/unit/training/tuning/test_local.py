"""Local search: judged on the validation part alone, pruned, resumed, and run in processes."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from optuna.trial import TrialState

from training import train
from training.data import Dataset, Examples
from training.errors import Diverged, TrainingError
from training.fitting import trainer
from training.fitting.checkpoint import Interrupted, Stop
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe
from training.recipe_loading import load
from training.tuning.local import ProcessTrial, read_log, run_processes, run_serial
from training.tuning.space import Search, make_space
from training.tuning.study import Study

pytestmark = pytest.mark.train
CPU = torch.device("cpu")
GOOD, BAD = (0.02, 0.03, 0.04, 0.05, 0.06), (1e-6, 1e-5, 1e-4)


@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    epochs: int = 6
    lr: float = 0.03


def make_data() -> Dataset:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((260, 3), np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5], np.float32))[:, None]
    parts = [
        Examples({"x": x[rows]}, y[rows])
        for rows in (slice(0, 200), slice(200, 230), slice(230, 260))
    ]
    return Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]


def load_data(_settings: Any) -> Dataset:
    return make_data()


RECIPE = Recipe(
    name="line",
    description="A line.",
    task="regression",
    hyperparameters=Knobs,
    data=make_data,
    model=lambda: torch.nn.Linear(3, 1),
    search={"lr": GOOD + BAD},
)


def make_study(folder: Path | None = None) -> Study:
    return Study(Search(RECIPE, Knobs(), make_space(RECIPE), "grid", limit=8), folder)


def summary(study: Study) -> list[Any]:
    return [
        (trial.number, study.settings(trial), trial.state, trial.value, trial.intermediate_values)
        for trial in study.trials
    ]


def learns(study: Study, number: int) -> bool:
    return study.settings(study.trials[number])["lr"] in GOOD


@pytest.fixture(scope="module")
def whole() -> Study:
    return run_serial(make_study(), load_data, device=CPU)


def test_the_best_trial_learns(whole: Study) -> None:
    complete = [trial for trial in whole.trials if trial.state is TrialState.COMPLETE]

    assert len(whole.trials) == 8
    assert learns(whole, whole.best.number)
    assert whole.best.value == min(trial.value or 9.0 for trial in complete)


def test_weak_trials_stop_after_their_third_epoch(whole: Study) -> None:
    """Once four trials are complete; until then every trial has all of its six epochs."""
    complete = 0
    for trial in whole.trials:
        pruned = trial.state is TrialState.PRUNED
        if complete < 4:
            assert (trial.last_step, pruned) == (6, False), trial
        elif not learns(whole, trial.number):
            assert (trial.last_step, pruned) == (3, True), trial
        else:
            assert (trial.last_step or 0) < 6 if pruned else trial.last_step == 6
        complete += trial.state is TrialState.COMPLETE
    pruned_numbers = [trial.number for trial in whole.trials if trial.state is TrialState.PRUNED]
    assert any(not learns(whole, number) for number in pruned_numbers)


def test_the_value_is_the_metric_on_the_validation_part(whole: Study) -> None:
    settings = Knobs(lr=whole.settings(whole.best)["lr"])
    trained = trainer.fit(RECIPE, settings, make_data(), device=CPU)

    assert whole.best.value == trained.measure(make_data().validation)[0]["rmse"]


def test_trials_never_see_the_test_part(whole: Study) -> None:
    data = make_data()
    poison = Examples(
        {"x": np.full_like(data.test.inputs["x"], np.nan)}, np.full_like(data.test.target, np.nan)
    )
    parts = []

    def fit(recipe: Any, settings: Any, dataset: Dataset, **more: Any) -> Any:
        parts.append(dataset.test)
        return trainer.fit(recipe, settings, dataset, **more)

    study = run_serial(make_study(), lambda _: replace(data, test=poison), device=CPU, fit=fit)

    assert summary(study) == summary(whole)
    assert all(part is data.validation for part in parts)


class StopAt(Stop):
    """SIGTERM that arrives before the given question whether to stop."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("questions", "states"),
    [(0, [TrialState.RUNNING]), (25, [TrialState.COMPLETE, TrialState.RUNNING]),
     (30, [TrialState.COMPLETE, TrialState.RUNNING])],
    ids=["before the first trial", "before the second", "inside the second"],
)  # fmt: skip
def test_an_interrupted_search_is_resumed_to_the_same_end(
    questions: int, states: list[TrialState], whole: Study, tmp_path: Path
) -> None:
    interrupted = make_study(tmp_path)
    with pytest.raises(Interrupted):
        run_serial(interrupted, load_data, device=CPU, stop=StopAt(questions))
    assert [trial.state for trial in interrupted.trials] == states
    resumed = run_serial(make_study(tmp_path), load_data, device=CPU)

    assert summary(resumed) == summary(whole)
    assert list((tmp_path / "trials").glob("*")) == []


def test_a_failed_trial_does_not_end_a_search() -> None:
    def fit(recipe: Any, settings: Knobs, data: Dataset, **more: Any) -> Any:
        if settings.lr == 0.03:
            raise Diverged("the loss is nan in epoch 1")
        return trainer.fit(recipe, settings, data, **more)

    study = run_serial(make_study(), load_data, device=CPU, fit=fit)

    failed = [trial for trial in study.trials if trial.state is TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in failed] == ["the loss is nan in epoch 1"]


def test_an_error_of_the_recipe_fails_its_trial_alone() -> None:
    def fit(recipe: Any, settings: Knobs, data: Dataset, **more: Any) -> Any:
        if settings.lr == 0.02:
            raise ZeroDivisionError("division\nby zero")
        return trainer.fit(recipe, settings, data, **more)

    study = run_serial(make_study(), load_data, device=CPU, fit=fit)

    [failed] = [trial for trial in study.trials if trial.state is TrialState.FAIL]
    assert failed.user_attrs["reason"] == "ZeroDivisionError: division by zero"


def test_a_diverging_trial_fails_and_the_search_goes_on() -> None:
    """The last update makes the weights infinite: the mean loss of the epoch is still finite."""
    recipe = replace(RECIPE, search={"lr": (1e30, 0.03)})
    settings = Knobs(epochs=1, batch_size=200, warm_up=0.0)
    search = Search(recipe, settings, make_space(recipe), "grid", limit=2)

    study = run_serial(Study(search), load_data, device=CPU)

    states = [(trial.state, trial.user_attrs.get("reason", "")) for trial in study.trials]
    assert states[0] == (TrialState.COMPLETE, "")
    assert states[1][0] is TrialState.FAIL
    assert states[1][1].startswith("diverged: the validation loss is ")


def test_a_search_ends_when_every_trial_fails() -> None:
    def fit(*_: Any, **__: Any) -> Any:
        raise Diverged("the loss is nan in epoch 1")

    with pytest.raises(TrainingError, match="3 of 3 trials failed: the loss is nan in epoch 1"):
        run_serial(make_study(), load_data, device=CPU, fit=fit)


LOGS = {
    "classification": (
        "epoch 1/2  loss=0.5  validation_loss=0.4  validation_accuracy=0.75  rate=9/s  left=1s\n"
        "epoch 2/2  loss=0.4  validation_loss=0.3  validation_accuracy=0.8  rate=9/s  left=0s\n"
        "validation_accuracy=0.8125\n"
    ),
    "generation": (
        "epoch 1/2  loss=0.5  validation_loss=0.75  rate=9/s\n"
        "epoch 2/2  loss=0.4  validation_loss=0.8\n"
        "validation_bits_per_byte=0.8125\n"
    ),
}


@pytest.mark.parametrize("task", LOGS)
def test_scores_and_value_are_read_from_the_output_of_a_process(task: str) -> None:
    recipe: Any = replace(RECIPE, task=task)  # type: ignore[arg-type]
    search = Search(recipe, Knobs(), make_space(recipe), "grid", limit=8)

    assert read_log(search, LOGS[task]) == ({1: 0.75, 2: 0.8}, 0.8125)


OWN = """
from dataclasses import dataclass
import numpy as np
from sklearn.linear_model import Ridge
from training.data import Examples, split
from training.recipe import Hyperparameters, Range, Recipe

@dataclass(frozen=True)
class Knobs(Hyperparameters):
    strength: float = 1000.0

def data():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((120, 3)).astype(np.float32)
    y = (x @ [1.0, 2.0, 3.0])[:, None].astype(np.float32)
    return split(Examples({"x": x}, y), source="made", sha256="0")

recipe = Recipe(name="own", description="A line.", task="regression", hyperparameters=Knobs,
                data=data, model=lambda h: Ridge(h.strength),
                search={"strength": Range(1e-3, 1e3, log=True)})
"""


def read_report(folder: Path) -> Mapping[str, Any]:
    report: Mapping[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_reading_a_trials_output_does_not_move_the_place_where_it_writes() -> None:
    search = make_study().search
    trial = ProcessTrial(search, [sys.executable, "-c", "import time; time.sleep(600)"], {})
    file = trial._output.fileno()
    try:
        os.write(file, b"180 to test\n")  # as the process does: it shares the position
        os.lseek(file, 3, os.SEEK_SET)

        assert trial.status().state is TrialState.RUNNING
        assert os.lseek(file, 0, os.SEEK_CUR) == 3
    finally:
        trial.close()


@pytest.mark.filterwarnings("ignore")
def test_the_best_settings_are_trained_and_the_report_lists_the_trials(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(own), "--tune", "4", "--search", "grid", "--model-dir", str(tmp_path / "made")]

    assert train.main(arguments, {}) == 0
    report = read_report(tmp_path / "made")

    tried = report["search"]["tried"]
    assert report["search"]["best"] == {"strength": 0.001}
    assert report["hyperparameters"]["strength"] == 0.001
    assert [row["settings"]["strength"] for row in tried] == [0.001, 0.1, 10.0, 1000.0]
    assert [row["state"] for row in tried] == ["complete"] * 4
    out = capsys.readouterr().out
    assert "grid search over strength: 4 complete" in out
    assert out.index("strength=0.001") < out.index("exporting")


@pytest.mark.parametrize("option", ["--tune", "--parallel"])
def test_numbers_of_trials_are_above_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["mlp", option, "0"], {})

    assert f"argument {option}: 0 is below 1" in capsys.readouterr().err


def test_a_hyperparameter_that_is_set_is_not_searched(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(own), "--tune", "4", "--set", "strength=1"], {}) == 1

    assert "nothing to search: all of it is set" in capsys.readouterr().err


@pytest.mark.slow
def test_trials_in_processes_reach_the_same_values(own: Path, tmp_path: Path) -> None:
    arguments = [str(own), "--tune", "2", "--parallel", "2", "--device", "cpu", "--set", "seed=5"]
    arguments += ["--checkpoint-dir", "unused"]  # the folder of the search, not of its trials
    options = train.parser().parse_args(arguments)
    recipe = load(str(own))
    space = make_space(recipe, fixed=["seed"])
    search = Search(recipe, recipe.hyperparameters(seed=5), space, "random", limit=2)
    serial, parallel = Study(search, tmp_path / "serial"), Study(search, tmp_path / "parallel")
    run_serial(serial, lambda _: recipe.data(), device=CPU)
    run_processes(parallel, options, {"PATH": os.environ["PATH"]}, Stop())

    for ours, theirs in zip(serial.trials, parallel.trials, strict=True):
        assert serial.settings(ours) == parallel.settings(theirs)
        assert ours.state is theirs.state is TrialState.COMPLETE
        assert ours.value == pytest.approx(theirs.value, rel=1e-6)
    assert not (tmp_path / "parallel" / "trials").exists()


def test_a_search_out_of_time_leaves_time_for_the_final_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit = Stop()
    limit.deadline = time.monotonic() + 1e6
    deadlines: list[float] = []

    def fit(*arguments: Any, stop: Stop, **more: Any) -> Any:
        deadlines.append(stop.deadline)
        if len(deadlines) == 2:
            limit.deadline = time.monotonic()
        return trainer.fit(*arguments, **more)

    study = run_serial(make_study(), load_data, device=CPU, stop=limit, fit=fit)

    assert deadlines[0] < time.monotonic() + 0.6e6
    assert len(study.ended) == len(study.trials) == 2
    assert "time limit: 2 of 8 trials are done" in capsys.readouterr().out
