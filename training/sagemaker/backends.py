"""What a job needs from outside: its code in S3, a backend that takes the request, and its end."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import InvalidJob, InvalidRecipe
from training.hyperparameters import override
from training.recipe import Task
from training.recipe_loading import RECIPES, load

Request = dict[str, Any]
PACKAGE = Path(__file__).parents[1]
POLL_S = 1.0
FINAL = {"Completed", "Failed", "Stopped"}
TELEMETRY_OFF = "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n"


@dataclass(frozen=True)
class Code:
    """The files of the channel `code`, by their path in it; `entry` is the recipe as the script in there is told it."""

    files: Mapping[str, bytes]
    entry: str

    @property
    def digest(self) -> str:
        """Of names and contents, so that the same code has the same prefix and is uploaded once."""
        sums = (
            f"{name} {hashlib.sha256(content).hexdigest()}\n"
            for name, content in sorted(self.files.items())
        )
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def uri(self, bucket: str) -> str:
        return f"s3://{bucket}/code/{self.digest}/"

    def archive(self) -> bytes:
        """All of it as the .tar.gz that the older contract wants; the same files give the same bytes."""
        packed = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file,
            tarfile.open(fileobj=file, mode="w") as archive,
        ):
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return packed.getvalue()

    def upload(self, bucket: str, region: str) -> None:
        """Put every file under `code/<digest>/`.

        Raises:
            InvalidJob: S3 refuses, in its own words.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        s3 = client("s3", region)
        try:
            for name, content in self.files.items():
                s3.put_object(Bucket=bucket, Key=f"code/{self.digest}/{name}", Body=content)
        except (BotoCoreError, ClientError) as error:
            raise InvalidJob(f"cannot upload the code to bucket {bucket!r}: {error}") from error


def collect_code(recipe: str, wheels: Path | None = None) -> Code:
    """This package, the recipe's file where it lies outside, and the packages in the folder `wheels`.

    Raises:
        InvalidRecipe: there is no such file.
        InvalidJob: there is no wheel in that folder.
    """
    sources = [*PACKAGE.rglob("*.py"), PACKAGE / "requirements.txt"]
    files = {
        f"training/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sources
    }
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise InvalidJob(f"--wheels {wheels}: there is no .whl file in it")
        files |= {f"wheels/{path.name}": path.read_bytes() for path in found}
    if not recipe.endswith(".py"):
        return Code(files, recipe)
    path = Path(recipe)
    if not path.is_file():
        raise InvalidRecipe(f"there is no recipe file {recipe}")
    return Code(files | {path.name: path.read_bytes()}, path.name)


def check_recipe(recipe: str, hyperparameters: Mapping[str, object]) -> tuple[str, Task | None]:
    """The model's name and its task, after the mistakes that can be found before an instance is paid for.

    Where torch is missing (the SageMaker SDK's environment) a recipe cannot be loaded: its file's name is the answer.
    """
    if importlib.util.find_spec("torch") is None:
        name = Path(recipe).stem
        if not recipe.endswith(".py") and not (RECIPES / f"{recipe}.py").is_file():
            raise InvalidRecipe(f"there is no recipe {recipe!r}")
        return name, None
    loaded = load(recipe)
    override(loaded.hyperparameters(), hyperparameters)
    return loaded.name, loaded.task


def submit_boto3(request: Request, region: str) -> None:
    """Send `request` as it is.

    Raises:
        InvalidJob: SageMaker refuses, in its own words.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client("sagemaker", region).create_training_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(str(error)) from error


def submit_sagemaker(request: Request, region: str) -> None:
    """Send `request` through the SageMaker SDK 3, which is told to send nothing else.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    with quiet_sdk():
        import boto3
        from sagemaker.core.resources import TrainingJob

        TrainingJob.create(
            **snake_case(request), session=boto3.Session(region_name=region), region=region
        )


@contextlib.contextmanager
def quiet_sdk() -> Iterator[None]:
    """The SageMaker SDK 3, which is to send nothing that it was not asked for.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    if importlib.util.find_spec("sagemaker") is None:
        raise InvalidJob(
            "the SageMaker SDK is not installed in this Python; use the one of .venv-sagemaker"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(TELEMETRY_OFF)
        config.flush()
        os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = (
            config.name
        )  # else a GET per call, with account and ARN
        os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"  # else iam:SimulatePrincipalPolicy
        try:
            yield
        except (
            BotoCoreError,
            ClientError,
            ValueError,
        ) as error:  # pydantic's errors are ValueErrors
            raise InvalidJob(str(error)) from error


def snake(name: str) -> str:
    """
    >>> snake("VolumeSizeInGB")
    'volume_size_in_gb'
    """
    from botocore import xform_name

    return str(xform_name(name))


def snake_case(request: Request) -> dict[str, Any]:
    """`request` with the names that the SDK gives the same fields. Keys of maps are the user's and stay."""
    from botocore.session import get_session

    def convert(value: Any, shape: Any) -> Any:
        if shape.type_name == "structure":
            return {snake(name): convert(part, shape.members[name]) for name, part in value.items()}
        if shape.type_name == "list":
            return [convert(part, shape.member) for part in value]
        return value

    service = get_session().get_service_model("sagemaker")
    converted: dict[str, Any] = convert(
        request, service.operation_model("CreateTrainingJob").input_shape
    )
    return converted


def wait(name: str, region: str, say: Callable[[str], None] = print) -> Request:
    """Follow a job to its end and return its description; `say` gets a line whenever something changed.

    Raises:
        InvalidJob: it failed or was stopped; says why.
    """
    sagemaker = client("sagemaker", region)
    said = ""
    while True:
        job = describe(sagemaker.describe_training_job, TrainingJobName=name)
        metrics = "  ".join(
            f"{item['MetricName']}={item['Value']:.4g}"
            for item in job.get("FinalMetricDataList", [])
        )
        line = f"{job['SecondaryStatus']:<12} {metrics}".rstrip()
        if line != said:
            said = line
            say(line)
        if job["TrainingJobStatus"] in FINAL:
            break
        time.sleep(POLL_S)
    if job["TrainingJobStatus"] != "Completed":
        reason = job.get("FailureReason", job["SecondaryStatus"])
        raise InvalidJob(f"job {name} ended as {job['TrainingJobStatus']}: {reason}")
    return job


def describe(call: Callable[..., Request], **named: str) -> Request:
    """What SageMaker says of a job that runs.

    Raises:
        InvalidJob: it does not answer, in its own words.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call(**named)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(
            f"{' '.join(named.values())} was sent, and cannot be followed: {error}"
        ) from error


def artifacts_bucket(region: str) -> str:
    """The one bucket of the local stack that models are uploaded to.

    Raises:
        InvalidJob: there is no stack, or no such bucket.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        names: list[str] = [
            bucket["Name"] for bucket in client("s3", region).list_buckets()["Buckets"]
        ]
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(
            f"no local stack: {error}; start it, and set AWS_ENDPOINT_URL to its AWS address"
        ) from error
    found = [name for name in names if "artifacts" in name]
    if len(found) != 1:
        raise InvalidJob(
            f"the local stack has {len(found)} artifacts buckets; name one with --bucket"
        )
    return found[0]


def client(service: str, region: str) -> Any:
    """A client of AWS, or of the local stack where AWS_ENDPOINT_URL is set."""
    import boto3

    return boto3.client(service, region_name=region)


BACKENDS: Mapping[str, Callable[[Request, str], None]] = {
    "boto3": submit_boto3,
    "sagemaker": submit_sagemaker,
}
