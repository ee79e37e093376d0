"""Emulation of SageMaker training jobs: moto's API, real local processes.

moto alone completes a job at once.

`install()` is called once in moto's process. Then CreateTrainingJob runs the job's entry point
(`local.aws.training_container`), DescribeTrainingJob reports its progress, and StopTrainingJob
stops it. A job's output is in <log folder>/training-<job>.log.

A spot interruption can be requested in the job's Environment: MAYFLY_INTERRUPT_ON=<text> sends
SIGTERM to the first attempt once a line of its output contains the text, and starts another from
the checkpoints. MAYFLY_STOP_GRACE_S in moto's environment replaces the 120 s between SIGTERM and
SIGKILL.
"""

import copy
import json
import os
import re
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from local.aws.training_container import Bucket, Container, JobFailed
from local.execution.processes import Janitor

STOPPED = 143  # exit status after SIGTERM: 128 + 15
MAX_ATTEMPTS = 5
LOG_GROUP = "/aws/sagemaker/TrainingJobs"

_lock = threading.Lock()
_running: dict[str, "Job"] = {}  # running jobs by ARN


class LogStream:
    """Log stream of a training job in moto's CloudWatch Logs."""

    def __init__(self, arn: str, job: str) -> None:
        from moto.logs.exceptions import ResourceAlreadyExistsException
        from moto.logs.models import logs_backends

        _, _, _, region, account, _ = arn.split(":", 5)
        self._backend = logs_backends[account][region]
        self._name = f"{job}/algo-1-{int(time.time())}"
        with suppress(ResourceAlreadyExistsException):
            self._backend.create_log_group(LOG_GROUP, {})
        self._backend.create_log_stream(LOG_GROUP, self._name)

    def write(self, line: str) -> None:
        """Append a line, as SageMaker's agent does, unless it is empty."""
        if not line:
            return
        event = {"timestamp": int(time.time() * 1000), "message": line}
        self._backend.put_log_events(LOG_GROUP, self._name, [event])


class Job:
    """SageMaker training job that runs in a thread, updating moto's record."""

    def __init__(
        self,
        request: dict[str, Any],
        record: Any,
        bucket: Bucket,
        janitor: Janitor,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._request = request
        self._record = record
        self._bucket = bucket
        self._janitor = janitor
        self._log_path = log
        self._environment = environment
        self._metrics: dict[str, dict[str, Any]] = {}
        self._stopping = threading.Event()
        self._interrupted = threading.Event()
        self._container: Container | None = None
        algorithm = request["AlgorithmSpecification"]
        self._patterns = [
            (item["Name"], re.compile(item["Regex"]))
            for item in algorithm.get("MetricDefinitions", [])
        ]
        self._interrupt_on = (request.get("Environment") or {}).get("MAYFLY_INTERRUPT_ON")
        self._grace_s = float(os.environ.get("MAYFLY_STOP_GRACE_S", "120"))
        # Set all attributes now, because DescribeTrainingJob may read the record during the run.
        record.training_job_status = "InProgress"
        record.secondary_status = "Starting"
        record.secondary_status_transitions = []
        record.algorithm_specification = algorithm
        record.final_metric_data_list = []
        record.model_artifacts = record.failure_reason = record.training_end_time = (
            record.training_start_time
        ) = None
        record.training_time_in_seconds = record.billable_time_in_seconds = None
        record.environment = request.get("Environment")
        record.retry_strategy = request.get("RetryStrategy")
        self._stream = LogStream(record.arn, request["TrainingJobName"])
        self._status("Starting", "Starting the training job")

    def start(self) -> None:
        """Start the training job in a thread."""
        threading.Thread(
            target=self._run, name=self._request["TrainingJobName"], daemon=True
        ).start()

    def stop(self) -> None:
        """Stop the training job; it ends within the grace period."""
        self._record.training_job_status = "Stopping"
        self._status("Stopping", "Stopping the training job", "Stopping")
        self._stopping.set()

    def _run(self) -> None:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("w", encoding="utf-8", buffering=1) as self._log:
            try:
                self._attempts()
            except JobFailed as failure:
                self._end("Failed", "Failed", str(failure))
            except ClientError as error:  # S3 refused
                self._end("Failed", "Failed", f"ClientError: {error}")
            except Exception as error:  # the last frame of a thread
                traceback.print_exc(file=self._log)
                self._end("Failed", "Failed", f"InternalServerError: {error}")

    def _attempts(self) -> None:
        started = time.monotonic()
        for attempt in range(MAX_ATTEMPTS):
            self._interrupted.clear()
            container = self._container = Container(
                self._request, self._record.arn, self._bucket, self._environment
            )
            self._janitor.tell("folder", container.base)
            try:
                if self._attempt(container, first=attempt == 0, started=started):
                    return
            finally:
                container.remove()
            self._status("Restarting", "The spot instance was taken away; starting another")
        raise JobFailed(f"ClientError: the spot instance was taken away {MAX_ATTEMPTS} times")

    def _attempt(self, container: Container, *, first: bool, started: float) -> bool:
        """Run one attempt of the job; return False after spot interruption."""
        self._status("Downloading", "Downloading the training data")
        container.prepare()
        self._status("Training", "Training job in progress")
        if first:
            self._record.training_start_time = datetime.now(UTC)
        limit = (self._request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds", 86400)
        status, out_of_time = container.run(
            self._janitor,
            self._on_line,
            self._stopping.is_set,
            limit - (time.monotonic() - started),
            self._grace_s,
        )
        self._log.write(f"exit status {status}\n")
        if (
            status != 0
            and self._interrupted.is_set()
            and not self._stopping.is_set()
            and not out_of_time
        ):
            self._interrupt_on = None
            self._status("Interrupted", "The spot instance was taken away")
            return False
        ended_by_us = self._stopping.is_set() or out_of_time
        if status not in (0, STOPPED) and not ended_by_us:
            raise JobFailed(
                f"AlgorithmError: {container.failure() or 'no failure file'}, exit code: {status}"
            )
        if status == STOPPED and not ended_by_us:
            raise JobFailed(
                f"AlgorithmError: the script ended itself as if by SIGTERM, exit code: {status}"
            )
        self._status("Uploading", "Uploading the output")
        self._record.model_artifacts = {"S3ModelArtifacts": container.upload()}
        if out_of_time:
            self._end("Stopped", "MaxRuntimeExceeded", None)
        elif self._stopping.is_set():
            self._end("Stopped", "Stopped", None)
        else:
            self._end("Completed", "Completed", None)
        return True

    def _on_line(self, line: str) -> None:
        self._log.write(line + "\n")
        self._stream.write(line)
        for name, pattern in self._patterns:
            match = pattern.search(line)
            with suppress(ValueError, IndexError):  # the pattern matched no number
                if match is not None:
                    now = datetime.now(UTC)
                    self._metrics[name] = {
                        "MetricName": name,
                        "Value": float(match[1]),
                        "Timestamp": now,
                    }
                    self._record.final_metric_data_list = list(self._metrics.values())
        spot = self._request.get("EnableManagedSpotTraining")
        if (
            spot
            and self._interrupt_on
            and self._interrupt_on in line
            and not self._interrupted.is_set()
        ):
            self._interrupted.set()
            if self._container is not None:
                self._container.terminate()

    def _status(self, secondary: str, message: str, status: str | None = None) -> None:
        """Append a status change to the training job's record.

        The list is replaced, because another thread may be reading it.
        """
        now = datetime.now(UTC)
        earlier = [
            item if "EndTime" in item else item | {"EndTime": now}
            for item in self._record.secondary_status_transitions
        ]
        self._record.secondary_status_transitions = [
            *earlier,
            {"Status": secondary, "StartTime": now, "StatusMessage": message},
        ]
        self._record.secondary_status = secondary
        self._record.last_modified_time = now
        if status is not None:
            self._record.training_job_status = status

    def _end(self, status: str, secondary: str, reason: str | None) -> None:
        now = datetime.now(UTC)
        if self._record.training_start_time is not None:
            seconds = max(1, round((now - self._record.training_start_time).total_seconds()))
            self._record.training_time_in_seconds = self._record.billable_time_in_seconds = seconds
        self._record.training_end_time = now
        self._record.failure_reason = reason[:1024] if reason else None
        self._log.write(f"{status}{': ' + reason if reason else ''}\n")
        with _lock:  # a job with a final status can no longer be stopped
            _running.pop(self._record.arn, None)
            self._status(secondary, reason or f"Training job {status.lower()}", status)


def install(endpoint_url: str | None = None, log_dir: Path | None = None) -> None:
    """Patch moto's SageMaker to run training jobs; a second call changes nothing.

    `endpoint_url` defaults to $AWS_ENDPOINT_URL; `log_dir` to $MAYFLY_LOG_DIR, or `logs` in
    $MAYFLY_STATE_DIR or .local.
    """
    from moto.core.responses import ActionResult, EmptyResult
    from moto.sagemaker.exceptions import ResourceInUseException, ValidationError
    from moto.sagemaker.responses import SageMakerResponse

    if hasattr(SageMakerResponse, "stop_training_job"):
        return
    endpoint = endpoint_url or os.environ["AWS_ENDPOINT_URL"]
    state = Path(os.environ.get("MAYFLY_STATE_DIR", ".local"))
    logs = log_dir or Path(os.environ.get("MAYFLY_LOG_DIR", state / "logs"))
    janitor = Janitor()
    record_job = SageMakerResponse.create_training_job

    def create_training_job(self: Any) -> ActionResult:
        # moto's parser drops Environment, RetryStrategy and MetricDefinitions.
        request = json.loads(self.body)
        name = request["TrainingJobName"]
        backend = self.sagemaker_backend
        with _lock:
            if name in backend.training_jobs:
                raise ResourceInUseException(f"Training job names must be unique; {name} exists")
            answer = record_job(self)
            record = backend.training_jobs[name]
            try:
                job = Job(
                    copy.deepcopy(request),
                    record,
                    Bucket(endpoint, backend.region_name),
                    janitor,
                    logs / f"training-{name}.log",
                    {"AWS_ENDPOINT_URL": endpoint},
                )
            except re.error as error:
                del backend.training_jobs[name]
                raise ValidationError(message=f"MetricDefinitions: {error}") from error
            _running[record.arn] = job
        job.start()
        return answer

    def stop_training_job(self: Any) -> EmptyResult:
        name = self._get_param("TrainingJobName")
        backend = self.sagemaker_backend
        record = backend.training_jobs.get(name)
        if record is None:
            raise ValidationError(message="Requested resource not found.")
        with _lock:
            job = _running.get(record.arn)
            if job is None:
                status = record.training_job_status
                raise ValidationError(
                    message=f"The request was rejected because the training job is in status"
                    f" {status}."
                )
            job.stop()
        return EmptyResult()

    moto_api: Any = SageMakerResponse
    moto_api.create_training_job = create_training_job
    moto_api.stop_training_job = stop_training_job
