"""Submit SageMaker training jobs by boto3 or SDK; upload code; poll status."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from training.errors import InvalidJob
from training.sagemaker.job_logs import JobLog
from training.sagemaker.source_code import SourceCode
from training.sagemaker.training_job import Request

POLL_S = 1.0
FINAL = {"Completed", "Failed", "Stopped"}
TELEMETRY_OFF = "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n"

Submit = Callable[[Request, str], None]  # takes a request and a region


def client(service: str, region: str) -> Any:
    """Return a boto3 client for an AWS service in a region.

    Where AWS_ENDPOINT_URL is set, it talks to the local stack.
    """
    return boto3.client(service, region_name=region)


def upload_code(code: SourceCode, bucket: str, region: str) -> None:
    """Upload a job's source files to S3 under `code/<digest>/`.

    Raises:
        InvalidJob: S3 refuses, in its own words.
    """
    s3 = client("s3", region)
    try:
        for name, content in code.files.items():
            s3.put_object(Bucket=bucket, Key=f"code/{code.digest}/{name}", Body=content)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(f"cannot upload the code to bucket {bucket!r}: {error}") from error


def artifacts_bucket(region: str) -> str:
    """Return the name of the local stack's S3 bucket for models.

    Raises:
        InvalidJob: there is no stack, or no such bucket.
    """
    try:
        buckets = client("s3", region).list_buckets()["Buckets"]
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(
            f"no local stack: {error}; start it, and set AWS_ENDPOINT_URL to its AWS address"
        ) from error
    names: list[str] = [bucket["Name"] for bucket in buckets if "artifacts" in bucket["Name"]]
    if len(names) != 1:
        raise InvalidJob(
            f"the local stack has {len(names)} artifacts buckets; name one with --bucket"
        )
    return names[0]


# --- boto3


def submit_boto3(request: Request, region: str) -> None:
    """Send a CreateTrainingJob request to SageMaker through boto3, unchanged.

    Raises:
        InvalidJob: SageMaker refuses, in its own words.
    """
    try:
        client("sagemaker", region).create_training_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(str(error)) from error


# --- SageMaker SDK


def submit_sagemaker(request: Request, region: str) -> None:
    """Send a CreateTrainingJob request through the SageMaker Python SDK, version 3.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    with quiet_sdk():
        from sagemaker.core.resources import TrainingJob  # only in .venv-sagemaker

        TrainingJob.create(
            **snake_case(request), session=boto3.Session(region_name=region), region=region
        )


@contextlib.contextmanager
def quiet_sdk() -> Iterator[None]:
    """Disable the SageMaker SDK's telemetry and IAM role check during the block.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    if importlib.util.find_spec("sagemaker") is None:
        raise InvalidJob(
            "the SageMaker SDK is not installed in this Python; use the one of .venv-sagemaker"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(TELEMETRY_OFF)
        config.flush()
        # Telemetry sends one GET for each SDK call, with the account's number and an ARN.
        os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = config.name
        os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"  # saves iam:SimulatePrincipalPolicy
        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:  # pydantic raises ValueErrors
            raise InvalidJob(str(error)) from error


def snake(name: str) -> str:
    """Convert an AWS field name to the SageMaker SDK's snake_case.

    >>> snake("VolumeSizeInGB")
    'volume_size_in_gb'
    """
    return str(xform_name(name))


def snake_case(request: Request) -> dict[str, Any]:
    """Return a job request with fields renamed to the SDK's snake_case.

    Keys of maps, such as hyperparameters, are the user's and stay.
    """
    service = get_session().get_service_model("sagemaker")
    shape = service.operation_model("CreateTrainingJob").input_shape
    renamed: dict[str, Any] = _renamed(request, shape)
    return renamed


def _renamed(value: Any, shape: Any) -> Any:
    if shape.type_name == "structure":
        return {snake(name): _renamed(part, shape.members[name]) for name, part in value.items()}
    if shape.type_name == "list":
        return [_renamed(part, shape.member) for part in value]
    return value


# --- follow a job


def wait(name: str, region: str, say: Callable[[str], None] = print) -> Request:
    """Poll a training job; return its description if completed, else raise.

    `say` gets a line whenever the status changes, with the time passed and left, and the lines that
    the job logs.

    Raises:
        InvalidJob: it failed or was stopped, with the reason.
    """
    call = client("sagemaker", region).describe_training_job
    log = JobLog(name, client("logs", region))
    started = time.monotonic()

    def poll() -> Request:
        job = describe(call, TrainingJobName=name)
        for line in log.lines():
            say(line)
        return job

    def announce(line: str) -> None:
        say(f"{line}  after {time.monotonic() - started:.0f} s")

    job = follow(poll, "TrainingJobStatus", _status_line, announce, POLL_S)
    if job["TrainingJobStatus"] != "Completed":
        reason = job.get("FailureReason", job["SecondaryStatus"])
        raise InvalidJob(f"job {name} ended as {job['TrainingJobStatus']}: {reason}")
    return job


def _status_line(job: Request) -> str:
    """Format a job's status, time left, and metrics at the end."""
    ended = job["TrainingJobStatus"] in FINAL
    metrics = "  ".join(
        f"{item['MetricName']}={item['Value']:.4g}"
        for item in (job.get("FinalMetricDataList", []) if ended else [])
    )
    limit_s = job.get("StoppingCondition", {}).get("MaxRuntimeInSeconds")
    left = ""
    if job["SecondaryStatus"] == "Training" and limit_s:
        begun = job.get("TrainingStartTime") or datetime.now(UTC)
        left_s = limit_s - (datetime.now(UTC) - begun).total_seconds()
        left = f"at most {left_s / 60:.0f} min left"
    return f"{job['SecondaryStatus']:<12} {metrics}{left}".rstrip()


def follow(
    describe_job: Callable[[], Request],
    status_field: str,
    status_line: Callable[[Request], str],
    say: Callable[[str], None],
    poll_s: float,
) -> Request:
    """Poll a job until it ends, reporting status changes; return its description.

    `say` gets the status line whenever it differs from the line before.
    """
    last = ""
    while True:
        job = describe_job()
        line = status_line(job)
        if line != last:
            say(line)
            last = line
        if job[status_field] in FINAL:
            return job
        time.sleep(poll_s)


def describe(call: Callable[..., Request], **name: str) -> Request:
    """Call a SageMaker describe operation and return the job's description.

    Raises:
        InvalidJob: SageMaker refuses, in its own words.
    """
    try:
        return call(**name)
    except (BotoCoreError, ClientError) as error:
        names = " ".join(name.values())
        raise InvalidJob(f"{names} was sent, and cannot be followed: {error}") from error


BACKENDS: Mapping[str, Submit] = {"boto3": submit_boto3, "sagemaker": submit_sagemaker}
