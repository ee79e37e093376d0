"""Build SageMaker CreateTrainingJob requests: image, data, instance, spot limits, network.

Building it reads and sends nothing: every backend sends the same request.

    python -m training train digits --on sagemaker --instance ml.g5.xlarge --bucket my-artifacts \\
        --role arn:aws:… --wait
    python -m training train digits --on sagemaker --spot --dry-run
    python -m training train digits --on local-stack --wait

The local stack really runs the same request. Its address is AWS_ENDPOINT_URL or, as the README
starts it, 127.0.0.1:8081.

A job in a network without a way out (--subnet) brings the packages that its image lacks:

    pip download -r training/requirements.txt -d wheels --only-binary :all: \\
        --python-version 3.12 --platform manylinux2014_x86_64 \\
        --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64
    python -m training train digits --on sagemaker --subnet … --security-group … --wheels wheels
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from training.errors import InvalidJob
from training.hyperparameters import encode
from training.log_lines import metrics
from training.recipe import Task
from training.runs import config

Request = dict[str, Any]

CODE = "/opt/ml/input/data/code"  # folder of the channel `code` in the container
TORCH = "2.13"
GPU_FAMILIES = re.compile(r"ml\.[gp][a-z]*\d")
# Neuron chips; Graviton (a g after the digits) and Grace hosts, which are arm64.
WITHOUT_IMAGE = re.compile(r"ml\.(trn|inf)\d|ml\.[a-z]+\d+[a-z]*g|ml\.\w+-gb\d")
# NVMe storage, which the hardware encrypts: AWS refuses VolumeKmsKeyId for it.
LOCAL_STORAGE = re.compile(r"ml\.(g[4-9]|gr\d|p3dn|p[4-9]|trn\d|[a-z]+\d+[a-z]*d\b)")
SPOT_WAIT_S = 3600  # seconds to wait for a spot instance, beyond the runtime
DEFAULT_ACCOUNT = "763104351884"  # AWS account of the Deep Learning Containers
# Regions and container accounts from the table in sagemaker 3.27: pytorch-amzn2023.
DEFAULT_REGIONS = (
    "ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
    "ca-central-1", "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3",
    "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2",
)  # fmt: skip
OWN_ACCOUNTS = {
    "af-south-1": "626614931356", "ap-east-1": "871362719292", "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360", "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896", "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462", "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437", "ca-west-1": "204538143572",
    "cn-north-1": "727897471807", "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688", "eu-isoe-west-1": "371248457586",
    "eu-south-1": "692866216735", "eu-south-2": "503227376785",
    "eusc-de-east-1": "204133271717", "il-central-1": "780543022126",
    "me-central-1": "914824155844", "me-south-1": "217643126080", "me-west-1": "124382933778",
    "mx-central-1": "637423239942", "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353", "us-iso-east-1": "886529160074",
    "us-isob-east-1": "094389454867", "us-isof-east-1": "303241398832",
    "us-isof-south-1": "454834333376",
}  # fmt: skip
ACCOUNTS = dict.fromkeys(DEFAULT_REGIONS, DEFAULT_ACCOUNT) | OWN_ACCOUNTS
DOMAINS = {  # by the region's first part or two; elsewhere amazonaws.com
    "cn": "amazonaws.com.cn", "eu-isoe": "cloud.adc-e.uk", "eusc": "amazonaws.eu",
    "us-iso": "c2s.ic.gov", "us-isob": "sc2s.sgov.gov", "us-isof": "csp.hci.ic.gov",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """SageMaker training job: recipe, data, instance, network and time limits."""

    name: str
    recipe: str
    model: str
    bucket: str
    role: str
    code_uri: str  # S3 prefix of this package, as SourceCode.uri returns it
    region: str = "us-east-1"
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    channels: Mapping[str, str] = field(default_factory=dict)  # name → S3 prefix of input data
    instance_type: str = "ml.g5.xlarge"
    image: str | None = None  # default: AWS's PyTorch image for the instance type
    spot: bool = True
    max_runtime_s: int = 3600
    resume: str | None = None  # name of an earlier job whose checkpoint to continue from
    max_wait_s: int | None = None  # spot only, runtime included; default: SPOT_WAIT_S more
    volume_gb: int = 30
    retries: int = 2  # attempts after an internal error of SageMaker
    keep_alive_s: int = 0  # warm pool: the instance is paid for, and the next job starts at once
    kms_key: str | None = None
    subnets: Sequence[str] = ()
    security_groups: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    code_revision: str | None = None
    expected: Mapping[str, str] = field(default_factory=dict)  # digests of the run to repeat
    task: Task | None = None  # chooses the metrics; None: metrics of all tasks
    instances: int = 1  # with several, or several GPUs, bootstrap.py starts torchrun
    processes: int | None = None  # number on each instance; default: one for each GPU
    arguments: Sequence[str] = ()  # further command-line arguments of training.train
    trial: bool = False  # the job judges settings for a search, and registers no model


def image_uri(region: str, instance_type: str) -> str:
    """Return AWS's PyTorch container image URI for a region and instance type.

    >>> image_uri("eu-west-1", "ml.g5.xlarge")
    '763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.13-cu133-amzn2023-sagemaker'

    Raises:
        InvalidJob: no image is known for the region or the instance.
    """
    if region not in ACCOUNTS:
        raise InvalidJob(f"no PyTorch image is known for region {region!r}; name one with --image")
    if WITHOUT_IMAGE.match(instance_type):
        raise InvalidJob(
            f"AWS's PyTorch image does not run on {instance_type}; name one that does with "
            "--image, or take --instance ml.g6.xlarge"
        )
    processor = "cu133" if GPU_FAMILIES.match(instance_type) else "cpu"
    first, second, *_ = region.split("-")
    domain = DOMAINS.get(first) or DOMAINS.get(f"{first}-{second}", "amazonaws.com")
    registry = f"{ACCOUNTS[region]}.dkr.ecr.{region}.{domain}"
    return f"{registry}/pytorch:{TORCH}-{processor}-amzn2023-sagemaker"


def job_name(model: str, now: datetime | None = None, suffix: str | None = None) -> str:
    """Make a unique training job name from model, time and suffix.

    SageMaker allows 63 letters, digits and hyphens.

    >>> job_name("digits", datetime(2026, 11, 22, 8, 15, 30), "1a2b")
    'digits-20261122-081530-1a2b'
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", model).strip("-")[:42] or "job"
    return f"{stem}-{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{suffix or secrets.token_hex(2)}"


def build(job: Job) -> Request:
    """Build a job's CreateTrainingJob request, without reading or sending anything.

    The output is uncompressed: model.onnx arrives under models/<model>/ by one PutObject, which
    registers it. A trial's output arrives under trials/<model>/.

    Raises:
        InvalidJob: no image is known for the region, or half of the network is missing.
    """
    image = job.image or image_uri(job.region, job.instance_type)
    tags = {"mayfly:model": job.model, **job.tags}
    request: Request = {
        "TrainingJobName": job.name,
        "RoleArn": job.role,
        "AlgorithmSpecification": _algorithm(job, image),
        "HyperParameters": {name: encode(value) for name, value in job.hyperparameters.items()},
        "InputDataConfig": [
            _channel(*pair) for pair in [("code", job.code_uri), *job.channels.items()]
        ],
        "OutputDataConfig": _output(job),
        "ResourceConfig": _resources(job),
        "StoppingCondition": _stopping(job),
        "EnableManagedSpotTraining": job.spot,
        "CheckpointConfig": {"S3Uri": f"s3://{job.bucket}/checkpoints/{job.resume or job.name}/"},
        "Environment": _environment(job, image),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    if job.retries:
        request["RetryStrategy"] = {"MaximumRetryAttempts": job.retries}
    if bool(job.subnets) != bool(job.security_groups):
        raise InvalidJob(
            "subnets and security groups go together: add --security-group, or --subnet"
        )
    if job.subnets:
        request["VpcConfig"] = {
            "Subnets": list(job.subnets),
            "SecurityGroupIds": list(job.security_groups),
        }
    return request


def _algorithm(job: Job, image: str) -> Request:
    return {
        "TrainingImage": image,
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python3", f"{CODE}/training/sagemaker/bootstrap.py"],
        "ContainerArguments": ["-m", "training.train", job.recipe, *job.arguments],
        "MetricDefinitions": [
            {"Name": name, "Regex": regex} for name, regex in metrics(job.task).items()
        ],
    }


def _channel(name: str, uri: str) -> Request:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def _output(job: Job) -> Request:
    folder = "trials" if job.trial else "models"
    output = {
        "S3OutputPath": f"s3://{job.bucket}/{folder}/{job.model}/",
        "CompressionType": "NONE",
    }
    if job.kms_key:
        output["KmsKeyId"] = job.kms_key
    return output


def _resources(job: Job) -> Request:
    resources: Request = {
        "InstanceType": job.instance_type,
        "InstanceCount": job.instances,
        "VolumeSizeInGB": job.volume_gb,
    }
    if job.keep_alive_s:
        resources["KeepAlivePeriodInSeconds"] = job.keep_alive_s
    if job.kms_key and not LOCAL_STORAGE.match(job.instance_type):
        resources["VolumeKmsKeyId"] = job.kms_key
    return resources


def _stopping(job: Job) -> Request:
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_s}
    if job.spot or job.max_wait_s:
        stopping["MaxWaitTimeInSeconds"] = job.max_wait_s or job.max_runtime_s + SPOT_WAIT_S
    return stopping


def _environment(job: Job, image: str) -> dict[str, str]:
    environment = {
        "MAYFLY_TRAINING_IMAGE": image,
        "MAYFLY_MAX_RUNTIME_S": str(job.max_runtime_s),
        "ORT_DISABLE_TELEMETRY": "1",
        **config.variables(job.channels, job.expected),
        **job.environment,
    }
    if job.code_revision:
        environment["MAYFLY_CODE_REVISION"] = job.code_revision
    if job.processes:
        environment["MAYFLY_PROCESSES"] = str(job.processes)
    if job.trial:
        environment["MAYFLY_TRIAL"] = "1"
    return environment
