"""One training job, as the CreateTrainingJob request that every backend takes: pure, and checked without a network.

    python -m training train digits --on sagemaker --instance ml.g5.xlarge --bucket my-artifacts --role arn:aws:… --wait
    python -m training train digits --on sagemaker --spot --dry-run
    python -m training train digits --on local-stack --wait

The local stack runs the same request for real. It is looked for at AWS_ENDPOINT_URL or, as the README starts it, at
127.0.0.1:8081.

A job in a network without a way out (--subnet) brings what its image lacks along:

    pip download -r training/requirements.txt -d wheels --only-binary :all: --python-version 3.12 \\
        --platform manylinux2014_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64
    python -m training train digits --on sagemaker --subnet … --security-group … --wheels wheels
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training import evaluate, tune
from training.errors import InvalidJob, TrainingError
from training.recipe import Task, encode, pairs

Request = dict[str, Any]

CODE = "/opt/ml/input/data/code"  # where SageMaker puts the channel `code`
TORCH = "2.13"
GPU_FAMILIES = re.compile(r"ml\.(g|p)\d")
DEFAULT_ACCOUNT = "763104351884"  # AWS Deep Learning Containers
OPT_IN_ACCOUNTS = {  # regions with an account of their own; from the table in sagemaker 3.27 (pytorch-amzn2023)
    "af-south-1": "626614931356", "ap-east-1": "871362719292", "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360", "ap-south-2": "772153158452", "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322", "ap-southeast-5": "550225433462", "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437", "ca-west-1": "204538143572", "eu-central-2": "380420809688",
    "eu-south-1": "692866216735", "eu-south-2": "503227376785", "il-central-1": "780543022126",
    "me-central-1": "914824155844", "me-south-1": "217643126080", "mx-central-1": "637423239942",
}  # fmt: skip
ANYTHING = r"[\s\S]*"
NUMBER = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)"
LOCAL_STACK = "http://127.0.0.1:8081"
LOCAL_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}  # real ones stay at home
EXAMPLE_BUCKET, EXAMPLE_ROLE = "my-artifacts", "arn:aws:iam::123456789012:role/training"


@dataclass(frozen=True)
class Job:
    """What a job is made of. `code_uri` is the S3 prefix that holds this package, as `backends.upload_code` returns."""

    name: str
    recipe: str
    model: str
    bucket: str
    role: str
    code_uri: str
    region: str = "us-east-1"
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    channels: Mapping[str, str] = field(default_factory=dict)  # name → S3 prefix of input data
    instance_type: str = "ml.g5.xlarge"
    image: str | None = None  # default: AWS's PyTorch image for the instance type
    spot: bool = True
    max_runtime_s: int = 3600
    max_wait_s: int | None = None  # for a spot job, runtime included; default: an hour more than max_runtime_s
    volume_gb: int = 30
    retries: int = 2  # after an internal error of SageMaker's
    keep_alive_s: int = 0  # warm pool: the next job starts in seconds, the instance is paid for meanwhile
    kms_key: str | None = None
    subnets: Sequence[str] = ()
    security_groups: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    code_revision: str | None = None
    task: Task | None = None  # of the recipe, for the metrics; None: those of all tasks
    instances: int = 1  # on more than one, as on several GPUs, bootstrap.py starts torchrun
    processes: int | None = None  # on each instance [one for each GPU]
    arguments: Sequence[str] = ()  # further ones of training.train
    trial: bool = False  # one of a search: it is judged, and writes and registers no model


def metrics(task: Task | None = None) -> dict[str, str]:
    """Regular expressions by name, for what the loop and the report print of `task`, or of any task.

    >>> metrics("regression")["test:r2"]
    'test_r2=(-?[0-9.]+(?:e[+-]?[0-9]+)?)'
    """
    tasks: list[Task] = [task] if task else list(evaluate.PRIMARY)
    validated = dict.fromkeys(["loss", *(evaluate.PRIMARY[one].metric for one in tasks)])
    tested = dict.fromkeys(name for one in tasks for name in evaluate.names(one))
    return {
        "train:loss": rf"epoch \d+/\d+ +loss={NUMBER}",
        "train:examples_per_s": r"  rate=([0-9.]+)/s",
        **{f"validation:{name}": f"validation_{name}={NUMBER}" for name in validated},
        **{f"test:{name}": f"test_{name}={NUMBER}" for name in tested},
        "train:epoch": r"epoch (\d+)/\d+ ",  # last: who sees it sees what came with it
    }


def image_uri(region: str, instance_type: str) -> str:
    """AWS's PyTorch training image for the processor of `instance_type`.

    >>> image_uri("eu-west-1", "ml.g5.xlarge")
    '763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.13-cu133-amzn2023-sagemaker'
    """
    if not re.fullmatch(r"(af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-\d", region):
        raise InvalidJob(f"no PyTorch image is known for region {region!r}; name one with --image")
    processor = "cu133" if GPU_FAMILIES.match(instance_type) else "cpu"
    account = OPT_IN_ACCOUNTS.get(region, DEFAULT_ACCOUNT)
    return f"{account}.dkr.ecr.{region}.amazonaws.com/pytorch:{TORCH}-{processor}-amzn2023-sagemaker"


def job_name(model: str, now: datetime | None = None, suffix: str | None = None) -> str:
    """A name that is free: model, time and chance. SageMaker allows 63 letters, digits and hyphens.

    >>> job_name("digits", datetime(2026, 11, 22, 8, 15, 30), "1a2b")
    'digits-20261122-081530-1a2b'
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", model).strip("-")[:42] or "job"
    return f"{stem}-{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{suffix or secrets.token_hex(2)}"


def build(job: Job) -> Request:
    """The CreateTrainingJob request of `job`. The same job gives the same request; nothing is read or sent.

    The output is uncompressed: model.onnx lands under models/<model>/ by one PutObject, which is the registration. A
    trial's lands under trials/<model>/.

    Raises:
        InvalidJob: no image is known for its region, or half of its network is missing.
    """
    image = job.image or image_uri(job.region, job.instance_type)
    environment = {"MAYFLY_TRAINING_IMAGE": image, "ORT_DISABLE_TELEMETRY": "1", **job.environment}
    if job.code_revision:
        environment["MAYFLY_CODE_REVISION"] = job.code_revision
    if job.processes:
        environment["MAYFLY_PROCESSES"] = str(job.processes)
    if job.trial:
        environment["MAYFLY_TRIAL"] = "1"
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_s}
    if job.spot or job.max_wait_s:
        stopping["MaxWaitTimeInSeconds"] = job.max_wait_s or job.max_runtime_s + 3600
    resources = {"InstanceType": job.instance_type, "InstanceCount": job.instances, "VolumeSizeInGB": job.volume_gb}
    folder = f"{'trials' if job.trial else 'models'}/{job.model}"
    output = {"S3OutputPath": f"s3://{job.bucket}/{folder}/", "CompressionType": "NONE"}
    if job.keep_alive_s:
        resources["KeepAlivePeriodInSeconds"] = job.keep_alive_s
    if job.kms_key:
        output["KmsKeyId"] = job.kms_key
        resources["VolumeKmsKeyId"] = job.kms_key
    request: Request = {
        "TrainingJobName": job.name,
        "RoleArn": job.role,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", f"{CODE}/training/bootstrap.py"],
            "ContainerArguments": ["-m", "training.train", job.recipe, *job.arguments],
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in metrics(job.task).items()],
        },
        "HyperParameters": {name: encode(value) for name, value in job.hyperparameters.items()},
        "InputDataConfig": [_channel("code", job.code_uri)] + [_channel(*pair) for pair in job.channels.items()],
        "OutputDataConfig": output,
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": job.spot,
        "CheckpointConfig": {"S3Uri": f"s3://{job.bucket}/checkpoints/{job.name}/"},
        "Environment": environment,
        "Tags": [{"Key": key, "Value": value} for key, value in {"mayfly:model": job.model, **job.tags}.items()],
    }
    if job.retries:
        request["RetryStrategy"] = {"MaximumRetryAttempts": job.retries}
    if bool(job.subnets) != bool(job.security_groups):
        raise InvalidJob("subnets and security groups go together: add --security-group, or --subnet")
    if job.subnets:
        request["VpcConfig"] = {"Subnets": list(job.subnets), "SecurityGroupIds": list(job.security_groups)}
    return request


def _channel(name: str, uri: str) -> Request:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def check_shape(request: Request, operation: str) -> Any:
    """Check `request` against the service model that ships with botocore, whose shape of it is returned.

    Raises:
        InvalidJob: names the field at fault.
    """
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise InvalidJob("; ".join(report.generate_report().splitlines()))
    return shape


def validate(request: Request) -> None:
    """Check a CreateTrainingJob request against botocore's model, and what that model leaves out.

    Raises:
        InvalidJob: names the field at fault.
    """
    shape = check_shape(request, "CreateTrainingJob")
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}", request["TrainingJobName"]):
        raise InvalidJob(f"job name {request['TrainingJobName']!r}: at most 63 letters, digits and inner hyphens")
    check_rules(request, shape)
    check_limits(request, shape)


def check_limits(request: Request, shape: Any) -> None:
    """The largest sizes, patterns and choices of the service model, which botocore's validator does not look at.

    Raises:
        InvalidJob: names the field at fault.
    """
    for problem in _beyond(request, shape, ""):
        raise InvalidJob(problem)


def _beyond(value: Any, shape: Any, path: str) -> Iterator[str]:
    limits, kind = shape.metadata, shape.type_name
    size = value if kind in ("integer", "long") else len(value) if isinstance(value, Sized) else 0
    if size > limits.get("max", size):
        unit = {"string": " characters", "list": " entries", "map": " entries"}.get(kind, "")
        yield f"{path}: {size}{unit} where SageMaker takes {limits['max']} at most"
    if kind == "string" and value not in (limits.get("enum") or [value]):
        yield f"{path}: {value!r} is none of {', '.join(limits['enum'][:8])}"
    if kind == "string" and not _fits(value, limits.get("pattern", ANYTHING)):
        yield f"{path}: {value[:80]!r} does not have the form {limits['pattern']}"
    if kind == "structure":
        for name, part in value.items():
            yield from _beyond(part, shape.members[name], f"{path}.{name}".lstrip("."))
    elif kind == "list":
        for number, part in enumerate(value):
            yield from _beyond(part, shape.member, f"{path}[{number}]")
    elif kind == "map":
        for name, part in value.items():
            yield from _beyond(name, shape.key, f"{path}, name {name[:80]!r}")
            yield from _beyond(part, shape.value, f"{path}.{name}")


def _fits(text: str, pattern: str) -> bool:
    for java, python in ((r"\p{L}", r"\w"), (r"\p{N}", r"\w"), (r"\p{Z}", r"\s"), (r"\p{Alnum}", "a-zA-Z0-9")):
        pattern = pattern.replace(java, python)
    return re.fullmatch(pattern, text) is not None


def check_rules(request: Request, shape: Any) -> None:
    """What no service model says, and the commonest mistakes in words of ours.

    Raises:
        InvalidJob: names the field at fault.
    """
    resources, stopping = request["ResourceConfig"], request["StoppingCondition"]
    known = shape.members["ResourceConfig"].members["InstanceType"].enum  # the validator skips enumerations
    instance, spot = resources["InstanceType"], request["EnableManagedSpotTraining"]
    channels = [one["DataSource"]["S3DataSource"]["S3Uri"] for one in request.get("InputDataConfig", [])]
    local = next((uri for uri in channels if not uri.startswith("s3://")), "")
    problems = [
        (instance in known, f"instance type {instance!r} is none of SageMaker's, e.g. ml.g5.xlarge"),
        (
            re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/.+", request["RoleArn"]),
            f"role {request['RoleArn']!r} is no role ARN, e.g. {EXAMPLE_ROLE}",
        ),
        (not local, f"a job reads its data from S3: --data NAME=s3://bucket/prefix/, not {local!r}"),
        (
            stopping.get("MaxWaitTimeInSeconds", sys.maxsize) >= stopping["MaxRuntimeInSeconds"],
            "max wait includes the runtime: make it no shorter",
        ),
        (
            spot or "MaxWaitTimeInSeconds" not in stopping,
            "max wait is for spot instances: leave it out, or add --spot",
        ),
        (
            not (spot and "KeepAlivePeriodInSeconds" in resources),
            "a warm pool needs an instance on demand: add --no-spot",
        ),
        (resources["InstanceCount"] >= 1, "a job needs one instance at least"),
    ]
    for holds, message in problems:
        if not holds:
            raise InvalidJob(message)


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    try:
        return _submit(_options(arguments), environ)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training train RECIPE --on sagemaker", description="Run a recipe as a training job."
    )
    parser.add_argument("recipe", help="a built-in recipe (digits) or a .py file that defines one")
    parser.add_argument("--on", choices=["sagemaker", "local-stack"], default="sagemaker", help="[%(default)s]")
    parser.add_argument("--bucket", help="the artifacts bucket [$MAYFLY_BUCKET; on the local stack: its own]")
    parser.add_argument("--role", help="ARN of the role the job runs as [$MAYFLY_ROLE]")
    parser.add_argument("--model", help="name of the model [the recipe's]")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter: lr=3e-4")
    parser.add_argument("--data", "--channel", action="append", default=[], metavar="NAME=S3URI", help="input data")
    parser.add_argument("--seeds", metavar="N", help="train N times; the first is written")
    parser.add_argument("--compress", metavar="KINDS", help="as in training here")
    parser.add_argument("--budget", help="share of the metric a compressed form may lose")
    tune.add_options(parser, "sagemaker")
    parser.add_argument(
        "--backend",
        choices=["boto3", "sagemaker"],
        default="boto3",
        help="what sends the request: boto3, or the SageMaker SDK where it is installed",
    )
    parser.add_argument("--region", help="[$AWS_REGION, $AWS_DEFAULT_REGION or us-east-1]")
    parser.add_argument("--instance", default=Job.instance_type, help="instance type [%(default)s]")
    parser.add_argument("--instances", type=int, default=Job.instances, metavar="N", help="hosts, by torchrun [1]")
    parser.add_argument("--processes", type=int, metavar="N", help="on each host, by torchrun [one for each GPU]")
    parser.add_argument("--image", help="container image [AWS's PyTorch image for the instance]")
    parser.add_argument("--spot", action=argparse.BooleanOptionalAction, default=True, help="a spot instance, or not")
    parser.add_argument("--max-runtime", type=int, default=Job.max_runtime_s, metavar="SECONDS")
    parser.add_argument("--max-wait", type=int, metavar="SECONDS", help="for a spot instance, runtime included")
    parser.add_argument(
        "--retries", type=int, default=Job.retries, metavar="N", help="after SageMaker's own errors, 30 at most"
    )
    parser.add_argument("--volume", type=int, default=Job.volume_gb, metavar="GB", help="[%(default)s]")
    parser.add_argument("--keep-alive", type=int, default=0, metavar="SECONDS", help="warm pool after the job")
    parser.add_argument("--kms-key", help="encrypts volume and output")
    parser.add_argument("--subnet", action="append", default=[])
    parser.add_argument("--security-group", action="append", default=[])
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="packages for a job without a way to the package index",
    )
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the request; send and upload nothing")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end")
    return parser.parse_args(arguments)


def _submit(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from training import backends, manifest, tuning_job

    if options.on == "local-stack":
        os.environ["AWS_ENDPOINT_URL"] = environ.get("AWS_ENDPOINT_URL", LOCAL_STACK)
        os.environ |= LOCAL_CREDENTIALS
    region = options.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or Job.region
    code = backends.collect_code(options.recipe, options.wheels)
    hyperparameters = pairs(options.set)
    name, task = backends.check_recipe(options.recipe, hyperparameters)
    bucket = _bucket(options, environ, region)
    job = Job(
        name=job_name(options.model or name),
        recipe=code.entry,
        model=options.model or name,
        bucket=bucket,
        role=_role(options, environ),
        code_uri=code.uri(bucket),
        region=region,
        hyperparameters=hyperparameters,
        channels=pairs(options.data, "--data"),
        instance_type=options.instance,
        image=options.image,
        spot=options.spot,
        max_runtime_s=options.max_runtime,
        max_wait_s=options.max_wait,
        volume_gb=options.volume,
        retries=options.retries,
        keep_alive_s=options.keep_alive,
        kms_key=options.kms_key,
        subnets=options.subnet,
        security_groups=options.security_group,
        tags=pairs(options.tag, "--tag"),
        code_revision=manifest.code_revision(environ),
        task=task,
        instances=options.instances,
        processes=options.processes,
        arguments=_passed_on(options),
    )
    send = backends.BACKENDS[options.backend]
    if options.tune and (options.search == "sagemaker" or not options.dry_run):
        if options.search == "sagemaker":
            found = tuning_job.run(job, options, code)
            if found is None:
                return 0
        else:
            code.upload(bucket, region)
            found = tune.over_jobs(job, options, send)
        job = replace(job, hyperparameters={**hyperparameters, **found})
    request = build(job)
    validate(request)
    if options.dry_run:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return 0
    code.upload(bucket, region)
    send(request, region)
    print(f"submitted {job.name}", flush=True)
    if options.wait:
        backends.wait(job.name, region)
    return 0


def _bucket(options: argparse.Namespace, environ: Mapping[str, str], region: str) -> str:
    from training import backends

    bucket: str | None = options.bucket or environ.get("MAYFLY_BUCKET")
    if bucket:
        return bucket
    if options.dry_run:
        return EXAMPLE_BUCKET
    if options.on == "local-stack":
        return backends.artifacts_bucket(region)
    raise InvalidJob("name the artifacts bucket: --bucket, or MAYFLY_BUCKET")


def _role(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    role: str | None = options.role or environ.get("MAYFLY_ROLE")
    if role:
        return role
    if options.dry_run or options.on == "local-stack":
        return EXAMPLE_ROLE
    raise InvalidJob("name the role the job runs as: --role, or MAYFLY_ROLE")


def _passed_on(options: argparse.Namespace) -> tuple[str, ...]:
    """The arguments that mean the same in the job."""
    given = {"--seeds": options.seeds, "--compress": options.compress, "--budget": options.budget}
    return tuple(part for name, value in given.items() if value for part in (name, value))


if __name__ == "__main__":
    sys.exit(main())
