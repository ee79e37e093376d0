"""Tuning job: the same space and jobs in one request, followed to its best trial."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from tests.unit.training.sagemaker.jobs import JOB
from training.__main__ import main as command
from training.errors import InvalidJob
from training.hyperparameters import NetworkHyperparameters, Range
from training.recipe import Recipe
from training.sagemaker import backends, tuning_job
from training.sagemaker.cli import main
from training.sagemaker.training_job import Job, job_name
from training.tuning.space import Search, make_space

ARN = "arn:aws:sagemaker:us-east-1:123456789012"
RECIPE = Recipe(
    name="toy",
    description="",
    task="regression",
    hyperparameters=NetworkHyperparameters,
    data=lambda: None,  # type: ignore[arg-type, return-value]
    model=lambda: None,
    search={
        "lr": Range(1e-4, 1e-1, log=True),
        "batch_size": Range(8, 64),
        "schedule": ("linear", "cosine"),
    },
)


def make_request(job: Job = JOB, limit: int = 20, parallel: int = 4) -> Any:
    settings = NetworkHyperparameters(seed=3)
    search = Search(RECIPE, settings, make_space(RECIPE), "sagemaker", limit)
    return tuning_job.build(replace(job, name=job_name("toy", suffix="1a2b")), search, parallel)


def test_a_tuning_job_searches_the_recipes_space_by_the_older_contract() -> None:
    request = make_request(
        replace(
            JOB, hyperparameters={"epochs": 3, "note": "o'brien"}, channels={"train": "s3://d/t/"}
        )
    )
    tuning_job.validate(request)
    config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]

    assert config["ParameterRanges"] == {
        "IntegerParameterRanges": [
            {"Name": "batch_size", "MinValue": "8", "MaxValue": "64", "ScalingType": "Linear"}
        ],
        "ContinuousParameterRanges": [
            {"Name": "lr", "MinValue": "0.0001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ],
        "CategoricalParameterRanges": [{"Name": "schedule", "Values": ["linear", "cosine"]}],
    }
    assert config["HyperParameterTuningJobObjective"] == {
        "Type": "Minimize",
        "MetricName": "validation:rmse",
    }
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 20, "MaxParallelTrainingJobs": 4}
    assert config["RandomSeed"] == 3
    assert definition["StaticHyperParameters"] == {
        "epochs": "3", "note": "o'brien", "sagemaker_program": "training/sagemaker/bootstrap.py",
        "sagemaker_submit_directory": "s3://my-artifacts/code/abc/sourcedir.tar.gz"}  # fmt: skip
    assert "ContainerEntrypoint" not in definition["AlgorithmSpecification"]
    assert definition["Environment"]["MAYFLY_RECIPE"] == "digits"
    assert definition["Environment"]["MAYFLY_TRIAL"] == "1"
    assert definition["OutputDataConfig"]["S3OutputPath"] == "s3://my-artifacts/trials/digits/"
    assert [channel["ChannelName"] for channel in definition["InputDataConfig"]] == ["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(HyperParameterTuningJobName="x" * 33), "at most 32 letters"),
        (
            lambda r: r["TrainingJobDefinition"].pop("RoleArn"),
            "in TrainingJobDefinition: ",
        ),
        (
            lambda r: r["TrainingJobDefinition"]["ResourceConfig"].update(InstanceType="ml.x"),
            "'ml.x' is none of",
        ),
        (
            lambda r: r["HyperParameterTuningJobConfig"]["ResourceLimits"].update(
                MaxParallelTrainingJobs=21
            ),
            "--parallel",
        ),
        (
            lambda r: r["HyperParameterTuningJobConfig"]["ParameterRanges"][
                "CategoricalParameterRanges"
            ][0].update(Values=[str(number) for number in range(31)]),
            "30 choices",
        ),
    ],
    ids=["name", "missing", "instance", "parallel", "choices"],
)
def test_a_wrong_request_is_refused_with_the_field(
    change: Callable[[Any], Any], message: str
) -> None:
    request = make_request()
    change(request)

    with pytest.raises(InvalidJob, match=re.escape(message)):
        tuning_job.validate(request)


def description(
    status: str, completed: int, best: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Return SageMaker's description of a tuning job; Stubber checks it by the service model."""
    request = make_request()
    job = {
        "HyperParameterTuningJobName": "toy",
        "HyperParameterTuningJobArn": f"{ARN}:hyper-parameter-tuning-job/toy",
        "HyperParameterTuningJobConfig": request["HyperParameterTuningJobConfig"],
        "HyperParameterTuningJobStatus": status,
        "CreationTime": datetime(2026, 11, 22),
        "TrainingJobStatusCounters": {"Completed": completed, "InProgress": 2},
        "ObjectiveStatusCounters": {"Succeeded": completed},
        **more,
    }
    if best is not None:
        job["BestTrainingJob"] = {
            "TrainingJobName": "toy-003",
            "TrainingJobArn": f"{ARN}:training-job/toy-003",
            "CreationTime": datetime(2026, 11, 22),
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": best,
            "FinalHyperParameterTuningJobObjectiveMetric": {
                "MetricName": "validation:rmse",
                "Value": 0.125,
            },
        }
    return job


@pytest.fixture
def sagemaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    client = boto3.client(
        "sagemaker", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    monkeypatch.setattr(backends, "client", lambda *_: client)
    monkeypatch.setattr(tuning_job, "POLL_S", 0)
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


def test_a_tuning_job_is_followed_to_its_best_trial(sagemaker: Stubber) -> None:
    best = {"lr": "0.01", "schedule": "cosine"}
    for answer in (
        description("InProgress", 0),
        description("InProgress", 0),
        description("InProgress", 3, best),
        description("Completed", 20, best),
    ):
        sagemaker.add_response(
            "describe_hyper_parameter_tuning_job", answer, {"HyperParameterTuningJobName": "toy"}
        )
    said: list[str] = []

    assert tuning_job.wait("toy", "us-east-1", said.append) == best
    assert said == [
        "InProgress  completed=0  running=2  failed=0",
        "InProgress  completed=3  running=2  failed=0  best validation:rmse=0.125",
        "Completed   completed=20  running=2  failed=0  best validation:rmse=0.125",
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            description("Failed", 0, FailureReason="no capacity"),
            "tuning job toy ended as Failed: no capacity",
        ),
        (description("Completed", 0), "tuning job toy ended as Completed: no trial ended well"),
    ],
    ids=["failed", "without a trial"],
)
def test_a_tuning_job_that_ends_badly_says_why(
    sagemaker: Stubber, answer: dict[str, Any], message: str
) -> None:
    sagemaker.add_response("describe_hyper_parameter_tuning_job", answer)

    with pytest.raises(InvalidJob, match=f"^{message}$"):
        tuning_job.wait("toy", "us-east-1", lambda _: None)


def test_a_job_that_cannot_be_followed_is_reported(sagemaker: Stubber) -> None:
    for operation in ("describe_training_job", "describe_hyper_parameter_tuning_job"):
        sagemaker.add_client_error(operation, "AccessDeniedException", "not for you")

    for wait in (backends.wait, tuning_job.wait):
        with pytest.raises(
            InvalidJob, match="^toy was sent, and cannot be followed: .* not for you$"
        ):
            wait("toy", "us-east-1")


@pytest.mark.train
def test_waiting_for_a_tuning_job_trains_its_best_settings(
    sagemaker: Stubber, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the recipe needs torch")
    best = {"lr": "0.01", "hidden": "[64]"}
    sagemaker.add_response("describe_hyper_parameter_tuning_job", description("Completed", 4, best))
    sent: list[Any] = []
    monkeypatch.setitem(tuning_job.SENDERS, "boto3", lambda *request: sent.append(request[0]))
    monkeypatch.setitem(backends.BACKENDS, "boto3", lambda *request: sent.append(request[0]))
    monkeypatch.setattr(backends, "upload_code", lambda *_: None)
    monkeypatch.setattr(backends, "wait", lambda *_: None)
    options = [
        "mlp",
        "--bucket",
        "b-artifacts",
        "--role",
        JOB.role,
        "--set",
        "epochs=2",
        "--tune",
        "4",
        "--wait",
    ]

    assert main([*options, "--search", "sagemaker"], {}) == 0
    search, job = sent
    assert search["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 4
    assert job["HyperParameters"] == {"epochs": "2", **best}
    assert job["OutputDataConfig"]["S3OutputPath"] == "s3://b-artifacts/models/mlp/"
    assert "best: --set lr=0.01 --set hidden=[64]" in capsys.readouterr().out


@pytest.mark.train
def test_the_local_stack_refuses_tuning_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the recipe needs torch")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")
    options = [
        "mlp",
        "--on",
        "local-stack",
        "--bucket",
        "b-artifacts",
        "--tune",
        "4",
        "--search",
        "sagemaker",
    ]

    assert main(options, {}) == 1
    assert "on the local stack take random, grid or optuna" in capsys.readouterr().err


@pytest.mark.train
def test_a_dry_run_prints_a_tuning_job(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the recipe needs torch")
    options = [
        "--tune",
        "12",
        "--search",
        "sagemaker",
        "--parallel",
        "3",
        "--set",
        "dropout=0.1",
        "--dry-run",
    ]

    assert command(["train", "mlp", "--on", "sagemaker", *options]) == 0
    request = json.loads(capsys.readouterr().out)

    tuning_job.validate(request)
    ranges = request["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert [one["Name"] for one in ranges["ContinuousParameterRanges"]] == ["lr"]  # dropout is set
    assert ranges["CategoricalParameterRanges"] == [
        {"Name": "hidden", "Values": ["[64]", "[128]", "[256]"]}
    ]
