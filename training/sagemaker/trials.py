"""Hyperparameter search that runs each trial as a SageMaker training job."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from optuna.trial import Trial, TrialState

from training.runs.trackers import open_runs
from training.sagemaker import backends
from training.sagemaker.training_job import Job, build, job_name
from training.sagemaker.validation import validate
from training.tuning import runner
from training.tuning.runner import RunningTrial, TrialStatus
from training.tuning.space import Search, load_search
from training.tuning.study import Settings, Study

POLL_S = 5.0  # seconds; each poll is one request for each running job


def run_over_jobs(job: Job, options: argparse.Namespace, submit: backends.Submit) -> Settings:
    """Search hyperparameters in SageMaker training jobs; return the best settings.

    Each trial is a job like `job`; `--parallel` of them run at a time. They are tracked here.

    Raises:
        InvalidJob: the recipe cannot be loaded here, or SageMaker refuses a job.
        TrainingError: the first trials all failed.
    """
    search = load_search(options, data=json.dumps(dict(job.channels)))
    folder = options.checkpoint_dir or Path("artifacts") / job.model
    runs = open_runs(search.recipe.name, folder, os.environ, grouped=True)
    with runs.failed_on_error():
        best = _run_trials(job, options, submit, Study(search, options.checkpoint_dir, runs))
    runs.close()
    return best


def _run_trials(
    job: Job, options: argparse.Namespace, submit: backends.Submit, study: Study
) -> Settings:
    client = backends.client("sagemaker", job.region)

    def launch(trial: Trial) -> RunningTrial:
        name = trial.user_attrs.get("job") or _submit_trial(job, study, trial, submit)
        return JobTrial(study.search, name, client, resumable=study.folder is not None)

    # The local stack is polled more often: its jobs take seconds.
    poll_s = runner.POLL_S if "AWS_ENDPOINT_URL" in os.environ else POLL_S
    runner.run_parallel(study, launch, parallel=options.parallel, poll_s=poll_s)
    print("\n".join(study.table()), flush=True)
    return study.settings(study.best)


def _submit_trial(job: Job, study: Study, trial: Trial, submit: backends.Submit) -> str:
    """Submit a trial's training job and return the job's name.

    The name is stored with the trial: a resumed search follows the same job.
    """
    suffix = f"t{trial.number + 1:03d}-{secrets.token_hex(2)}"
    name = job_name(job.model[:36], suffix=suffix)
    settings = {**job.hyperparameters, **study.settings(trial)}
    request = build(replace(job, name=name, hyperparameters=settings, trial=True, arguments=()))
    validate(request)
    submit(request, job.region)
    trial.set_user_attr("job", name)
    return name


class JobTrial:
    """Search trial that runs as a SageMaker training job."""

    def __init__(self, search: Search, name: str, client: Any, *, resumable: bool) -> None:
        self._search, self._name, self._client = search, name, client
        self._resumable = resumable

    def status(self) -> TrialStatus:
        """Return the trial's progress, from SageMaker's metrics of the job."""
        job = self._client.describe_training_job(TrainingJobName=self._name)
        metrics = {
            item["MetricName"]: float(item["Value"]) for item in job.get("FinalMetricDataList", [])
        }
        row = {
            f"validation_{name}": metrics[f"validation:{name}"]
            for name in (self._search.metric, "loss")
            if f"validation:{name}" in metrics
        }
        scores = self._scores(metrics, row)
        status = job["TrainingJobStatus"]
        if status == "Completed":
            value = row.get(f"validation_{self._search.metric}")
            return TrialStatus(TrialState.COMPLETE, scores, value)
        if status in backends.FINAL:
            reason = job.get("FailureReason") or job["SecondaryStatus"]
            return TrialStatus(TrialState.FAIL, scores, reason=reason)
        return TrialStatus(TrialState.RUNNING, scores)

    def _scores(
        self, metrics: Mapping[str, float], row: Mapping[str, float]
    ) -> Mapping[int, float]:
        epoch = metrics.get("train:epoch")
        return {int(epoch): self._search.score(row)} if epoch is not None and row else {}

    def stop(self) -> None:
        """Stop the trial's training job."""
        with contextlib.suppress(ClientError):  # the job has ended meanwhile
            self._client.stop_training_job(TrainingJobName=self._name)

    def close(self) -> None:
        """Stop the trial's job, unless a resumed search can follow it."""
        if not self._resumable:
            self.stop()
