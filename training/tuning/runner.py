"""Parallel runner of search trials in other processes or jobs, with pruning."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from optuna.trial import Trial, TrialState

from training.tuning.study import Study

POLL_S = 0.2  # seconds; polling a process costs nothing


@dataclass(frozen=True)
class TrialStatus:
    """State of a search trial (running, complete, failed), epoch scores, final metric.

    The state is running, complete or failed.
    """

    state: TrialState
    scores: Mapping[int, float] = field(default_factory=dict)  # by epoch
    value: float | None = None  # primary metric of a complete trial
    reason: str = ""  # failure reason


class RunningTrial(Protocol):
    """Interface of a search trial that runs in a process or job."""

    def status(self) -> TrialStatus:
        """Return the trial's state, scores by epoch and final metric."""

    def stop(self) -> None:
        """Ask the running trial to end early."""

    def close(self) -> None:
        """Release a trial that still runs when the search ends."""


Launch = Callable[[Trial], RunningTrial]


@dataclass
class _Active:
    trial: Trial
    running: RunningTrial
    started: float  # time.monotonic()
    pruned: bool = False


def run_parallel(
    study: Study,
    launch: Launch,
    *,
    parallel: int,
    poll_s: float = POLL_S,
    stopping: Callable[[], bool] = lambda: False,
) -> Study:
    """Run all trials of a search, `parallel` at a time, with pruning.

    The search ends early once `stopping()` is true; then trials in flight are closed.

    Raises:
        TrainingError: the first trials all failed.
    """
    active: dict[int, _Active] = {}
    try:
        while not stopping():
            _start_trials(study, launch, active, parallel)
            if not active:
                break
            for number in list(active):
                _poll(study, active, number)
            time.sleep(poll_s)
    finally:
        for entry in active.values():
            entry.running.close()
            study.add_duration(entry.trial, time.monotonic() - entry.started)
    return study


def _start_trials(study: Study, launch: Launch, active: dict[int, _Active], parallel: int) -> None:
    while len(active) < parallel and (trial := study.next(active)) is not None:
        active[trial.number] = _Active(trial, launch(trial), time.monotonic())


def _poll(study: Study, active: dict[int, _Active], number: int) -> None:
    """Store a trial's progress; prune a weak trial, finish an ended trial.

    A trial that has ended is removed from `active`.
    """
    entry = active[number]
    status = entry.running.status()
    study.report(entry.trial, status.scores)
    if status.state is TrialState.RUNNING:
        if not entry.pruned and entry.trial.should_prune():
            entry.pruned = True
            entry.running.stop()
        return
    del active[number]
    pruned = entry.pruned and status.state is TrialState.FAIL  # it may have completed before
    study.add_duration(entry.trial, time.monotonic() - entry.started)
    state = TrialState.PRUNED if pruned else status.state
    study.finish(entry.trial, state, status.value, "" if pruned else status.reason)
