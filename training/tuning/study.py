"""A search for hyperparameters: trainings judged on the validation part, here, in processes of their own, or as jobs.

    python -m training train mlp --tune 20 --search optuna --checkpoint-dir runs/mlp
    python -m training train mlp --tune 20 --parallel 4 --on sagemaker --instance ml.g5.xlarge

A trial never sees the test part, and a trial that is a job writes no model. The training with the best settings follows
as if they had been set. With a folder for checkpoints, the search goes on where it was interrupted. No torch at import:
jobs are submitted where there is none.
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
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from training.data import Dataset
from training.errors import InvalidCheckpoint, InvalidJob, TrainingError
from training.evaluation import metrics as evaluate
from training.hyperparameters import Hyperparameters, encode, override, pairs
from training.recipe import Recipe
from training.recipe_loading import load
from training.tuning import samplers
from training.tuning.samplers import Search, Settings, Space, Trial

if TYPE_CHECKING:
    import torch

    from training.fitting.checkpoint import Stop
    from training.fitting.distributed import Ranks
    from training.pipeline import Trained
    from training.sagemaker.training_job import Job

FILE = "study.json"
SHOWN = 30  # trials in the table
RECORDED = 64  # in the report
TRIED = 3  # failures before the first success that end a search
POLL_S = 0.2  # of processes
POLL_JOBS_S = 5.0
PACKAGE = Path(__file__).parents[1]


def add_options(parser: argparse.ArgumentParser, *kinds: str) -> None:
    parser.add_argument(
        "--tune",
        type=_count,
        default=0,
        metavar="N",
        help="search the best hyperparameters in N trials",
    )
    parser.add_argument(
        "--search",
        choices=["random", "grid", "optuna", *kinds],
        default="random",
        help="[%(default)s]",
    )
    parser.add_argument(
        "--parallel", type=_count, default=1, metavar="N", help="trials at a time [1]"
    )
    parser.add_argument(
        "--checkpoint-dir", type=Path, help="save the run, or the search, here and resume it"
    )


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


class Study:
    """The trials of a search, kept in a file where there is a folder."""

    def __init__(
        self,
        recipe: Recipe[Any],
        settings: Hyperparameters,
        *,
        fixed: Collection[str],
        kind: str,
        limit: int,
        data: str = "",
        folder: Path | None = None,
    ) -> None:
        self.recipe, self.settings, self.limit, self.folder = recipe, settings, limit, folder
        self.space: Space = samplers.space(recipe, fixed)
        primary = evaluate.PRIMARY[recipe.task]
        self.metric, self.higher_is_better = primary.metric, primary.higher_is_better
        self.kind = kind
        self._search: Search = self._make(settings.seed)
        # A grid is cut by its size. Told as JSON, for it is compared with what was read from a file.
        identity = [
            recipe.name,
            kind,
            limit if kind == "grid" else 0,
            asdict(settings),
            repr(dict(self.space)),
            data,
        ]
        self._identity = json.loads(json.dumps(identity))
        self.trials: list[Trial] = self._restored()

    def _make(self, seed: int) -> Search:
        if self.kind == "grid":
            return samplers.Grid(self.space, self.limit, seed)
        if self.kind == "optuna":
            return samplers.Optuna(self.space, seed, self.higher_is_better)
        return samplers.Draws(self.space, seed)

    def next(self, flying: Collection[int] = ()) -> Trial | None:
        """A trial that was interrupted, or a new one; None when all are made."""
        for trial in self.trials:
            if trial.state == "running" and trial.number not in flying:
                return trial
        if len(self.trials) >= self.limit:
            return None
        settings = self._search.ask(len(self.trials), self.trials)
        if settings is None:
            return None
        self.trials.append(Trial(len(self.trials), settings))
        return self.trials[-1]

    def hopeless(self, trial: Trial) -> bool:
        return samplers.hopeless(trial, self.trials, self.higher_is_better)

    def finish(
        self, trial: Trial, state: samplers.State, value: float | None = None, reason: str = ""
    ) -> None:
        """Note how `trial` ended, and say so.

        Raises:
            TrainingError: the first ones all failed, and the next would.
        """
        if state == "complete" and (value is None or not math.isfinite(value)):
            state, reason = "failed", reason or f"it has no {self.metric} on the validation part"
        trial.state, trial.reason = state, reason
        trial.value = value if state == "complete" else None
        self.save()
        print(self._line(trial), flush=True)
        ended = [one for one in self.trials if one.state != "running"]
        if len(ended) >= min(TRIED, self.limit) and all(one.state == "failed" for one in ended):
            raise TrainingError(f"{len(ended)} of {len(ended)} trials failed: {ended[-1].reason}")

    def _line(self, trial: Trial) -> str:
        ended = [one for one in self.trials if one.state != "running"]
        left = (self.limit - len(ended)) * sum(one.duration_s for one in ended) / max(len(ended), 1)
        return f"trial {trial.number + 1}/{self.limit}  {self._told(trial)}  left={left:.0f}s"

    def _told(self, trial: Trial) -> str:
        reached = f"{trial.value:.4f}" if trial.value is not None else trial.state
        after = f" after {max(trial.values)} epochs" if trial.values else ""
        why = f" ({trial.reason[:80]})" if trial.state == "failed" else ""
        return f"validation_{self.metric}={reached}{after}{why}  {shown(trial.settings)}"

    @property
    def best(self) -> Trial:
        """
        Raises:
            TrainingError: no trial was completed.
        """
        complete = self._ranked("complete")
        if not complete:
            raise TrainingError(
                "no trial was completed" + "".join(f": {one.reason}" for one in self.trials[-1:])
            )
        return complete[0]

    def _ranked(self, *states: str) -> list[Trial]:
        sign = -1 if self.higher_is_better else 1
        found = [trial for trial in self.trials if trial.state in states]
        return sorted(
            found, key=lambda one: (one.value is None, sign * (one.value or 0.0), one.number)
        )

    def table(self) -> list[str]:
        """The best trials first, one line each."""
        ranked = self._ranked("complete", "pruned", "failed")
        counts = {
            state: sum(one.state == state for one in ranked)
            for state in ("complete", "pruned", "failed")
        }
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        lines = [f"{self.kind} search over {', '.join(self.space)}: {told}"]
        return lines + [f"  {trial.number + 1:>3}  {self._told(trial)}" for trial in ranked[:SHOWN]]

    def record(self) -> dict[str, Any]:
        """For the report: the trials, the best first."""
        ranked = self._ranked("complete", "pruned", "failed")
        return {
            "search": self.kind,
            "metric": f"validation_{self.metric}",
            "higher_is_better": self.higher_is_better,
            "trials": len(ranked),
            "best": self.best.settings,
            "tried": [
                {
                    "trial": one.number + 1,
                    "state": one.state,
                    "value": one.value,
                    "epochs": max(one.values, default=None),
                    "duration_s": round(one.duration_s, 3),
                    "settings": one.settings,
                }
                for one in ranked[:RECORDED]
            ],
        }

    def save(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{FILE}.tmp"
        document = {"identity": self._identity, "trials": [asdict(trial) for trial in self.trials]}
        part.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        part.replace(self.folder / FILE)

    def _restored(self) -> list[Trial]:
        path = self.folder / FILE if self.folder else None
        if path is None or not path.is_file():
            return []
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            trials = [self._typed(Trial(**one)) for one in document["trials"]]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidCheckpoint(f"{FILE} cannot be read; remove it to start anew") from error
        if document["identity"] != self._identity:
            raise InvalidCheckpoint(
                f"{FILE} belongs to another search; remove it, or use another directory"
            )
        print(f"resumed after {sum(one.state != 'running' for one in trials)} trials", flush=True)
        return trials

    def _typed(self, trial: Trial) -> Trial:
        """JSON knows neither tuples nor keys that are numbers."""
        given = asdict(override(self.settings, trial.settings))
        settings = {name: given[name] for name in trial.settings}
        return replace(
            trial,
            settings=settings,
            values={int(epoch): one for epoch, one in trial.values.items()},
        )

    def checkpoints(self, trial: Trial) -> Path | None:
        return self.folder / "trials" / f"{trial.number:03d}" if self.folder else None


def shown(settings: Settings) -> str:
    """As they could be set.

    >>> shown({"lr": 0.001, "hidden": (64, 64)})
    'lr=0.001 hidden=[64, 64]'
    """
    return " ".join(f"{name}={encode(value)}" for name, value in settings.items())


def without_test(data: Dataset) -> Dataset:
    """`data` whose test part is the validation part: what settles settings must not see the other."""
    return replace(data, test=data.validation)


def judge(run: Trained) -> float | None:
    """The primary metric of `run` on the validation part."""
    from training import pipeline

    metrics, _ = pipeline.measure(run.recipe, run.run, run.data.validation, run.labels)
    return metrics.get(evaluate.PRIMARY[run.recipe.task].metric)


class _GivenUp(Exception):
    """When the trials so far say that this one leads nowhere."""


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
) -> Study:
    """The search that the options ask for, on this machine.

    Raises:
        Interrupted: `stop` was requested; what was done is saved.
        TrainingError: there is nothing to search, or no trial comes to an end.
    """
    if ranks.count > 1:
        raise TrainingError("--tune starts from one process; take --parallel, or --on sagemaker")
    folder = options.checkpoint_dir or environ.get("SM_CHECKPOINT_DIR")
    study = Study(
        recipe,
        settings,
        fixed={*pairs(options.set), *json.loads(environ.get("SM_HPS", "{}"))},
        kind=options.search,
        limit=options.tune,
        data=data.sha256,
        folder=Path(folder) if folder else None,
    )
    if options.parallel > 1:
        processes(study, options, environ, stop)
    else:
        by_settings = len(inspect.signature(recipe.data).parameters) > 1
        here(
            study,
            lambda own: recipe.load_data(channels, own) if by_settings else data,
            device=device,
            stop=stop,
        )
    for line in study.table():
        print(line, flush=True)
    return study


def here(
    study: Study,
    data: Callable[[Hyperparameters], Dataset],
    *,
    device: torch.device,
    stop: Stop | None = None,
    fit: Callable[..., Trained] | None = None,
) -> Study:
    """Make the trials one after the other, in this process.

    Raises:
        Interrupted: `stop` was requested; what was done is saved.
        TrainingError: no trial comes to an end.
    """
    from training import pipeline
    from training.fitting import checkpoint

    fit = fit or pipeline.fit
    while (trial := study.next()) is not None:
        if stop is not None and stop.requested:
            raise checkpoint.Interrupted(
                f"stopped before trial {trial.number + 1} of {study.limit}"
            )
        study.save()
        started, spent = time.monotonic(), trial.duration_s

        def watch(row: Mapping[str, float], trial: Trial = trial) -> None:
            trial.values[int(row["epoch"])] = _value(study, row)
            if study.hopeless(trial):
                raise _GivenUp

        state: samplers.State = "complete"
        value, reason, folder = None, "", study.checkpoints(trial)
        try:
            settings = override(study.settings, trial.settings)
            with contextlib.redirect_stdout(io.StringIO()):
                run = fit(
                    study.recipe,
                    settings,
                    without_test(data(settings)),
                    device=device,
                    checkpoints=folder,
                    stop=stop,
                    watch=watch,
                )
                value = judge(run)
        except _GivenUp:
            state = "pruned"
        except TrainingError as error:
            state, reason = "failed", str(error)
        finally:
            trial.duration_s = spent + time.monotonic() - started
            study.save()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        study.finish(trial, state, value, reason)
    return study


def _value(study: Study, row: Mapping[str, float]) -> float:
    """What a row of the history says of the primary metric; where it is not measured, the loss stands in for it."""
    if (value := row.get(f"validation_{study.metric}")) is not None:
        return value
    return -row["validation_loss"] if study.higher_is_better else row["validation_loss"]


@dataclass(frozen=True)
class Look:
    """How an attempt stands."""

    state: Literal["running", "complete", "failed"]
    values: Mapping[int, float] = field(default_factory=dict)  # by epoch
    value: float | None = None
    reason: str = ""


class Attempt(Protocol):
    """A trial under way elsewhere."""

    def look(self) -> Look: ...

    def stop(self) -> None:
        """Give it up: it ends soon."""

    def leave(self) -> None:
        """The search ends before it."""


def elsewhere(
    study: Study,
    launch: Callable[[Trial], Attempt],
    *,
    parallel: int,
    poll_s: float = POLL_S,
    stopping: Callable[[], bool] = lambda: False,
) -> Study:
    """Make the trials by `launch`, up to `parallel` at a time; a look at each every `poll_s` seconds.

    Raises:
        TrainingError: no trial comes to an end.
    """
    flying: dict[int, Attempt] = {}
    started: dict[int, float] = {}
    given_up: set[int] = set()
    try:
        while not stopping():
            while len(flying) < parallel and (trial := study.next(flying)) is not None:
                flying[trial.number] = launch(trial)
                started[trial.number] = time.monotonic() - trial.duration_s
                study.save()
            if not flying:
                break
            for number, attempt in list(flying.items()):
                trial, look = study.trials[number], attempt.look()
                trial.values |= look.values
                trial.duration_s = time.monotonic() - started[number]
                if look.state == "running":
                    if number not in given_up and study.hopeless(trial):
                        given_up.add(number)
                        attempt.stop()
                    continue
                del flying[number]
                state: samplers.State = (
                    "pruned" if number in given_up and look.state != "complete" else look.state
                )
                study.finish(trial, state, look.value, look.reason)
            time.sleep(poll_s)
    finally:
        for attempt in flying.values():
            attempt.leave()
        study.save()
    return study


class Process:
    """A trial in a process of its own, followed by the lines that it prints."""

    def __init__(self, study: Study, command: list[str], environment: Mapping[str, str]) -> None:
        self._study = study
        self._lines = tempfile.TemporaryFile(  # noqa: SIM115 (open until the process ends)
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._lines, stderr=subprocess.STDOUT
        )

    def look(self) -> Look:
        status = self._process.poll()
        self._lines.seek(0)
        text = self._lines.read()
        values, value = read(self._study, text)
        if status is None:
            return Look("running", values)
        self._lines.close()
        if status == 0:
            return Look("complete", values, value)
        said = [line.removeprefix("error: ") for line in text.splitlines() if line.strip()]
        return Look("failed", values, None, said[-1] if said else f"exit status {status}")

    def stop(self) -> None:
        self._process.terminate()

    def leave(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lines.close()


def read(study: Study, text: str) -> tuple[dict[int, float], float | None]:
    """What a training's lines say: the metric by epoch, and the last of all."""
    from training.log_lines import metrics

    patterns = metrics(study.recipe.task)
    values: dict[int, float] = {}
    last = None
    for line in text.splitlines():
        row = {
            f"validation_{name}": float(found[1])
            for name in (study.metric, "loss")
            if (found := re.search(patterns[f"validation:{name}"], line))
        }
        if f"validation_{study.metric}" in row:
            last = row[f"validation_{study.metric}"]
        if row and (epoch := re.search(patterns["train:epoch"], line)):
            values[int(epoch[1])] = _value(study, row)
    return values, last


def processes(
    study: Study,
    options: argparse.Namespace,
    environ: Mapping[str, str],
    stop: Stop,
) -> Study:
    """Make the trials by this command line's own processes, --parallel at a time.

    Raises:
        Interrupted: `stop` was requested; what was done is saved.
        TrainingError: no trial comes to an end.
    """
    from training.fitting import checkpoint

    threads = max(1, (os.cpu_count() or 1) // options.parallel)
    search_path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [environ.get("PYTHONPATH")])])
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **environ,
        "MAYFLY_TRIAL": "1",
        "PYTHONPATH": search_path,
    }
    environment.pop("SM_CHECKPOINT_DIR", None)  # that is the search's

    def launch(trial: Trial) -> Attempt:
        command = [
            sys.executable,
            "-u",
            "-m",
            "training.train",
            options.recipe,
            "--device",
            options.device,
        ]
        for setting in options.set:
            command += ["--set", setting]
        for name, value in trial.settings.items():
            command += ["--set", f"{name}={encode(value)}"]
        for folder in options.data:
            command += ["--data", folder]
        if (checkpoints := study.checkpoints(trial)) is not None:
            command += ["--checkpoint-dir", str(checkpoints)]
        return Process(study, command, environment)

    elsewhere(study, launch, parallel=options.parallel, stopping=lambda: stop.requested)
    if stop.requested:
        raise checkpoint.Interrupted(f"stopped after {len(study.trials)} of {study.limit} trials")
    if study.folder is not None:
        shutil.rmtree(study.folder / "trials", ignore_errors=True)
    return study


class Sent:
    """A trial as a training job."""

    def __init__(self, study: Study, name: str, client: Any) -> None:
        self._study, self._name, self._client = study, name, client

    def look(self) -> Look:
        job = self._client.describe_training_job(TrainingJobName=self._name)
        told = {
            item["MetricName"]: float(item["Value"]) for item in job.get("FinalMetricDataList", [])
        }
        row = {
            f"validation_{name}": told[f"validation:{name}"]
            for name in (self._study.metric, "loss")
            if f"validation:{name}" in told
        }
        epoch = told.get("train:epoch")
        values = {int(epoch): _value(self._study, row)} if epoch is not None and row else {}
        status = job["TrainingJobStatus"]
        if status == "Completed":
            return Look("complete", values, row.get(f"validation_{self._study.metric}"))
        if status in ("Failed", "Stopped"):
            return Look("failed", values, None, job.get("FailureReason") or job["SecondaryStatus"])
        return Look("running", values)

    def stop(self) -> None:
        from botocore.exceptions import ClientError

        with contextlib.suppress(ClientError):  # it has ended meanwhile
            self._client.stop_training_job(TrainingJobName=self._name)

    def leave(self) -> None:
        """Where the search can be resumed, the job goes on and is found again."""
        if self._study.folder is None:
            self.stop()


def over_jobs(
    job: Job, options: argparse.Namespace, send: Callable[[dict[str, Any], str], None]
) -> Settings:
    """Make the trials as jobs like `job`, --parallel at a time, and return the best settings.

    Raises:
        InvalidJob: the recipe cannot be loaded here, or SageMaker refuses a job.
        TrainingError: no trial comes to an end.
    """
    from training.sagemaker import backends
    from training.sagemaker.training_job import build, job_name
    from training.sagemaker.validation import validate

    study = prepare(options.recipe, options, data=json.dumps(dict(job.channels)))
    client = backends.client("sagemaker", job.region)

    def launch(trial: Trial) -> Attempt:
        if trial.job is None:
            trial.job = job_name(
                job.model[:36], suffix=f"t{trial.number + 1:03d}-{secrets.token_hex(2)}"
            )
            settings = {**job.hyperparameters, **trial.settings}
            request = build(
                replace(job, name=trial.job, hyperparameters=settings, trial=True, arguments=())
            )
            validate(request)
            send(request, job.region)
        return Sent(study, trial.job, client)

    poll_s = POLL_S if "AWS_ENDPOINT_URL" in os.environ else POLL_JOBS_S
    elsewhere(study, launch, parallel=options.parallel, poll_s=poll_s)
    for line in study.table():
        print(line, flush=True)
    return study.best.settings


def prepare(reference: str, options: argparse.Namespace, data: str) -> Study:
    """The study of jobs, for which the recipe is loaded here, but not its data.

    Raises:
        InvalidJob: something that the recipe imports is missing here.
    """
    try:
        recipe = load(reference)
    except ModuleNotFoundError as error:
        raise InvalidJob(
            f"to search, the recipe is loaded here, and {error.name} is not installed"
        ) from error
    fixed = pairs(options.set)
    settings = override(recipe.hyperparameters(), fixed)
    return Study(
        recipe,
        settings,
        fixed=fixed,
        kind=options.search,
        limit=options.tune,
        data=data,
        folder=options.checkpoint_dir,
    )
