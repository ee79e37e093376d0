"""A search here and elsewhere: judged on the validation part alone, cut short where it is hopeless, resumed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from training import pipeline, train
from training.data import Dataset, Examples
from training.errors import Diverged, InvalidCheckpoint, TrainingError
from training.fitting.checkpoint import Interrupted, Stop
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe
from training.recipe_loading import load
from training.tuning import study as tune
from training.tuning.samplers import Trial
from training.tuning.study import Look, Study

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


RECIPE = Recipe(name="line", description="A line.", task="regression", hyperparameters=Knobs, data=make_data,
                model=lambda: torch.nn.Linear(3, 1), search={"lr": GOOD + BAD})  # fmt: skip


def make_study(folder: Path | None = None, **changes: Any) -> Study:
    options: dict[str, Any] = {"fixed": (), "kind": "grid", "limit": 8, "folder": folder, **changes}
    return Study(RECIPE, Knobs(), **options)


def summary(study: Study) -> list[Any]:
    return [(one.number, one.settings, one.state, one.value, one.values) for one in study.trials]


@pytest.fixture(scope="module")
def whole() -> Study:
    return tune.here(make_study(), lambda _: make_data(), device=CPU)


def test_the_best_is_one_that_learns(whole: Study) -> None:
    assert whole.best.settings["lr"] in GOOD
    assert whole.best.value == min(one.value for one in whole.trials if one.value is not None)
    assert len(whole.trials) == 8


def test_what_leads_nowhere_is_stopped_early(whole: Study) -> None:
    """Once four were complete: each that does not learn, after the three epochs that every trial has."""
    complete = 0
    for trial in whole.trials:
        hopeless = trial.settings["lr"] in BAD and complete >= 4
        assert max(trial.values) == (
            3 if hopeless else max(trial.values) if trial.state == "pruned" else 6
        ), trial
        assert trial.state == "pruned" if hopeless else complete >= 4 or trial.state == "complete"
        complete += trial.state == "complete"
    pruned = [trial for trial in whole.trials if trial.state == "pruned"]
    assert any(trial.settings["lr"] in BAD for trial in pruned)
    assert all(max(trial.values) < 6 and trial.value is None for trial in pruned)


def test_the_value_is_the_metric_on_the_validation_part(whole: Study) -> None:
    run = pipeline.fit(RECIPE, Knobs(lr=whole.best.settings["lr"]), make_data(), device=CPU)

    assert (
        whole.best.value == pipeline.measure(RECIPE, run.run, make_data().validation, ())[0]["rmse"]
    )


def test_the_test_part_is_never_seen(whole: Study) -> None:
    data = make_data()
    poison = Examples(
        {"x": np.full_like(data.test.inputs["x"], np.nan)}, np.full_like(data.test.target, np.nan)
    )
    parts = []

    def fit(recipe: Any, settings: Any, given: Dataset, **more: Any) -> Any:
        parts.append(given.test)
        return pipeline.fit(recipe, settings, given, **more)

    study = tune.here(make_study(), lambda _: replace(data, test=poison), device=CPU, fit=fit)

    assert summary(study) == summary(whole)
    assert all(part is data.validation for part in parts)


class StopAt(Stop):
    """SIGTERM arrives before look number `looks`."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("looks", "state"), [(0, None), (25, "complete"), (30, "running")])
def test_an_interrupted_search_goes_on_to_the_same_end(
    looks: int, state: str | None, whole: Study, tmp_path: Path
) -> None:
    """Before the first trial, before the second, and in the middle of that one, which goes on where it was."""
    with pytest.raises(Interrupted):
        tune.here(make_study(tmp_path), lambda _: make_data(), device=CPU, stop=StopAt(looks))
    begun = json.loads((tmp_path / "study.json").read_text())["trials"] if looks else []
    resumed = tune.here(make_study(tmp_path), lambda _: make_data(), device=CPU)

    assert (begun[-1]["state"] if begun else None) == state
    assert all(one["state"] == "complete" for one in begun[:-1])
    assert summary(resumed) == summary(whole)
    assert list((tmp_path / "trials").glob("*")) == []


def test_a_search_that_is_over_is_not_made_again(whole: Study, tmp_path: Path) -> None:
    tune.here(make_study(tmp_path, limit=3, kind="random"), lambda _: make_data(), device=CPU)
    more = make_study(tmp_path, limit=4, kind="random")

    def fit(*_: Any, **__: Any) -> Any:
        raise Diverged("a fourth")

    assert len(more.trials) == 3
    assert [one.state for one in tune.here(more, lambda _: make_data(), device=CPU, fit=fit).trials][2:] == [
        "complete", "failed"]  # fmt: skip


def test_another_search_is_told_apart(tmp_path: Path) -> None:
    make_study(tmp_path).save()

    for change in ({"limit": 9}, {"kind": "random"}, {"data": "other"}):
        with pytest.raises(InvalidCheckpoint, match="belongs to another search"):
            make_study(tmp_path, **change)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        make_study(tmp_path)


def test_trials_may_fail_but_not_all() -> None:
    failing: list[int] = []

    def fit(recipe: Any, settings: Knobs, data: Dataset, **more: Any) -> Any:
        if settings.lr in failing:
            raise Diverged("the loss is nan in epoch 1")
        return pipeline.fit(recipe, settings, data, **more)

    failing[:] = [0.03]  # type: ignore[list-item]
    study = tune.here(make_study(), lambda _: make_data(), device=CPU, fit=fit)
    assert [one.reason for one in study.trials if one.state == "failed"] == [
        "the loss is nan in epoch 1"
    ]

    failing[:] = GOOD + BAD  # type: ignore[assignment]
    with pytest.raises(TrainingError, match="3 of 3 trials failed: the loss is nan in epoch 1"):
        tune.here(make_study(), lambda _: make_data(), device=CPU, fit=fit)


def test_the_record_is_bounded() -> None:
    study = make_study(limit=500, kind="random")
    study.trials = [Trial(n, {"lr": n / 1000}, "complete", float(n)) for n in range(500)]
    record = study.record()

    assert record["best"] == {"lr": 0.0}
    assert (record["trials"], len(record["tried"])) == (500, tune.RECORDED)
    assert len(study.table()) == 1 + tune.SHOWN
    assert record["metric"] == "validation_rmse"


class Scripted:
    """An attempt whose looks are known beforehand."""

    flying = most = 0

    def __init__(self, *looks: Look) -> None:
        self._looks, self.stopped, self.left = list(looks), False, False
        Scripted.flying += 1
        Scripted.most = max(Scripted.most, Scripted.flying)

    def look(self) -> Look:
        look = Look("failed", reason="Stopped") if self.stopped else self._looks.pop(0)
        Scripted.flying -= look.state != "running"
        return look

    def stop(self) -> None:
        self.stopped = True

    def leave(self) -> None:
        self.left = True


def run_of(level: float) -> list[Look]:
    return [
        *(Look("running", {epoch: level / epoch}) for epoch in range(1, 5)),
        Look("complete", value=level / 4),
    ]


def test_elsewhere_there_are_so_many_at_a_time_and_bad_ones_are_stopped() -> None:
    Scripted.flying = Scripted.most = 0
    launched: dict[int, Scripted] = {}

    def launch(trial: Trial) -> Scripted:
        bad = trial.settings["lr"] in BAD
        launched[trial.number] = Scripted(*run_of(50.0 if bad else 1.0 + trial.settings["lr"]))
        return launched[trial.number]

    study = tune.elsewhere(make_study(), launch, parallel=2, poll_s=0)

    assert Scripted.most == 2
    assert Scripted.flying == 0
    assert {one.number for one in study.trials if one.state == "pruned"} == {
        number for number, attempt in launched.items() if attempt.stopped
    }
    assert any(attempt.stopped for attempt in launched.values())
    assert study.best.settings == {"lr": 0.02}


def test_when_a_search_elsewhere_ends_early_its_attempts_hear_of_it(tmp_path: Path) -> None:
    launched: list[Scripted] = []
    asked = iter([False, False, True])

    def launch(trial: Trial) -> Scripted:
        trial.job = f"job-{trial.number}"
        launched.append(Scripted(*run_of(1.0)))
        return launched[-1]

    tune.elsewhere(make_study(tmp_path), launch, parallel=3, poll_s=0, stopping=lambda: next(asked))
    again = make_study(tmp_path)

    assert [attempt.left for attempt in launched] == [True] * 3
    assert [one.job for one in again.trials] == ["job-0", "job-1", "job-2"]
    assert again.next() is again.trials[0]  # whose job is found again
    assert again.next(flying=[0, 1, 2]).number == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_what_a_process_prints_is_what_a_trial_learns_of_it(kind: str) -> None:
    study = make_study()
    study.recipe = replace(RECIPE, task=kind)  # type: ignore[arg-type]
    study.metric = {"classification": "accuracy", "generation": "bits_per_byte"}[kind]
    study.higher_is_better = kind == "classification"
    lines = {
        "classification": "epoch 1/2  loss=0.5  validation_loss=0.4  validation_accuracy=0.75  rate=9/s  left=1s\n"
        "epoch 2/2  loss=0.4  validation_loss=0.3  validation_accuracy=0.8  rate=9/s  left=0s\n"
        "validation_accuracy=0.8125\n",
        "generation": "epoch 1/2  loss=0.5  validation_loss=0.75  rate=9/s\nepoch 2/2  loss=0.4  validation_loss=0.8\n"
        "validation_bits_per_byte=0.8125\n",
    }

    assert tune.read(study, lines[kind]) == ({1: 0.75, 2: 0.8}, 0.8125)


class Cloud:
    """SageMaker as far as a search sees it: each job trains one epoch a look, until it is stopped or done."""

    def __init__(self, levels: Mapping[str, float]) -> None:
        self._levels, self._epochs, self.stopped = levels, dict.fromkeys(levels, 0), list[str]()

    def describe_training_job(self, TrainingJobName: str) -> Any:  # noqa: N803  # as boto3 spells it
        name = TrainingJobName
        if name in self.stopped:
            return {"TrainingJobStatus": "Stopped", "SecondaryStatus": "Stopped"}
        self._epochs[name] += 1
        epoch = min(self._epochs[name], 4)
        told = {
            "validation:loss": 9.0,
            "validation:rmse": self._levels[name] / epoch,
            "train:epoch": float(epoch),
        }
        done = self._epochs[name] > 4
        return {
            "TrainingJobStatus": "Completed" if done else "InProgress",
            "FinalMetricDataList": [
                {"MetricName": key, "Value": value} for key, value in told.items()
            ],
        }

    def stop_training_job(self, TrainingJobName: str) -> None:  # noqa: N803  # as boto3 spells it
        self.stopped.append(TrainingJobName)


def test_jobs_are_read_by_their_metrics_and_stopped_where_they_lead_nowhere() -> None:
    study = make_study(limit=8)
    levels: dict[str, float] = {}
    cloud = Cloud(levels)

    def launch(trial: Trial) -> tune.Sent:
        name = f"job-{trial.number}"
        levels[name] = 50.0 if trial.settings["lr"] in BAD else 1.0 + trial.settings["lr"]
        cloud._epochs[name] = 0
        return tune.Sent(study, name, cloud)

    tune.elsewhere(study, launch, parallel=2, poll_s=0)

    assert cloud.stopped == [f"job-{one.number}" for one in study.trials if one.state == "pruned"]
    assert cloud.stopped != []
    assert study.best.settings == {"lr": 0.02}
    assert study.best.values == {epoch: pytest.approx(1.02 / epoch) for epoch in range(1, 5)}
    assert study.best.value == pytest.approx(1.02 / 4)


OWN = """
from dataclasses import dataclass
from typing import Any
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
    return split(Examples({"x": x}, (x @ [1.0, 2.0, 3.0])[:, None].astype(np.float32)), source="made", sha256="0")

recipe = Recipe(name="own", description="A line.", task="regression", hyperparameters=Knobs, data=data,
                model=lambda h: Ridge(h.strength), search={"strength": Range(1e-3, 1e3, log=True)})
"""


def told(folder: Path) -> Mapping[str, Any]:
    report: Mapping[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.mark.filterwarnings("ignore")
def test_the_command_trains_with_the_best_and_the_report_says_what_was_tried(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(own), "--tune", "4", "--search", "grid", "--model-dir", str(tmp_path / "made")]

    assert train.main(arguments, {}) == 0
    report = told(tmp_path / "made")

    assert report["search"]["best"] == {"strength": 0.001}
    assert report["hyperparameters"]["strength"] == 0.001
    assert [one["settings"]["strength"] for one in report["search"]["tried"]] == [
        0.001,
        0.1,
        10.0,
        1000.0,
    ]
    assert [one["state"] for one in report["search"]["tried"]] == ["complete"] * 4
    out = capsys.readouterr().out
    assert "grid search over strength: 4 complete" in out
    assert out.index("strength=0.001") < out.index("exporting")


@pytest.mark.parametrize("option", ["--tune", "--parallel"])
def test_numbers_of_trials_are_above_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["mlp", option, "0"], {})

    assert f"argument {option}: 0 is below 1" in capsys.readouterr().err


def test_a_setting_that_is_given_stays(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(own), "--tune", "4", "--set", "strength=1"], {}) == 1

    assert "nothing to search: all of it is set" in capsys.readouterr().err


@pytest.mark.slow
def test_trials_in_processes_of_their_own_say_the_same(own: Path, tmp_path: Path) -> None:
    options = train.parser().parse_args(
        [
            str(own),
            "--tune",
            "2",
            "--parallel",
            "2",
            "--device",
            "cpu",
            "--set",
            "seed=5",
            "--checkpoint-dir",
            "unused",
        ]
    )
    recipe = load(str(own))
    studies = [
        Study(
            recipe,
            recipe.hyperparameters(seed=5),
            fixed=["seed"],
            kind="random",
            limit=2,
            folder=tmp_path / name,
        )
        for name in ("one", "two")
    ]
    one = tune.here(studies[0], lambda _: recipe.data(), device=CPU)
    two = tune.processes(studies[1], options, {"PATH": os.environ["PATH"]}, Stop())

    for ours, theirs in zip(one.trials, two.trials, strict=True):
        assert (ours.settings, ours.state) == (theirs.settings, theirs.state)
        assert ours.value == pytest.approx(theirs.value, rel=1e-6)
