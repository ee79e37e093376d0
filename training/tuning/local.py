"""Run a hyperparameter search on this machine, serially or in parallel processes.

    python -m training train mlp --tune 20 --search optuna --checkpoint-dir runs/mlp
    python -m training train mlp --tune 20 --parallel 4

A trial never sees the test part and writes no model. With a folder for checkpoints, an interrupted
search and its interrupted trial are resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from optuna import TrialPruned
from optuna.trial import Trial, TrialState

from training.data import Dataset
from training.errors import TrainingError
from training.fitting import trainer
from training.fitting.checkpoint import Interrupted, Stop
from training.fitting.distributed import Ranks
from training.fitting.trained import Trained
from training.hyperparameters import Hyperparameters, encode, override, pairs
from training.log_lines import metrics
from training.recipe import Recipe
from training.runs.trackers import Runs
from training.tuning.objective import judge, without_test
from training.tuning.runner import RunningTrial, TrialStatus, run_parallel
from training.tuning.space import Search, make_space
from training.tuning.study import Study

ROOT = Path(__file__).parents[2]  # folder that holds the package `training`
CLOSE_S = 30  # seconds for a trial to save its state after SIGTERM


def run(
    recipe: Recipe[Any],
    settings: Hyperparameters,
    options: argparse.Namespace,
    environ: Mapping[str, str],
    data: Dataset,
    channels: Mapping[str, Path],
    *,
    device: torch.device,
    stop: Stop,
    ranks: Ranks,
    runs: Runs,
) -> Study:
    """Run a hyperparameter search from command-line options; print its results table.

    Raises:
        Interrupted: `stop` was requested; the study is saved.
        TrainingError: there is nothing to search, or the first trials all failed.
    """
    if ranks.count > 1:
        raise TrainingError("--tune starts from one process; take --parallel, or --on sagemaker")
    fixed = {*pairs(options.set), *json.loads(environ.get("SM_HPS", "{}"))}
    folder = options.checkpoint_dir or environ.get("SM_CHECKPOINT_DIR")
    space = make_space(recipe, fixed)
    search = Search(recipe, settings, space, options.search, options.tune, data.sha256)
    study = Study(search, Path(folder) if folder else None, runs)
    if options.parallel > 1:
        run_processes(study, options, environ, stop)
    else:
        depends = len(inspect.signature(recipe.data).parameters) > 1  # data need the settings

        def load_data(trial_settings: Hyperparameters) -> Dataset:
            return recipe.load_data(channels, trial_settings) if depends else data

        run_serial(study, load_data, device=device, stop=stop)
    print("\n".join(study.table()), flush=True)
    return study


# --- one after the other


def run_serial(
    study: Study,
    load_data: Callable[[Hyperparameters], Dataset],
    *,
    device: torch.device,
    stop: Stop | None = None,
    fit: Callable[..., Trained] = trainer.fit,
) -> Study:
    """Run all trials of a study serially in the current process.

    Raises:
        Interrupted: `stop` was requested; the study is saved.
        TrainingError: the first trials all failed.
    """
    while not _is_last_moment(study, stop) and (trial := study.next()) is not None:
        if stop is not None and stop.requested:
            raise Interrupted(f"stopped before trial {trial.number + 1} of {study.limit}")
        started, value = time.monotonic(), None
        state, reason = TrialState.COMPLETE, ""
        try:
            value = _fit_trial(study, trial, load_data, device, stop, fit)
        except TrialPruned:
            state = TrialState.PRUNED
        except Interrupted:
            raise
        except Exception as error:  # a recipe's own code; a trial in a process fails alone, too
            state, reason = TrialState.FAIL, _reason(error)
        finally:
            study.add_duration(trial, time.monotonic() - started)
        if (checkpoints := study.checkpoints(trial)) is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)
        study.finish(trial, state, value, reason)
    return study


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TrainingError) else f"{type(error).__name__}: {text}"


def _is_last_moment(study: Study, stop: Stop | None) -> bool:
    """Return whether another trial would take the time of the final training."""
    if stop is None or not study.ended:
        return False
    if time.monotonic() + 2 * study.longest_trial_s <= stop.deadline:
        return False
    print(f"time limit: {len(study.ended)} of {study.limit} trials are done", flush=True)
    return True


class TrialStop(Stop):
    """Stop of a trial that leaves half of the time left."""

    def __init__(self, search: Stop) -> None:
        self._search = search
        now = time.monotonic()
        self.deadline = now + (search.deadline - now) / 2

    @property
    def requested(self) -> bool:  # type: ignore[override]
        """Return whether the search has to end."""
        return self._search.requested


def _fit_trial(
    study: Study,
    trial: Trial,
    load_data: Callable[[Hyperparameters], Dataset],
    device: torch.device,
    stop: Stop | None,
    fit: Callable[..., Trained],
) -> float | None:
    def watch(row: Mapping[str, float]) -> None:
        study.report(trial, {int(row["epoch"]): study.search.score(row)})
        if trial.should_prune():
            raise TrialPruned

    settings = override(study.search.settings, study.settings(trial))
    data = without_test(load_data(settings))
    with contextlib.redirect_stdout(io.StringIO()):  # hide the printed epochs
        trained = fit(
            study.search.recipe,
            settings,
            data,
            device=device,
            checkpoints=study.checkpoints(trial),
            stop=None if stop is None else TrialStop(stop),
            watch=watch,
        )
        return judge(trained)


# --- in processes


def run_processes(
    study: Study, options: argparse.Namespace, environ: Mapping[str, str], stop: Stop
) -> Study:
    """Run a study's trials as training processes, `--parallel` at a time.

    Raises:
        Interrupted: `stop` was requested; the study is saved.
        TrainingError: the first trials all failed.
    """
    environment = _trial_environment(environ, options.parallel)

    def launch(trial: Trial) -> RunningTrial:
        command = _trial_command(study, options, trial)
        return ProcessTrial(study.search, command, environment | _time_limit(stop))

    def is_over() -> bool:
        return stop.requested or _is_last_moment(study, stop)

    run_parallel(study, launch, parallel=options.parallel, stopping=is_over)
    if stop.requested:
        raise Interrupted(f"stopped after {len(study.trials)} of {study.limit} trials")
    if study.folder is not None:
        shutil.rmtree(study.folder / "trials", ignore_errors=True)
    return study


def _trial_environment(environ: Mapping[str, str], parallel: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // parallel)
    search_path = filter(None, [str(ROOT), environ.get("PYTHONPATH")])
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **environ,
        "MAYFLY_TRIAL": "1",
        "PYTHONPATH": os.pathsep.join(search_path),
    }
    environment.pop("SM_CHECKPOINT_DIR", None)  # the search's folder, not a trial's
    return environment


def _time_limit(stop: Stop) -> dict[str, str]:
    """Return environment variables that give a trial half of the time left."""
    left_s = (stop.deadline - time.monotonic()) / 2
    if math.isinf(left_s):
        return {}
    now = str(time.time())
    return {"MAYFLY_MAX_RUNTIME_S": str(max(left_s, 1.0)), "MAYFLY_STARTED_AT": now}


def _trial_command(study: Study, options: argparse.Namespace, trial: Trial) -> list[str]:
    command = [sys.executable, "-u", "-m", "training.train", options.recipe]
    command += ["--device", options.device]
    searched = [f"{name}={encode(value)}" for name, value in study.settings(trial).items()]
    for setting in [*options.set, *searched]:
        command += ["--set", setting]
    for folder in options.data:
        command += ["--data", folder]
    if (checkpoints := study.checkpoints(trial)) is not None:
        command += ["--checkpoint-dir", str(checkpoints)]
    return command


class ProcessTrial:
    """Search trial in a training process, followed through its printed lines."""

    def __init__(self, search: Search, command: list[str], environment: Mapping[str, str]) -> None:
        self._search = search
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # open until the process ends
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._output, stderr=subprocess.STDOUT
        )

    def status(self) -> TrialStatus:
        """Return the trial's progress, parsed from the process's output."""
        exit_status = self._process.poll()
        # The process writes at the file's position, which both share: seeking would move it.
        file = self._output.fileno()
        text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
        scores, value = read_log(self._search, text)
        if exit_status is None:
            return TrialStatus(TrialState.RUNNING, scores)
        self._output.close()
        if exit_status == 0:
            return TrialStatus(TrialState.COMPLETE, scores, value)
        lines = [line.removeprefix("error: ") for line in text.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {exit_status}"
        return TrialStatus(TrialState.FAIL, scores, reason=reason)

    def stop(self) -> None:
        """Send SIGTERM to the trial's process."""
        self._process.terminate()

    def close(self) -> None:
        """Terminate the trial's process, allowing CLOSE_S seconds for a checkpoint.

        It writes one only where it has a folder for checkpoints.
        """
        self._process.terminate()
        try:
            self._process.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


def read_log(search: Search, text: str) -> tuple[dict[int, float], float | None]:
    """Parse training log text into scores by epoch and the final metric."""
    patterns = metrics(search.recipe.task)
    scores: dict[int, float] = {}
    value = None
    for line in text.splitlines():
        row = {
            f"validation_{name}": float(match[1])
            for name in (search.metric, "loss")
            if (match := re.search(patterns[f"validation:{name}"], line))
        }
        value = row.get(f"validation_{search.metric}", value)
        if row and (epoch := re.search(patterns["train:epoch"], line)):
            scores[int(epoch[1])] = search.score(row)
    return scores, value
