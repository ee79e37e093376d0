"""CreateTrainingJob request: pure, complete and valid for every job and recipe."""

import copy
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from botocore.session import get_session

from tests.unit.training.sagemaker.jobs import JOB
from training.errors import InvalidJob
from training.evaluation import metrics, report
from training.recipe_loading import built_in
from training.sagemaker.cli import check_recipe
from training.sagemaker.source_code import collect_code
from training.sagemaker.training_job import build, image_uri, job_name
from training.sagemaker.validation import validate


def test_the_same_job_gives_the_same_valid_request() -> None:
    request = build(JOB)
    before = copy.deepcopy(request)
    validate(request)

    assert request == before == build(JOB)


def test_every_option_together_is_valid() -> None:
    job = replace(
        JOB,
        instance_type="ml.m5.xlarge",
        channels={"train": "s3://data/train/"},
        kms_key="alias/k",
        subnets=["subnet-1"],
        security_groups=["sg-1"],
        tags={"team": "a"},
        spot=False,
        keep_alive_s=600,
    )
    request = build(job)
    validate(request)

    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert (
        request["OutputDataConfig"]["KmsKeyId"]
        == request["ResourceConfig"]["VolumeKmsKeyId"]
        == "alias/k"
    )
    assert "MaxWaitTimeInSeconds" not in request["StoppingCondition"]


def test_hosts_and_processes_are_in_the_request() -> None:
    request = build(replace(JOB, instances=3, processes=2, instance_type="ml.g5.12xlarge"))
    validate(request)

    assert request["ResourceConfig"]["InstanceCount"] == 3
    assert request["Environment"]["MAYFLY_PROCESSES"] == "2"
    assert "MAYFLY_PROCESSES" not in build(JOB)["Environment"]


def test_a_job_may_have_no_retries() -> None:
    request = build(replace(JOB, retries=0))
    validate(request)

    assert "RetryStrategy" not in request


def test_a_tag_may_be_in_any_language() -> None:
    validate(build(replace(JOB, tags={"équipe": "grün 数 1"})))


def test_output_checkpoints_and_spot_limits_are_set() -> None:
    request = build(JOB)

    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://my-artifacts/models/digits/"
    assert request["OutputDataConfig"]["CompressionType"] == "NONE"
    assert request["CheckpointConfig"] == {
        "S3Uri": "s3://my-artifacts/checkpoints/digits-20261122-081530-1a2b/"
    }
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 3600,
        "MaxWaitTimeInSeconds": 7200,
    }
    assert request["ResourceConfig"]["InstanceType"].startswith("ml.g")
    assert request["AlgorithmSpecification"]["ContainerEntrypoint"] == [
        "python3", "/opt/ml/input/data/code/training/sagemaker/bootstrap.py"]  # fmt: skip
    assert request["HyperParameters"] == {
        "epochs": "3",
        "lr": "3e-4",
        "note": "o'brien",
        "flag": "true",
    }


def test_a_trial_writes_where_nothing_is_registered() -> None:
    request = build(replace(JOB, trial=True))

    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://my-artifacts/trials/digits/"
    assert request["Environment"]["MAYFLY_TRIAL"] == "1"


@pytest.mark.train
@pytest.mark.parametrize("task", [None, *metrics.PRIMARY])
def test_metric_definitions_match_the_printed_lines_of_every_task(
    task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = pytest.importorskip("training.fitting.progress", reason="the loop needs torch")
    definitions = build(replace(JOB, task=task))["AlgorithmSpecification"]["MetricDefinitions"]
    assert len(definitions) <= 40  # what SageMaker takes
    assert definitions[-1]["Name"] == "train:epoch"  # who reads it finds what was printed with it

    for one in [task] if task else metrics.PRIMARY:
        primary = metrics.PRIMARY[one].metric
        row = {
            "epoch": 3,
            "loss": 0.25,
            "validation_loss": 0.5,
            f"validation_{primary}": 0.75,
            "examples_per_s": 1234.0,
        }
        progress.Progress(0, 10, progress.Ranks()).epoch(row, 10, 3)
        names = metrics.NAMES[one]
        card: Any = {
            "task": one,
            "metrics": dict.fromkeys(names, -12.5),
            "baselines": {"mean": {primary: 1.0}},
        }
        text = capsys.readouterr().out + "\n".join(report.lines(card))

        found = {item["Name"]: re.search(item["Regex"], text) for item in definitions}
        values = {name: float(match[1]) for name, match in found.items() if match}
        expected = {
            "train:loss": 0.25,
            "train:epoch": 3,
            "train:examples_per_s": 1234,
            "validation:loss": 0.5,
        }
        assert values == expected | {f"validation:{primary}": 0.75} | {
            f"test:{name}": -12.5 for name in names
        }


@pytest.mark.train
@pytest.mark.parametrize("name", built_in())
def test_the_request_of_every_recipe_is_valid(name: str) -> None:
    pytest.importorskip("torch", reason="recipes need torch")
    code = collect_code(name)
    model, task = check_recipe(name, {})
    job = replace(
        JOB,
        name=job_name(model),
        recipe=code.entry,
        model=model,
        task=task,
        code_uri=code.uri("my-artifacts"),
    )
    request = build(job)
    validate(request)

    assert request["AlgorithmSpecification"]["ContainerArguments"] == ["-m", "training.train", name]
    primary = f"validation:{metrics.PRIMARY[task].metric}"  # type: ignore[index]
    assert primary in [
        one["Name"] for one in request["AlgorithmSpecification"]["MetricDefinitions"]
    ]


@pytest.mark.parametrize(
    ("region", "instance", "image"),
    [
        (
            "us-east-1",
            "ml.m5.large",
            "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cpu",
        ),
        (
            "eu-south-1",
            "ml.p5.48xlarge",
            "692866216735.dkr.ecr.eu-south-1.amazonaws.com/pytorch:2.13-cu133",
        ),
        (
            "us-gov-west-1",
            "ml.gr6.4xlarge",
            "442386744353.dkr.ecr.us-gov-west-1.amazonaws.com/pytorch:2.13-cu133",
        ),
        (
            "cn-north-1",
            "ml.c7i-flex.large",
            "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch:2.13-cpu",
        ),
        (
            "us-isob-east-1",
            "ml.g4dn.xlarge",
            "094389454867.dkr.ecr.us-isob-east-1.sc2s.sgov.gov/pytorch:2.13-cu133",
        ),
    ],
)
def test_the_image_follows_region_and_processor(region: str, instance: str, image: str) -> None:
    assert image_uri(region, instance) == f"{image}-amzn2023-sagemaker"


def test_a_region_without_a_known_image_asks_for_one() -> None:
    with pytest.raises(InvalidJob, match="--image"):
        build(replace(JOB, region="us-north-9"))


@pytest.mark.parametrize(
    "instance", ["ml.trn1.2xlarge", "ml.inf2.xlarge", "ml.m7g.large", "ml.p6e-gb200.36xlarge"]
)
def test_an_instance_without_this_image_asks_for_one(instance: str) -> None:
    job = replace(JOB, instance_type=instance)

    with pytest.raises(InvalidJob, match="--image, or take --instance ml.g6.xlarge"):
        build(job)
    own = build(replace(job, image="mine"))
    assert own["AlgorithmSpecification"]["TrainingImage"] == "mine"


def test_every_instance_of_sagemaker_has_an_image_or_is_refused() -> None:
    service = get_session().get_service_model("sagemaker")
    shape = service.operation_model("CreateTrainingJob").input_shape
    instances = shape.members["ResourceConfig"].members["InstanceType"].enum

    refused = set()
    for instance in instances:
        try:
            image_uri("us-east-1", instance)
        except InvalidJob:
            refused.add(instance.split(".")[1])
    assert refused == {"trn1", "trn1n", "trn2", "p6e-gb200"}


@pytest.mark.parametrize(
    ("instance", "has_volume_key"),
    [
        ("ml.m5.xlarge", True), ("ml.c7i-flex.large", True), ("ml.p3.2xlarge", True),
        ("ml.g4dn.xlarge", False), ("ml.g6e.xlarge", False), ("ml.p3dn.24xlarge", False),
        ("ml.p5en.48xlarge", False), ("ml.p6-b200.48xlarge", False), ("ml.r5d.large", False),
    ],
)  # fmt: skip
def test_a_key_for_the_volume_is_left_out_where_storage_is_local(
    instance: str, has_volume_key: bool
) -> None:
    """AWS refuses the request otherwise; NVMe is encrypted by the hardware."""
    request = build(replace(JOB, instance_type=instance, kms_key="alias/k"))

    assert ("VolumeKmsKeyId" in request["ResourceConfig"]) is has_volume_key
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/k"


def test_a_job_name_fits_whatever_the_model_is_called() -> None:
    name = job_name("a.very_long-" * 10, datetime(2026, 11, 22), "1a2b")

    validate(build(replace(JOB, name=name)))
