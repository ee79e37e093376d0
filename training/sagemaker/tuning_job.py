"""Hyperparameter search by SageMaker itself: build, send and follow a tuning job.

    python -m training train mlp --tune 20 --search sagemaker --parallel 4 --on sagemaker \\
        --instance ml.g5.xlarge

The search is one CreateHyperParameterTuningJob request. Its training jobs follow an older contract:
the API has no ContainerEntrypoint. The image's own toolkit unpacks sagemaker_submit_directory and
runs sagemaker_program, which is bootstrap.py again. With --wait, a job with the best settings
follows, which writes the model.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from optuna.distributions import CategoricalDistribution, IntDistribution

from training.errors import InvalidJob
from training.hyperparameters import encode
from training.sagemaker import backends
from training.sagemaker.source_code import SourceCode, archive_uri
from training.sagemaker.training_job import Job, Request, job_name
from training.sagemaker.training_job import build as build_job
from training.sagemaker.validation import check_limits, check_rules, check_shape
from training.tuning.space import Search, Space, load_search

PROGRAM = "training/sagemaker/bootstrap.py"
POLL_S = 10.0
DIMENSIONS_MAX = 30  # hyperparameters of a search, and choices of one of them; AWS's quota
JOB_FIELDS = (  # fields that a TrainingJobDefinition shares with CreateTrainingJob
    "RoleArn",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "RetryStrategy",
    "VpcConfig",
)
ALGORITHM_FIELDS = ("TrainingImage", "TrainingInputMode", "MetricDefinitions")


def run(job: Job, options: argparse.Namespace, code: SourceCode) -> dict[str, str] | None:
    """Submit a SageMaker tuning job; with --wait return the best settings.

    With --dry-run the request is checked and printed only.

    Raises:
        InvalidJob: it cannot be sent, or ended badly, with the reason.
    """
    search = load_search(options, data="")
    job = replace(job, name=job_name(job.model[:10]))
    request = build(job, search, options.parallel)
    validate(request)
    if options.dry_run:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return None
    if options.on == "local-stack":
        raise InvalidJob(
            "--search sagemaker is AWS's own; on the local stack take random, grid or optuna"
        )
    SENDERS[options.backend](request, job.region, code)
    print(f"submitted {job.name}", flush=True)
    if not options.wait:
        return None
    best = wait(job.name, job.region)
    settings = " ".join(f"--set {name}={value}" for name, value in best.items())
    print(f"best: {settings}", flush=True)
    return best


# --- the request


def build(job: Job, search: Search, parallel: int) -> Request:
    """Build the CreateHyperParameterTuningJob request of a hyperparameter search.

    Its trials are jobs like `job`. Nothing is read or sent.
    """
    fixed = {name: value for name, value in job.hyperparameters.items() if name not in search.space}
    trial_job = replace(job, hyperparameters=fixed, trial=True, task=search.recipe.task)
    training = build_job(trial_job)
    return {
        "HyperParameterTuningJobName": job.name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {
                "Type": "Maximize" if search.higher_is_better else "Minimize",
                "MetricName": f"validation:{search.metric}",
            },
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": search.limit,
                "MaxParallelTrainingJobs": parallel,
            },
            "ParameterRanges": ranges(search.space),
            "TrainingJobEarlyStoppingType": "Auto",
            "RandomSeed": search.settings.seed,
        },
        "TrainingJobDefinition": _definition(job, training),
        "Tags": training["Tags"],
    }


def _definition(job: Job, training: Request) -> Request:
    """Convert a trial's CreateTrainingJob request to a tuning job's TrainingJobDefinition."""
    algorithm = training["AlgorithmSpecification"]
    older_contract = {
        "sagemaker_program": PROGRAM,
        "sagemaker_submit_directory": archive_uri(job.code_uri),
    }
    definition = {name: training[name] for name in JOB_FIELDS if name in training} | {
        "AlgorithmSpecification": {name: algorithm[name] for name in ALGORITHM_FIELDS},
        "Environment": training["Environment"] | {"MAYFLY_RECIPE": job.recipe},
        "StaticHyperParameters": training["HyperParameters"] | older_contract,
    }
    if job.channels:
        definition["InputDataConfig"] = [
            channel for channel in training["InputDataConfig"] if channel["ChannelName"] != "code"
        ]
    return definition


def ranges(space: Space) -> Request:
    """Convert a search space to ParameterRanges of a tuning job request."""
    listed: dict[str, list[Request]] = {}
    for name, axis in space.items():
        if isinstance(axis, CategoricalDistribution):
            kind = "CategoricalParameterRanges"
            entry: Request = {"Name": name, "Values": list(axis.choices)}
        else:
            integer = isinstance(axis, IntDistribution)
            kind = "IntegerParameterRanges" if integer else "ContinuousParameterRanges"
            entry = {
                "Name": name,
                "MinValue": encode(axis.low),
                "MaxValue": encode(axis.high),
                "ScalingType": "Logarithmic" if axis.log else "Linear",
            }
        listed.setdefault(kind, []).append(entry)
    return listed


def validate(request: Request) -> None:
    """Check a tuning job's request against botocore's service model and AWS's quotas.

    Raises:
        InvalidJob: names the field at fault.
    """
    shape = check_shape(request, "CreateHyperParameterTuningJob")
    name = request["HyperParameterTuningJobName"]
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,31}", name):
        raise InvalidJob(f"tuning job name {name!r}: at most 32 letters, digits and inner hyphens")
    config = request["HyperParameterTuningJobConfig"]
    listed, limits = config["ParameterRanges"], config["ResourceLimits"]
    choices = [axis["Values"] for axis in listed.get("CategoricalParameterRanges", [])]
    if sum(map(len, listed.values())) > DIMENSIONS_MAX:
        raise InvalidJob(f"SageMaker searches over {DIMENSIONS_MAX} hyperparameters at most")
    if any(len(values) > DIMENSIONS_MAX for values in choices):
        raise InvalidJob(f"SageMaker takes {DIMENSIONS_MAX} choices of a hyperparameter at most")
    if not 1 <= limits["MaxParallelTrainingJobs"] <= limits["MaxNumberOfTrainingJobs"]:
        raise InvalidJob("--parallel is between 1 and the number of trials")
    definition = request["TrainingJobDefinition"]
    check_rules(definition, shape.members["TrainingJobDefinition"])
    check_limits(request, shape)


# --- senders


def send_boto3(request: Request, region: str, code: SourceCode) -> None:
    """Upload the source code and submit a tuning job through boto3.

    Raises:
        InvalidJob: AWS refuses, in its own words.
    """
    uri = request["TrainingJobDefinition"]["StaticHyperParameters"]["sagemaker_submit_directory"]
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    try:
        backends.client("s3", region).put_object(Bucket=bucket, Key=key, Body=code.archive())
        backends.client("sagemaker", region).create_hyper_parameter_tuning_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(str(error)) from error


def send_sagemaker(request: Request, region: str, code: SourceCode) -> None:
    """Submit a tuning job through the SageMaker SDK's HyperparameterTuner.

    The SDK uploads the code, and scripts of its own.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
    objective, limits = config["HyperParameterTuningJobObjective"], config["ResourceLimits"]
    with backends.quiet_sdk(), tempfile.TemporaryDirectory() as folder:
        from sagemaker.train.tuner import HyperparameterTuner  # only in .venv-sagemaker

        _write_files(code, Path(folder))
        tuner = HyperparameterTuner(
            _sdk_trainer(request, region, folder),
            objective_metric_name=objective["MetricName"],
            objective_type=objective["Type"],
            hyperparameter_ranges=_sdk_ranges(config["ParameterRanges"]),
            metric_definitions=definition["AlgorithmSpecification"]["MetricDefinitions"],
            strategy=config["Strategy"],
            max_jobs=limits["MaxNumberOfTrainingJobs"],
            max_parallel_jobs=limits["MaxParallelTrainingJobs"],
            early_stopping_type=config["TrainingJobEarlyStoppingType"],
            random_seed=config["RandomSeed"],
            tags=request["Tags"],
        )
        inputs = {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in definition.get("InputDataConfig", [])
        }
        tuner.tune(inputs=inputs, job_name=request["HyperParameterTuningJobName"], wait=False)


def _write_files(code: SourceCode, folder: Path) -> None:
    for name, content in code.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _sdk_trainer(request: Request, region: str, source_dir: str) -> Any:
    """Return a SageMaker SDK ModelTrainer for a tuning job's trials."""
    from sagemaker.core.helper.session_helper import Session  # only in .venv-sagemaker
    from sagemaker.core.shapes import RetryStrategy
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    definition = request["TrainingJobDefinition"]
    static = definition["StaticHyperParameters"]

    def config(name: str, kind: Any = None, **more: Any) -> Any:
        renamed = backends.snake_case({name: definition[name]})[backends.snake(name)]
        return (kind or getattr(configs, name))(**renamed, **more)

    bucket = static["sagemaker_submit_directory"].split("/")[2]
    vpc = definition.get("VpcConfig")
    trainer = ModelTrainer(
        # Without a bucket the session asks STS at its real address and ignores AWS_ENDPOINT_URL.
        sagemaker_session=Session(
            boto_session=boto3.Session(region_name=region), default_bucket=bucket
        ),
        training_image=definition["AlgorithmSpecification"]["TrainingImage"],
        training_input_mode="File",
        source_code=configs.SourceCode(source_dir=source_dir, entry_script=PROGRAM),
        compute=config(
            "ResourceConfig",
            configs.Compute,
            enable_managed_spot_training=definition["EnableManagedSpotTraining"],
        ),
        networking=configs.Networking(
            subnets=vpc["Subnets"], security_group_ids=vpc["SecurityGroupIds"]
        )
        if vpc
        else None,
        stopping_condition=config("StoppingCondition"),
        checkpoint_config=config("CheckpointConfig"),
        output_data_config=config("OutputDataConfig"),
        environment=definition["Environment"],
        hyperparameters={
            name: value for name, value in static.items() if not name.startswith("sagemaker_")
        },
        role=definition["RoleArn"],
        base_job_name=request["HyperParameterTuningJobName"],
    )
    if "RetryStrategy" in definition:
        return trainer.with_retry_strategy(config("RetryStrategy", RetryStrategy))
    return trainer


def _sdk_ranges(listed: Request) -> dict[str, Any]:
    """Convert a tuning request's ParameterRanges to SageMaker SDK objects by name."""
    from sagemaker.core import parameter  # only in .venv-sagemaker

    numbers = {
        "IntegerParameterRanges": (parameter.IntegerParameter, int),
        "ContinuousParameterRanges": (parameter.ContinuousParameter, float),
    }
    axes: dict[str, Any] = {
        axis["Name"]: kind(number(axis["MinValue"]), number(axis["MaxValue"]), axis["ScalingType"])
        for name, (kind, number) in numbers.items()
        for axis in listed.get(name, [])
    }
    return axes | {
        axis["Name"]: parameter.CategoricalParameter(axis["Values"])
        for axis in listed.get("CategoricalParameterRanges", [])
    }


SENDERS = {"boto3": send_boto3, "sagemaker": send_sagemaker}


# --- follow a job


def wait(name: str, region: str, say: Callable[[str], None] = print) -> dict[str, str]:
    """Poll a tuning job until it ends; return the best trial's hyperparameters.

    `say` gets a line whenever the status changes.

    Raises:
        InvalidJob: it failed, was stopped, or completed no trial, with the reason.
    """
    call = backends.client("sagemaker", region).describe_hyper_parameter_tuning_job
    job = backends.follow(
        lambda: backends.describe(call, HyperParameterTuningJobName=name),
        "HyperParameterTuningJobStatus",
        _status_line,
        say,
        POLL_S,
    )
    status, best = job["HyperParameterTuningJobStatus"], job.get("BestTrainingJob", {})
    if status != "Completed" or not best:
        reason = job.get("FailureReason", "no trial ended well")
        raise InvalidJob(f"tuning job {name} ended as {status}: {reason}")
    return dict(best["TunedHyperParameters"])


def _status_line(job: Request) -> str:
    counts = job["TrainingJobStatusCounters"]
    line = (
        f"{job['HyperParameterTuningJobStatus']:<12}completed={counts.get('Completed', 0)}"
        f"  running={counts.get('InProgress', 0)}  failed={counts.get('NonRetryableError', 0)}"
    )
    best = job.get("BestTrainingJob", {})
    if metric := best.get("FinalHyperParameterTuningJobObjectiveMetric"):
        line += f"  best {metric['MetricName']}={metric['Value']:.4g}"
    return line
