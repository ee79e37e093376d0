"""Search over jobs: metrics are read from SageMaker, weak jobs stopped, running ones followed."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import Trial, TrialState

from tests.unit.training.sagemaker.jobs import JOB
from tests.unit.training.tuning.searches import make_search
from training.sagemaker import backends, trials
from training.sagemaker.trials import JobTrial
from training.tuning.runner import run_parallel
from training.tuning.study import Study

GOOD, BAD = (0.02, 0.03, 0.04, 0.05, 0.06), (1e-6, 1e-5, 1e-4)
RECIPE = """
from training.recipe import Hyperparameters, Recipe
from dataclasses import dataclass

@dataclass(frozen=True)
class Knobs(Hyperparameters):
    lr: float = 0.5

recipe = Recipe(name="own", description="", task="regression", hyperparameters=Knobs,
                data=lambda: None, model=lambda: None, search={"lr": (0.1, 0.2, 0.3, 0.4)})
"""


class Cloud:
    """SageMaker as a search sees it: each job trains one epoch a poll until it is stopped."""

    def __init__(self) -> None:
        self.levels: dict[str, float] = {}
        self.epochs: dict[str, int] = {}
        self.stopped: list[str] = []

    def start(self, name: str, level: float) -> None:
        self.levels[name], self.epochs[name] = level, 0

    def describe_training_job(self, TrainingJobName: str) -> Any:  # noqa: N803  # boto3's spelling
        name = TrainingJobName
        if name in self.stopped:
            return {"TrainingJobStatus": "Stopped", "SecondaryStatus": "Stopped"}
        self.epochs[name] += 1
        epoch = min(self.epochs[name], 4)
        metrics = {
            "validation:loss": 9.0,
            "validation:rmse": self.levels[name] / epoch,
            "train:epoch": float(epoch),
        }
        return {
            "TrainingJobStatus": "Completed" if self.epochs[name] > 4 else "InProgress",
            "FinalMetricDataList": [
                {"MetricName": name, "Value": value} for name, value in metrics.items()
            ],
        }

    def stop_training_job(self, TrainingJobName: str) -> None:  # noqa: N803  # boto3's spelling
        self.stopped.append(TrainingJobName)


def test_jobs_are_judged_by_their_metrics_and_weak_ones_stopped() -> None:
    study = Study(make_search("grid", 8, lr=GOOD + BAD))
    cloud = Cloud()

    def launch(trial: Trial) -> JobTrial:
        name, lr = f"job-{trial.number}", study.settings(trial)["lr"]
        cloud.start(name, 1.0 + lr if lr in GOOD else 50.0)
        return JobTrial(study.search, name, cloud, resumable=False)

    run_parallel(study, launch, parallel=2, poll_s=0)

    pruned = [trial for trial in study.trials if trial.state is TrialState.PRUNED]
    assert cloud.stopped == [f"job-{trial.number}" for trial in pruned]
    assert cloud.stopped != []
    assert study.settings(study.best) == {"lr": 0.02}
    scores = {epoch: pytest.approx(1.02 / epoch) for epoch in range(1, 5)}
    assert study.best.intermediate_values == scores
    assert study.best.value == pytest.approx(1.02 / 4)


@pytest.mark.parametrize(("resumable", "stopped"), [(True, []), (False, ["job"])])
def test_jobs_run_on_where_a_search_can_follow_them_later(
    resumable: bool, stopped: list[str]
) -> None:
    cloud = Cloud()
    search = make_search("grid", 8, lr=GOOD)
    JobTrial(search, "job", cloud, resumable=resumable).close()

    assert cloud.stopped == stopped


class Refused(Exception):
    """Interrupts a search."""


def test_a_resumed_search_follows_the_jobs_that_it_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(RECIPE)
    options = argparse.Namespace(
        recipe=str(tmp_path / "own.py"), set=["seed=3"], search="grid", tune=4, parallel=2,
        checkpoint_dir=tmp_path / "search")  # fmt: skip
    cloud, requests, refusals = Cloud(), list[Any](), [Refused()]
    monkeypatch.setattr(backends, "client", lambda *_: cloud)
    monkeypatch.setattr(trials, "POLL_S", 0)
    monkeypatch.setattr(trials.runner, "POLL_S", 0)
    job = replace(JOB, hyperparameters={"seed": "3"}, arguments=("--seeds", "3"))

    def submit(request: Any, _region: str) -> None:
        if len(requests) == 2 and refusals:
            raise refusals.pop()
        requests.append(request)
        cloud.start(request["TrainingJobName"], float(request["HyperParameters"]["lr"]))

    with pytest.raises(Refused):
        trials.run_over_jobs(job, options, submit)
    first = [request["TrainingJobName"] for request in requests]
    best = trials.run_over_jobs(job, options, submit)

    assert best == {"lr": 0.1}
    assert (
        len(requests) == 5
    )  # the recipe's own and the grid's; two were followed, not submitted again
    assert [name.split("-")[3] for name in first] == ["t001", "t002"]
    assert {request["HyperParameters"]["seed"] for request in requests} == {"3"}
    for request in requests:
        assert request["Environment"]["MAYFLY_TRIAL"] == "1"
        assert "--seeds" not in request["AlgorithmSpecification"]["ContainerArguments"]
