"""Send job requests by boto3 or the SageMaker SDK; follow jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import boto3
from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from training.errors import InvalidJob
from training.sagemaker.source_code import SourceCode
from training.sagemaker.training_job import Request

POLL_S = 1.0
FINAL = {"Completed", "Failed", "Stopped"}
TELEMETRY_OFF = "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n"

Submit = Callable[[Request, str], None]  # request, region


def client(service: str, region: str) -> Any:
    """Return a boto3 client for a service in a region.

    Where AWS_ENDPOINT_URL is set, it talks to the local stack.
    """
    return boto3.client(service, region_name=region)


def upload_code(code: SourceCode, bucket: str, region: str) -> None:
    """Put every file under `code/<digest>/`.

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
    """Return the bucket of the local stack that models are uploaded to.

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
    """Send a CreateTrainingJob request unchanged.

    Raises:
        InvalidJob: SageMaker refuses, in its own words.
    """
    try:
        client("sagemaker", region).create_training_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(str(error)) from error


# --- SageMaker SDK


def submit_sagemaker(request: Request, region: str) -> None:
    """Send a CreateTrainingJob request through the SageMaker SDK 3.

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
    """Turn off the SageMaker SDK's telemetry and its check of the role.

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
        # Telemetry is one GET a call, with the account's number and an ARN.
        os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = config.name
        os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"  # saves iam:SimulatePrincipalPolicy
        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:  # pydantic raises ValueErrors
            raise InvalidJob(str(error)) from error


def snake(name: str) -> str:
    """Return a field's name as the SDK spells it.

    >>> snake("VolumeSizeInGB")
    'volume_size_in_gb'
    """
    return str(xform_name(name))


def snake_case(request: Request) -> dict[str, Any]:
    """Rename the fields of a request as the SageMaker SDK spells them.

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
    """Follow a training job to its end and return its description.

    `say` gets a line whenever the status changes.

    Raises:
        InvalidJob: it failed or was stopped, with the reason.
    """
    call = client("sagemaker", region).describe_training_job
    job = follow(
        lambda: describe(call, TrainingJobName=name),
        "TrainingJobStatus",
        _status_line,
        say,
        POLL_S,
    )
    if job["TrainingJobStatus"] != "Completed":
        reason = job.get("FailureReason", job["SecondaryStatus"])
        raise InvalidJob(f"job {name} ended as {job['TrainingJobStatus']}: {reason}")
    return job


def _status_line(job: Request) -> str:
    metrics = "  ".join(
        f"{item['MetricName']}={item['Value']:.4g}" for item in job.get("FinalMetricDataList", [])
    )
    return f"{job['SecondaryStatus']:<12} {metrics}".rstrip()


def follow(
    describe_job: Callable[[], Request],
    status_field: str,
    status_line: Callable[[Request], str],
    say: Callable[[str], None],
    poll_s: float,
) -> Request:
    """Poll a job until it ends, and return its last description.

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
    """Return SageMaker's description of a job.

    Raises:
        InvalidJob: SageMaker refuses, in its own words.
    """
    try:
        return call(**name)
    except (BotoCoreError, ClientError) as error:
        names = " ".join(name.values())
        raise InvalidJob(f"{names} was sent, and cannot be followed: {error}") from error


BACKENDS: Mapping[str, Submit] = {"boto3": submit_boto3, "sagemaker": submit_sagemaker}
