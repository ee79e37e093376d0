"""Experiment trackers: TensorBoard files, MLflow, Weights & Biases.

TensorBoard files are always written. MLflow is used if it is installed and MLFLOW_TRACKING_URI is
set, W&B if it is installed and WANDB_API_KEY or WANDB_MODE is set: no run is sent anywhere unasked.

A training of one model is one run. A search, or a training of several seeds, is a group: each trial
and each seed is a run of its own, and the model's run is the last. A tracker that fails is warned
of once and left out from then on; its open runs are closed.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from training.runs.tensorboard import EventFile

FOLDER = "tensorboard"  # beside the model
MODEL = "model"  # label of the run whose model is written
REASON_SHOWN = 200  # characters of an error in a warning
# A server that is gone is given up within seconds; MLflow would try for many minutes.
MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}

Numbers = Mapping[str, float]
State = Literal["complete", "pruned", "failed"]
Result = TypeVar("Result")


class Tracker(Protocol):
    """Receiver of a run's metrics."""

    def epoch(self, row: Numbers) -> None:
        """Log the metrics of an epoch."""

    def end(self, state: State, metrics: Numbers, files: Sequence[Path], reason: str) -> None:
        """Log final metrics, files and failure reason; close the run."""


class Backend(Protocol):
    """Place that runs are logged to."""

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        """Start a run; `label` is its name within its group."""

    def close(self, state: State) -> None:
        """Close the group, if there is one."""


class Run:
    """Run that is logged to every tracker that works."""

    def __init__(self, runs: Runs, trackers: Mapping[str, Tracker]) -> None:
        self._runs, self._trackers = runs, trackers

    def epoch(self, row: Numbers) -> None:
        """Log the metrics of an epoch."""
        for name, tracker in self._trackers.items():
            self._runs.guard(name, partial(tracker.epoch, row))

    def end(
        self,
        metrics: Numbers,
        files: Sequence[Path] = (),
        *,
        state: State = "complete",
        reason: str = "",
    ) -> None:
        """Log final metrics, files and failure reason; close the run."""
        for name, tracker in self._trackers.items():
            content = ({}, (), "") if self._runs.has_failed(name) else (metrics, files, reason)
            self._runs.guard(name, partial(tracker.end, state, *content), closes=True)
        self._runs.ended(self)


class Runs:
    """Runs of one training in all trackers; without any, nothing is logged."""

    def __init__(self, backends: Mapping[str, Callable[[], Backend]] | None = None) -> None:
        self._backends: dict[str, Backend] = {}
        self._failed: set[str] = set()
        self._open: list[Run] = []
        for name, make in (backends or {}).items():
            backend = self.guard(name, make)
            if backend is not None:
                self._backends[name] = backend

    def start(self, label: str, settings: Mapping[str, Any]) -> Run:
        """Start a run with its hyperparameters in every tracker."""
        trackers = {
            name: tracker
            for name, backend in self._backends.items()
            if (tracker := self.guard(name, partial(backend.start, label, settings))) is not None
        }
        run = Run(self, trackers)
        self._open.append(run)
        return run

    def ended(self, run: Run) -> None:
        """Forget a run that is closed."""
        self._open.remove(run)

    def close(self, state: State = "complete") -> None:
        """Close the group; runs that are still open end in `state`."""
        for run in list(self._open):
            run.end({}, state=state)
        for name, backend in self._backends.items():
            self.guard(name, partial(backend.close, state), closes=True)

    @contextmanager
    def failed_on_error(self) -> Iterator[None]:
        """Mark runs and group as failed on an error in the block."""
        try:
            yield
        except BaseException:  # an interrupt, too: no tracker shows a run that goes on for ever
            self.close("failed")
            raise

    def has_failed(self, name: str) -> bool:
        """Return whether a tracker has failed, and logs no more."""
        return name in self._failed

    def guard(
        self, name: str, call: Callable[[], Result], *, closes: bool = False
    ) -> Result | None:
        """Call a tracker; warn at its first failure and skip it afterwards.

        A call that `closes` a run is made all the same, so that none is shown as going on.
        """
        if self.has_failed(name) and not closes:
            return None
        try:
            return call()
        except Exception as error:  # whatever a tracker raises, no training ends because of it
            if self.has_failed(name):
                return None
            self._failed.add(name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_SHOWN]
            print(f"warning: {name} fails, and logs no more of this run: {reason}", flush=True)
            return None


def open_runs(recipe: str, folder: Path, environ: Mapping[str, str], *, grouped: bool) -> Runs:
    """Return the tracked runs of a training whose files go to `folder`.

    `grouped`: there are several, of a search's trials or of seeds.
    """
    group = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}" if grouped else ""
    backends: dict[str, Callable[[], Backend]] = {
        "TensorBoard": partial(TensorBoard, folder / FOLDER)
    }
    if environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("mlflow"):
        backends["MLflow"] = partial(MLflow, recipe, group)
    has_account = environ.get("WANDB_API_KEY") or environ.get("WANDB_MODE")
    if has_account and importlib.util.find_spec("wandb"):
        backends["W&B"] = partial(WeightsAndBiases, recipe, group, folder)
    return Runs(backends)


def _title(recipe: str, group: str, label: str, settings: Mapping[str, Any]) -> str:
    return label if group else f"{recipe}-seed-{settings['seed']}"


# --- TensorBoard


class TensorBoard:
    """Event files, one run a folder; the model's is the folder itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        """Start a run; the first epoch or the end writes the file."""
        return _EventRun(self._folder if label == MODEL else self._folder / label, settings)

    def close(self, state: State) -> None:
        """Do nothing: a group is a folder."""


class _EventRun:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._file, self._last = EventFile(folder, settings), 0

    def epoch(self, row: Numbers) -> None:
        self._last = int(row["epoch"])
        self._file.scalars(self._last, _without_epoch(row))

    def end(self, state: State, metrics: Numbers, files: Sequence[Path], reason: str) -> None:  # noqa: ARG002
        if state == "failed" and not reason and not self._last:
            return  # refused before its first epoch: no folder is left
        if metrics:
            self._file.scalars(self._last, metrics)
        self._file.end(failed=None if state == "pruned" else state == "failed")


def _without_epoch(row: Numbers) -> dict[str, float]:
    return {name: row[name] for name in row if name != "epoch"}


# --- MLflow

MLFLOW_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class MLflow:
    """Runs on the MLflow server in MLFLOW_TRACKING_URI, nested by group.

    Its client is used rather than mlflow.start_run: a notebook may have a run of its own.
    """

    def __init__(self, recipe: str, group: str) -> None:
        for name, limit in MLFLOW_LIMITS.items():
            os.environ.setdefault(name, limit)
        import mlflow
        from mlflow import entities

        self._recipe, self._group = recipe, group
        self._entities: Any = entities
        self._client: Any = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(recipe)
        self._experiment: str = (
            experiment.experiment_id if experiment else self._client.create_experiment(recipe)
        )
        self._parent = self._create(group, {}) if group else ""

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        """Start a run with its parameters."""
        tags = {"mlflow.parentRunId": self._parent} if self._parent else {}
        name = _title(self._recipe, self._group, label, settings)
        run = self._create(name, tags)
        parameters = [self._entities.Param(key, str(value)) for key, value in settings.items()]
        try:
            self._client.log_batch(run, params=parameters)
        except Exception:
            self._client.set_terminated(run, MLFLOW_STATUS["failed"])
            raise
        return _MLflowRun(self._client, self._entities, run)

    def close(self, state: State) -> None:
        """Close the group's run."""
        if self._parent:
            self._client.set_terminated(self._parent, MLFLOW_STATUS[state])


class _MLflowRun:
    def __init__(self, client: Any, entities: Any, run: str) -> None:
        self._client, self._entities, self._run = client, entities, run
        self._last = 0

    def epoch(self, row: Numbers) -> None:
        self._last = int(row["epoch"])
        self._log(_without_epoch(row))

    def end(self, state: State, metrics: Numbers, files: Sequence[Path], reason: str) -> None:
        try:
            self._log(metrics)
            if reason:
                self._client.set_tag(self._run, "reason", reason)
            for path in files:
                self._client.log_artifact(self._run, str(path))
        finally:  # a refused file, e.g. without a right to write it, leaves no run open
            self._client.set_terminated(self._run, MLFLOW_STATUS[state])

    def _log(self, metrics: Numbers) -> None:
        if not metrics:
            return
        now_ms = int(1000 * time.time())
        entries = [
            self._entities.Metric(name, value, now_ms, self._last)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._run, metrics=entries)


# --- Weights & Biases


class WeightsAndBiases:
    """Runs in the recipe's project, with the group as their group."""

    def __init__(self, recipe: str, group: str, folder: Path) -> None:
        import wandb

        self._wandb: Any = wandb
        self._recipe, self._group, self._folder = recipe, group, folder

    def start(self, label: str, settings: Mapping[str, Any]) -> Tracker:
        """Start a run with its configuration."""
        self._folder.mkdir(parents=True, exist_ok=True)
        run = self._wandb.init(
            project=self._recipe,
            name=_title(self._recipe, self._group, label, settings),
            group=self._group or None,
            job_type=label.partition("-")[0],
            config=dict(settings),
            dir=str(self._folder),
            reinit="create_new",  # a notebook may have a run of its own
            settings=self._wandb.Settings(silent=label != MODEL),
        )
        return _WeightsAndBiasesRun(run)

    def close(self, state: State) -> None:
        """Do nothing: a group is a name."""


class _WeightsAndBiasesRun:
    def __init__(self, run: Any) -> None:
        self._run = run

    def epoch(self, row: Numbers) -> None:
        self._run.log(dict(row), step=int(row["epoch"]))

    def end(self, state: State, metrics: Numbers, files: Sequence[Path], reason: str) -> None:
        try:
            self._run.summary.update({**metrics, "state": state})
            if reason:
                self._run.summary.update({"reason": reason})
            for path in files:
                self._run.save(str(path), base_path=str(path.parent), policy="now")
        finally:
            self._run.finish(exit_code=int(state == "failed"))
