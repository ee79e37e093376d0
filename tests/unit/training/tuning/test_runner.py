"""Parallel runner: so many trials at a time, weak ones stopped, and all closed in the end."""

from pathlib import Path

import pytest

pytest.importorskip("optuna")

from optuna.trial import Trial, TrialState

from tests.unit.training.tuning.searches import make_search
from training.errors import TrainingError
from training.tuning.runner import TrialStatus, run_parallel
from training.tuning.study import Study

GOOD, BAD = (0.02, 0.03, 0.04, 0.05, 0.06), (1e-6, 1e-5, 1e-4)


def make_study(folder: Path | None = None) -> Study:
    return Study(make_search("grid", 8, lr=GOOD + BAD), folder)


class Scripted:
    """Running trial with a status known beforehand for each poll."""

    running = most = 0

    def __init__(self, *statuses: TrialStatus) -> None:
        self._statuses, self.stopped, self.closed = list(statuses), False, False
        Scripted.running += 1
        Scripted.most = max(Scripted.most, Scripted.running)

    def status(self) -> TrialStatus:
        stopped = TrialStatus(TrialState.FAIL, reason="Stopped")
        status = stopped if self.stopped else self._statuses.pop(0)
        Scripted.running -= status.state is not TrialState.RUNNING
        return status

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def statuses(level: float) -> list[TrialStatus]:
    epochs = [TrialStatus(TrialState.RUNNING, {epoch: level / epoch}) for epoch in range(1, 5)]
    return [*epochs, TrialStatus(TrialState.COMPLETE, value=level / 4)]


def test_trials_run_in_parallel_and_weak_ones_are_stopped() -> None:
    Scripted.running = Scripted.most = 0
    launched: dict[int, Scripted] = {}
    study = make_study()

    def launch(trial: Trial) -> Scripted:
        lr = study.settings(trial)["lr"]
        launched[trial.number] = Scripted(*statuses(1.0 + lr if lr in GOOD else 50.0))
        return launched[trial.number]

    run_parallel(study, launch, parallel=2, poll_s=0)

    assert Scripted.most == 2
    assert Scripted.running == 0
    pruned = {trial.number for trial in study.trials if trial.state is TrialState.PRUNED}
    assert pruned == {number for number, running in launched.items() if running.stopped}
    assert pruned
    assert study.settings(study.best) == {"lr": 0.02}


def test_a_trial_that_completes_while_it_is_stopped_counts() -> None:
    class Finishing(Scripted):
        def status(self) -> TrialStatus:
            return self._statuses.pop(0)

    study = make_study()

    def launch(trial: Trial) -> Finishing:
        return Finishing(*statuses(float(trial.number)))  # later ones are worse

    run_parallel(study, launch, parallel=1, poll_s=0)

    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_running_trials_are_closed_and_resumed_when_a_search_stops(tmp_path: Path) -> None:
    launched: list[Scripted] = []
    answers = iter([False, False, True])

    def launch(trial: Trial) -> Scripted:
        trial.set_user_attr("job", f"job-{trial.number}")
        launched.append(Scripted(*statuses(1.0)))
        return launched[-1]

    study = make_study(tmp_path)
    run_parallel(study, launch, parallel=3, poll_s=0, stopping=lambda: next(answers))
    resumed = make_study(tmp_path)

    assert [running.closed for running in launched] == [True] * 3
    assert [trial.user_attrs["job"] for trial in resumed.trials] == ["job-0", "job-1", "job-2"]
    first, new = resumed.next(), resumed.next(running=[0, 1, 2])
    assert first is not None
    assert new is not None
    assert (first.number, new.number) == (0, 3)


def test_the_failure_that_ends_a_search_closes_the_rest() -> None:
    launched: list[Scripted] = []

    def launch(_trial: Trial) -> Scripted:
        state = TrialState.RUNNING if len(launched) == 3 else TrialState.FAIL
        launched.append(Scripted(TrialStatus(state, reason="no GPU")))
        return launched[-1]

    with pytest.raises(TrainingError, match="3 of 3 trials failed: no GPU"):
        run_parallel(make_study(), launch, parallel=4, poll_s=0)
    assert [running.closed for running in launched] == [False, False, False, True]
