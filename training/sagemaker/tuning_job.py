"""A search that SageMaker makes by itself: one CreateHyperParameterTuningJob request, pure, and who sends it.

    python -m training train mlp --tune 20 --search sagemaker --parallel 4 --on sagemaker --instance ml.g5.xlarge

Its training jobs follow the older contract: the API knows no ContainerEntrypoint, the image's own toolkit unpacks
sagemaker_submit_directory and runs sagemaker_program, which is bootstrap.py again. With --wait, a job with the best
settings follows, which writes the model.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.errors import InvalidJob
from training.hyperparameters import encode
from training.sagemaker import backends
from training.sagemaker.training_job import Job, job_name
from training.sagemaker.training_job import build as build_job
from training.sagemaker.validation import check_limits, check_rules, check_shape
from training.tuning import study as tune
from training.tuning.samplers import Numbers
from training.tuning.study import Study

Request = dict[str, Any]
PROGRAM = "training/sagemaker/bootstrap.py"
POLL_S = 10.0


def archive_uri(code_uri: str) -> str:
    return f"{code_uri}sourcedir.tar.gz"


def build(job: Job, study: Study, parallel: int) -> Request:
    """The CreateHyperParameterTuningJob request whose trials are jobs like `job`. Nothing is read or sent."""
    static = {name: value for name, value in job.hyperparameters.items() if name not in study.space}
    one = build_job(replace(job, hyperparameters=static, trial=True, task=study.recipe.task))
    algorithm = one["AlgorithmSpecification"]
    definition: Request = {
        name: one[name]
        for name in ("RoleArn", "OutputDataConfig", "ResourceConfig", "StoppingCondition", "EnableManagedSpotTraining",
                     "CheckpointConfig", "RetryStrategy", "VpcConfig")
        if name in one
    }  # fmt: skip
    definition |= {
        "AlgorithmSpecification": {
            name: algorithm[name]
            for name in ("TrainingImage", "TrainingInputMode", "MetricDefinitions")
        },
        "Environment": one["Environment"] | {"MAYFLY_RECIPE": job.recipe},
        "StaticHyperParameters": one["HyperParameters"]
        | {"sagemaker_program": PROGRAM, "sagemaker_submit_directory": archive_uri(job.code_uri)},
    }
    if job.channels:
        definition["InputDataConfig"] = [
            channel for channel in one["InputDataConfig"] if channel["ChannelName"] != "code"
        ]
    return {
        "HyperParameterTuningJobName": job.name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {
                "Type": "Maximize" if study.higher_is_better else "Minimize",
                "MetricName": f"validation:{study.metric}",
            },
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": study.limit,
                "MaxParallelTrainingJobs": parallel,
            },
            "ParameterRanges": ranges(study),
            "TrainingJobEarlyStoppingType": "Auto",
            "RandomSeed": study.settings.seed,
        },
        "TrainingJobDefinition": definition,
        "Tags": one["Tags"],
    }


def ranges(study: Study) -> Request:
    """The space of `study` in SageMaker's words."""
    found: Request = {
        "IntegerParameterRanges": [],
        "ContinuousParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for name, one in study.space.items():
        if isinstance(one, Numbers):
            kind = "IntegerParameterRanges" if one.whole else "ContinuousParameterRanges"
            scaling = "Logarithmic" if one.log else "Linear"
            low, high = (encode(one.near(end)) for end in (one.low, one.high))
            found[kind].append(
                {"Name": name, "MinValue": low, "MaxValue": high, "ScalingType": scaling}
            )
        else:
            found["CategoricalParameterRanges"].append(
                {"Name": name, "Values": [encode(value) for value in one]}
            )
    return {kind: listed for kind, listed in found.items() if listed}


def validate(request: Request) -> None:
    """Check `request` against botocore's model, and what that model leaves out.

    Raises:
        InvalidJob: names the field at fault.
    """
    shape = check_shape(request, "CreateHyperParameterTuningJob")
    name = request["HyperParameterTuningJobName"]
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,31}", name):
        raise InvalidJob(f"tuning job name {name!r}: at most 32 letters, digits and inner hyphens")
    config = request["HyperParameterTuningJobConfig"]
    ranges, limits = config["ParameterRanges"], config["ResourceLimits"]
    if sum(map(len, ranges.values())) > 30:
        raise InvalidJob("SageMaker searches over 30 hyperparameters at most")
    if any(len(one["Values"]) > 30 for one in ranges.get("CategoricalParameterRanges", [])):
        raise InvalidJob("SageMaker takes 30 choices of a hyperparameter at most")
    if not 1 <= limits["MaxParallelTrainingJobs"] <= limits["MaxNumberOfTrainingJobs"]:
        raise InvalidJob("--parallel is between 1 and the number of trials")
    definition = request["TrainingJobDefinition"]
    check_rules(definition, shape.members["TrainingJobDefinition"])
    check_limits(request, shape)


def send_boto3(request: Request, region: str, code: backends.Code) -> None:
    """Upload the code and send `request` as it is.

    Raises:
        InvalidJob: AWS refuses, in its own words.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    uri = request["TrainingJobDefinition"]["StaticHyperParameters"]["sagemaker_submit_directory"]
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    try:
        backends.client("s3", region).put_object(Bucket=bucket, Key=key, Body=code.archive())
        backends.client("sagemaker", region).create_hyper_parameter_tuning_job(**request)
    except (BotoCoreError, ClientError) as error:
        raise InvalidJob(str(error)) from error


def send_sagemaker(request: Request, region: str, code: backends.Code) -> None:
    """The same through the SDK's tuner, which uploads the code by itself, beside scripts of its own.

    Raises:
        InvalidJob: the SDK is not installed here, or SageMaker refuses.
    """
    config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
    static = definition["StaticHyperParameters"]
    bucket = static["sagemaker_submit_directory"].split("/")[2]
    with backends.quiet_sdk(), tempfile.TemporaryDirectory() as folder:
        import boto3
        from sagemaker.core.helper.session_helper import Session
        from sagemaker.core.parameter import (
            CategoricalParameter,
            ContinuousParameter,
            IntegerParameter,
        )
        from sagemaker.core.shapes import RetryStrategy
        from sagemaker.core.training.configs import (
            CheckpointConfig,
            Compute,
            Networking,
            OutputDataConfig,
            SourceCode,
            StoppingCondition,
        )
        from sagemaker.train import ModelTrainer
        from sagemaker.train.tuner import HyperparameterTuner

        for name, content in code.files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        def fields(name: str) -> dict[str, Any]:
            found: dict[str, Any] = backends.snake_case({name: definition[name]})[
                backends.snake(name)
            ]
            return found

        # Without a bucket of its own, the session asks STS at its real address, whatever AWS_ENDPOINT_URL says.
        session = Session(boto_session=boto3.Session(region_name=region), default_bucket=bucket)
        vpc = definition.get("VpcConfig")
        trainer = ModelTrainer(
            sagemaker_session=session,
            training_image=definition["AlgorithmSpecification"]["TrainingImage"],
            training_input_mode="File",
            source_code=SourceCode(source_dir=folder, entry_script=PROGRAM),
            compute=Compute(
                **fields("ResourceConfig"),
                enable_managed_spot_training=definition["EnableManagedSpotTraining"],
            ),
            networking=Networking(
                subnets=vpc["Subnets"], security_group_ids=vpc["SecurityGroupIds"]
            )
            if vpc
            else None,
            stopping_condition=StoppingCondition(**fields("StoppingCondition")),
            checkpoint_config=CheckpointConfig(**fields("CheckpointConfig")),
            output_data_config=OutputDataConfig(**fields("OutputDataConfig")),
            environment=definition["Environment"],
            hyperparameters={
                name: value for name, value in static.items() if not name.startswith("sagemaker_")
            },
            role=definition["RoleArn"],
            base_job_name=request["HyperParameterTuningJobName"],
        )
        if "RetryStrategy" in definition:
            trainer = trainer.with_retry_strategy(RetryStrategy(**fields("RetryStrategy")))
        found: dict[str, Any] = {}
        kinds = {
            "IntegerParameterRanges": (IntegerParameter, int),
            "ContinuousParameterRanges": (ContinuousParameter, float),
        }
        for kind, (parameter, number) in kinds.items():
            for one in config["ParameterRanges"].get(kind, []):
                found[one["Name"]] = parameter(
                    number(one["MinValue"]), number(one["MaxValue"]), one["ScalingType"]
                )
        for one in config["ParameterRanges"].get("CategoricalParameterRanges", []):
            found[one["Name"]] = CategoricalParameter(one["Values"])
        HyperparameterTuner(
            trainer,
            objective_metric_name=config["HyperParameterTuningJobObjective"]["MetricName"],
            objective_type=config["HyperParameterTuningJobObjective"]["Type"],
            hyperparameter_ranges=found,
            metric_definitions=definition["AlgorithmSpecification"]["MetricDefinitions"],
            strategy=config["Strategy"],
            max_jobs=config["ResourceLimits"]["MaxNumberOfTrainingJobs"],
            max_parallel_jobs=config["ResourceLimits"]["MaxParallelTrainingJobs"],
            early_stopping_type=config["TrainingJobEarlyStoppingType"],
            random_seed=config["RandomSeed"],
            tags=request["Tags"],
        ).tune(
            inputs={
                channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
                for channel in definition.get("InputDataConfig", [])
            },
            job_name=request["HyperParameterTuningJobName"],
            wait=False,
        )


SENDERS = {"boto3": send_boto3, "sagemaker": send_sagemaker}


def wait(name: str, region: str, say: Callable[[str], None] = print) -> dict[str, str]:
    """Follow a tuning job to its end; the settings of its best trial. `say` gets a line whenever something changed.

    Raises:
        InvalidJob: it failed, was stopped, or no trial ended well; says why.
    """
    sagemaker = backends.client("sagemaker", region)
    said = ""
    while True:
        found = backends.describe(
            sagemaker.describe_hyper_parameter_tuning_job, HyperParameterTuningJobName=name
        )
        counts, best = found["TrainingJobStatusCounters"], found.get("BestTrainingJob", {})
        line = f"{found['HyperParameterTuningJobStatus']:<12}" + "  ".join(
            f"{title}={counts.get(key, 0)}"
            for title, key in (
                ("completed", "Completed"),
                ("running", "InProgress"),
                ("failed", "NonRetryableError"),
            )
        )
        if metric := best.get("FinalHyperParameterTuningJobObjectiveMetric"):
            line += f"  best {metric['MetricName']}={metric['Value']:.4g}"
        if line != said:
            said = line
            say(line)
        if found["HyperParameterTuningJobStatus"] in backends.FINAL:
            break
        time.sleep(POLL_S)
    if found["HyperParameterTuningJobStatus"] != "Completed" or not best:
        reason = found.get("FailureReason", "no trial ended well")
        raise InvalidJob(
            f"tuning job {name} ended as {found['HyperParameterTuningJobStatus']}: {reason}"
        )
    return dict(best["TunedHyperParameters"])


def run(job: Job, options: argparse.Namespace, code: backends.Code) -> dict[str, str] | None:
    """Build, check and send, or print, with --dry-run; with --wait, the settings that it found.

    Raises:
        InvalidJob: it cannot be sent, or ended badly, with the reason.
    """
    study = tune.prepare(options.recipe, options, data="")
    named = replace(job, name=job_name(job.model[:10]))
    request = build(named, study, options.parallel)
    validate(request)
    if options.dry_run:
        print(json.dumps(request, indent=2, ensure_ascii=False))
        return None
    if options.on == "local-stack":
        raise InvalidJob(
            "--search sagemaker is AWS's own; on the local stack take random, grid or optuna"
        )
    SENDERS[options.backend](request, job.region, code)
    print(f"submitted {named.name}", flush=True)
    if not options.wait:
        return None
    found = wait(named.name, job.region)
    told = " ".join(f"--set {name}={value}" for name, value in found.items())
    print(f"best: {told}", flush=True)
    return found
