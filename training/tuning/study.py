"""Hyperparameter study on Optuna: stores, resumes, prunes and ranks the trials."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from training.errors import InvalidCheckpoint, TrainingError
from training.hyperparameters import encode, override
from training.recipe_loading import code_digest
from training.runs.trackers import Runs, State
from training.tuning.samplers import make_sampler, rounded, suggest, trial_count
from training.tuning.space import Search

Settings = dict[str, Any]

FILE = "study.journal"
NAME = "search"  # name of the only study in the journal
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
TABLE_ROWS = 30
RECORD_ROWS = 64  # trials in the report
FAILURES = 3  # failed trials without any success that end a search
WARM_TRIALS = 4  # complete trials before any trial is pruned
FIRST_PRUNED_EPOCH = 3  # epochs are counted from 1


class Study:
    """Trials of a hyperparameter search, stored in a folder's journal or memory."""

    def __init__(
        self, search: Search, folder: Path | None = None, runs: Runs | None = None
    ) -> None:
        self.search, self.folder = search, folder
        self._runs = runs or Runs()  # each trial is recorded when it ends
        self.limit = trial_count(search)
        self._storage = _open_storage(folder)
        self._study = _open_study(self._storage, search)
        if self.trials:
            print(f"resumed after {len(self.ended)} trials", flush=True)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials of the search, ordered by number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that are complete, pruned or failed."""
        return [trial for trial in self.trials if trial.state.is_finished()]

    def next(self, running: Collection[int] = ()) -> Trial | None:
        """Return the next trial to run, interrupted trials before new trials.

        Trials in `running` are not interrupted. Returns None where all trials have been started.
        """
        trials = self.trials
        unfinished = [trial.number for trial in trials if trial.state is TrialState.RUNNING]
        interrupted = [number for number in unfinished if number not in running]
        number = interrupted[0] if interrupted else len(trials)
        if number >= self.limit:
            return None
        self._study.sampler = make_sampler(self.search, number)
        trial = self._interrupted(number) if interrupted else self._study.ask()
        suggest(trial, self.search.space)
        return trial

    def _interrupted(self, number: int) -> Trial:
        study_id = self._storage.get_study_id_from_name(NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return Trial(self._study, trial_id)

    def settings(self, trial: BaseTrial) -> Settings:
        """Return a trial's values of the searched hyperparameters by name."""
        if trial.number == 0:  # unrounded, and outside the space where the recipe's values are
            return self.search.defaults
        space = self.search.space
        values = {name: rounded(axis, trial.params[name]) for name, axis in space.items()}
        settings = override(self.search.settings, values)
        return {name: getattr(settings, name) for name in space}

    def report(self, trial: Trial, scores: Mapping[int, float]) -> None:
        """Store a trial's scores by epoch; skip epochs already stored."""
        stored = self.trials[trial.number].intermediate_values
        for epoch in sorted(scores.keys() - stored.keys()):
            trial.report(scores[epoch], epoch)

    def add_duration(self, trial: Trial, seconds: float) -> None:
        """Add the seconds of one attempt to a trial's stored duration."""
        trial.set_user_attr("duration_s", _duration_s(trial) + seconds)

    @property
    def longest_trial_s(self) -> float:
        """Longest duration of an ended trial in seconds."""
        return max(map(_duration_s, self.ended), default=0.0)

    def finish(
        self, trial: Trial, state: TrialState, value: float | None = None, reason: str = ""
    ) -> None:
        """Store a trial's final state and metric, and print a line.

        Raises:
            TrainingError: the first trials all failed.
        """
        if state is TrialState.COMPLETE and (value is None or not math.isfinite(value)):
            state = TrialState.FAIL
            reason = reason or f"it has no {self.search.metric} on the validation part"
        if reason:
            trial.set_user_attr("reason", reason)
        self._study.tell(trial, value if state is TrialState.COMPLETE else None, state)
        self._record_run(self.trials[trial.number])
        ended = self.ended
        left_s = (self.limit - len(ended)) * sum(map(_duration_s, ended)) / len(ended)
        line = self._describe(self.trials[trial.number])
        print(f"trial {trial.number + 1}/{self.limit}  {line}  left={left_s:.0f}s", flush=True)
        failed = all(trial.state is TrialState.FAIL for trial in ended)
        if failed and len(ended) >= min(FAILURES, self.limit):
            raise TrainingError(f"{len(ended)} of {len(ended)} trials failed: {_reason(ended[-1])}")

    def _record_run(self, trial: FrozenTrial) -> None:
        """Log an ended trial as a run: hyperparameters, scores by epoch, metric."""
        settings = override(self.search.settings, self.settings(trial))
        run = self._runs.start(f"trial-{trial.number + 1:03}", asdict(settings))
        for epoch, score in sorted(trial.intermediate_values.items()):
            run.epoch({"epoch": epoch, "score": score})
        value = _value(trial)
        metrics = {} if value is None else {f"validation_{self.search.metric}": value}
        run.end(metrics, state=STATES[trial.state], reason=_reason(trial))

    def _describe(self, trial: FrozenTrial) -> str:
        value = _value(trial)
        result = STATES[trial.state] if value is None else f"{value:.4f}"
        if trial.last_step is not None:
            result += f" after epoch {trial.last_step}"
        if trial.state is TrialState.FAIL:
            result += f" ({_reason(trial)[:80]})"
        return f"validation_{self.search.metric}={result}  {format_settings(self.settings(trial))}"

    @property
    def best(self) -> FrozenTrial:
        """Complete trial with the best primary metric.

        Raises:
            TrainingError: no trial was completed.
        """
        ranked = self._ranked()
        if ranked and ranked[0].state is TrialState.COMPLETE:
            return ranked[0]
        last = "".join(f": {_reason(trial)}" for trial in self.trials[-1:])
        raise TrainingError(f"no trial was completed{last}")

    def _ranked(self) -> list[FrozenTrial]:
        """Return the ended trials sorted by metric, the best first.

        Pruned and failed trials have no metric and come last.
        """
        sign = -1 if self.search.higher_is_better else 1

        def rank(trial: FrozenTrial) -> tuple[float, int]:
            value = _value(trial)
            return math.inf if value is None else sign * value, trial.number

        return sorted(self.ended, key=rank)

    def table(self) -> list[str]:
        """Return the results table: a heading and a line per trial.

        The best trial comes first.
        """
        ranked = self._ranked()
        states = [STATES[trial.state] for trial in ranked]
        counts = ", ".join(f"{states.count(s)} {s}" for s in STATES.values() if s in states)
        heading = f"{self.search.strategy} search over {', '.join(self.search.space)}: {counts}"
        rows = [
            f"  {trial.number + 1:>3}  {self._describe(trial)}" for trial in ranked[:TABLE_ROWS]
        ]
        return [heading, *rows]

    def record(self) -> dict[str, Any]:
        """Return the search results as JSON values for the training report.

        The best trials come first.
        """
        ranked = self._ranked()
        return {
            "search": self.search.strategy,
            "metric": f"validation_{self.search.metric}",
            "higher_is_better": self.search.higher_is_better,
            "trials": len(ranked),
            "best": self.settings(self.best),
            "tried": [self._row(trial) for trial in ranked[:RECORD_ROWS]],
        }

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        return {
            "trial": trial.number + 1,
            "state": STATES[trial.state],
            "value": _value(trial),
            "epochs": trial.last_step,
            "duration_s": round(_duration_s(trial), 3),
            "settings": self.settings(trial),
        }

    def checkpoints(self, trial: BaseTrial) -> Path | None:
        """Return the folder of a trial's checkpoints, or None without storage."""
        return self.folder / "trials" / f"{trial.number:03d}" if self.folder else None


def format_settings(settings: Settings) -> str:
    """Format hyperparameters as text of NAME=VALUE pairs, for `--set`.

    >>> format_settings({"lr": 0.001, "hidden": (64, 64)})
    'lr=0.001 hidden=[64, 64]'
    """
    return " ".join(f"{name}={encode(value)}" for name, value in settings.items())


def _open_storage(folder: Path | None) -> optuna.storages.BaseStorage:
    if folder is None:
        return optuna.storages.InMemoryStorage()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    _drop_partial_line(path)
    # The default lock, a symbolic link, is never given up where it is stale and its path relative.
    lock = JournalFileOpenLock(str(path))
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable() from error


def _drop_partial_line(path: Path) -> None:
    """Remove an incomplete last line from the search's journal file.

    A killed process may leave one. Optuna would append to it and could not read the result.
    """
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _open_study(storage: optuna.storages.BaseStorage, search: Search) -> optuna.Study:
    """Create the search's Optuna study, or load it from the journal."""
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize" if search.higher_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(WARM_TRIALS, n_warmup_steps=FIRST_PRUNED_EPOCH),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable() from error
    identity = _identity(search)
    stored = study.user_attrs.get("identity")
    if stored is None:
        study.set_user_attr("identity", identity)
    elif stored != identity:
        raise InvalidCheckpoint(
            f"{FILE} belongs to another search, or to the recipe before its code changed; "
            "remove it, or use another --checkpoint-dir"
        )
    return study


def _unreadable() -> InvalidCheckpoint:
    return InvalidCheckpoint(f"{FILE} cannot be read; remove it to start anew")


def _identity(search: Search) -> Any:
    """Return the JSON values that identify a search when it is resumed."""
    parts = [
        search.recipe.name,
        search.strategy,
        search.limit if search.strategy == "grid" else 0,  # shapes a grid; may rise otherwise
        asdict(search.settings),
        repr(dict(search.space)),
        search.data,
        code_digest(search.recipe),
    ]
    return json.loads(json.dumps(parts))


def _value(trial: FrozenTrial) -> float | None:
    """Return a complete trial's metric, or None for pruned and failed trials.

    Optuna gives a pruned trial the value of its last epoch.
    """
    return trial.value if trial.state is TrialState.COMPLETE else None


def _duration_s(trial: BaseTrial) -> float:
    return float(trial.user_attrs.get("duration_s", 0.0))


def _reason(trial: BaseTrial) -> str:
    return str(trial.user_attrs.get("reason", ""))
