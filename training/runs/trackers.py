"""Experiment trackers: TensorBoard files, MLflow, Weights & Biases.

TensorBoard files are always written. MLflow is used if it is installed and MLFLOW_TRACKING_URI is
set, W&B if it is installed and WANDB_API_KEY or WANDB_MODE is set: no run is sent anywhere unasked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.runs.tensorboard import EventFile

FOLDER = "tensorboard"  # beside the model
Numbers = Mapping[str, float]


class Tracker(Protocol):
    """Receiver of a run's metrics."""

    def epoch(self, row: Numbers) -> None:
        """Log the metrics of an epoch."""

    def end(self, metrics: Numbers, files: Sequence[Path]) -> None:
        """Log a finished run's test metrics and files; close it."""

    def abort(self) -> None:
        """Close a run that failed or was interrupted."""


@dataclass(frozen=True)
class RunName:
    """Recipe, seed and hyperparameters of a run, as trackers show them."""

    recipe: str
    seed: int
    settings: Mapping[str, Any]


def start(run: RunName, folder: Path, environ: Mapping[str, str]) -> list[Tracker]:
    """Return the trackers of a run whose files go to `folder`."""
    trackers: list[Tracker] = [TensorBoard(folder / FOLDER)]
    if environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("mlflow"):
        trackers.append(MLflow(run))
    has_account = environ.get("WANDB_API_KEY") or environ.get("WANDB_MODE")
    if has_account and importlib.util.find_spec("wandb"):
        trackers.append(WeightsAndBiases(run, folder))
    return trackers


class TensorBoard:
    """Tracker that writes an event file."""

    def __init__(self, folder: Path) -> None:
        self._file, self._last = EventFile(folder), 0

    def epoch(self, row: Numbers) -> None:
        """Write the epoch's metrics; the step is the number of the epoch."""
        self._last = int(row["epoch"])
        self._file.scalars(self._last, {name: row[name] for name in row if name != "epoch"})

    def end(self, metrics: Numbers, files: Sequence[Path]) -> None:  # noqa: ARG002
        """Write the test metrics at the last epoch."""
        self._file.scalars(self._last, {f"test_{name}": metrics[name] for name in metrics})

    def abort(self) -> None:
        """Do nothing: the file has what there is."""


class MLflow:
    """Tracker that logs to the MLflow server in MLFLOW_TRACKING_URI."""

    def __init__(self, run: RunName) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(run.recipe)
        mlflow.start_run(run_name=f"{run.recipe}-seed-{run.seed}")
        mlflow.log_params(dict(run.settings))

    def epoch(self, row: Numbers) -> None:
        """Log the epoch's metrics."""
        metrics = {name: row[name] for name in row if name != "epoch"}
        self._mlflow.log_metrics(metrics, step=int(row["epoch"]))

    def end(self, metrics: Numbers, files: Sequence[Path]) -> None:
        """Log the test metrics and upload the files."""
        self._mlflow.log_metrics({f"test_{name}": metrics[name] for name in metrics})
        for path in files:
            self._mlflow.log_artifact(str(path))
        self._mlflow.end_run()

    def abort(self) -> None:
        """Mark the run as failed."""
        self._mlflow.end_run("FAILED")


class WeightsAndBiases:
    """Tracker that logs to Weights & Biases, in the recipe's project."""

    def __init__(self, run: RunName, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=run.recipe,
            name=f"{run.recipe}-seed-{run.seed}",
            config=dict(run.settings),
            dir=str(folder),
        )

    def epoch(self, row: Numbers) -> None:
        """Log the epoch's metrics."""
        self._run.log(dict(row), step=int(row["epoch"]))

    def end(self, metrics: Numbers, files: Sequence[Path]) -> None:
        """Put the test metrics into the run's summary and save the files."""
        self._run.summary.update({f"test_{name}": metrics[name] for name in metrics})
        for path in files:
            self._run.save(str(path), base_path=str(path.parent), policy="now")
        self._run.finish()

    def abort(self) -> None:
        """Mark the run as failed."""
        self._run.finish(exit_code=1)
