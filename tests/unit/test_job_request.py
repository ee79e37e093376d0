"""The one request of a training job: pure, complete, and refused before anything is sent where it is wrong."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from training import backends
from training.errors import InvalidJob
from training.job import Job, build, image_uri, job_name, main, validate

JOB = Job(
    name="digits-20261122-081530-1a2b",
    recipe="digits",
    model="digits",
    bucket="my-artifacts",
    role="arn:aws:iam::123456789012:role/training",
    code_uri="s3://my-artifacts/code/abc/",
    hyperparameters={"epochs": 3, "lr": "3e-4", "note": "o'brien", "flag": True},
)


def test_the_same_job_gives_the_same_request_which_is_valid() -> None:
    request = build(JOB)
    before = copy.deepcopy(request)
    validate(request)

    assert request == before == build(JOB)


def test_every_option_together_is_valid() -> None:
    job = replace(JOB, channels={"train": "s3://data/train/"}, kms_key="alias/k", subnets=["subnet-1"],
                  security_groups=["sg-1"], tags={"team": "a"}, spot=False, keep_alive_s=600)  # fmt: skip
    request = build(job)
    validate(request)

    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert request["OutputDataConfig"]["KmsKeyId"] == request["ResourceConfig"]["VolumeKmsKeyId"] == "alias/k"
    assert "MaxWaitTimeInSeconds" not in request["StoppingCondition"]


def test_the_request_says_what_the_design_says() -> None:
    request = build(JOB)

    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://my-artifacts/models/digits/"
    assert request["OutputDataConfig"]["CompressionType"] == "NONE"
    assert request["CheckpointConfig"] == {"S3Uri": "s3://my-artifacts/checkpoints/digits-20261122-081530-1a2b/"}
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["ResourceConfig"]["InstanceType"].startswith("ml.g")
    assert request["AlgorithmSpecification"]["ContainerEntrypoint"] == [
        "python3", "/opt/ml/input/data/code/training/bootstrap.py"]  # fmt: skip
    assert request["HyperParameters"] == {"epochs": "3", "lr": "3e-4", "note": "o'brien", "flag": "true"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("OutputDataConfig"), 'Missing required parameter in input: "OutputDataConfig"'),
        (lambda r: r["StoppingCondition"].update(MaxRuntimeInSeconds="1h"), "MaxRuntimeInSeconds"),
        (lambda r: r.update(Spot=True), 'Unknown parameter in input: "Spot"'),
        (lambda r: r["ResourceConfig"].update(InstanceType="ml.g5.huge"), "'ml.g5.huge' is none of SageMaker's"),
        (lambda r: r.update(TrainingJobName="under_score"), "job name 'under_score'"),
        (lambda r: r.update(RoleArn="arn:aws:iam::1:user/x-and-then-some"), "is no role ARN"),
        (lambda r: r["StoppingCondition"].update(MaxWaitTimeInSeconds=1), "max wait includes the runtime"),
        (lambda r: r["HyperParameters"].update(note="x" * 3000), "longer than SageMaker allows"),
    ],
    ids=["missing", "type", "unknown", "instance", "name", "role", "wait", "long"],
)
def test_a_wrong_request_is_refused_with_the_field(change: Callable[[Any], Any], message: str) -> None:
    request = build(JOB)
    change(request)

    with pytest.raises(InvalidJob) as caught:
        validate(request)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("region", "instance", "image"),
    [
        ("us-east-1", "ml.m5.large", "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cpu"),
        ("eu-south-1", "ml.p5.48xlarge", "692866216735.dkr.ecr.eu-south-1.amazonaws.com/pytorch:2.13-cu133"),
    ],
)
def test_the_image_follows_region_and_processor(region: str, instance: str, image: str) -> None:
    assert image_uri(region, instance) == f"{image}-amzn2023-sagemaker"


def test_a_region_without_a_known_image_asks_for_one() -> None:
    with pytest.raises(InvalidJob, match="--image"):
        build(replace(JOB, region="cn-north-1"))


def test_a_job_name_fits_whatever_the_model_is_called() -> None:
    name = job_name("a.very_long-" * 10, datetime(2026, 11, 22), "1a2b")

    validate(build(replace(JOB, name=name)))


def test_the_sdk_gets_the_same_fields_and_the_users_keys() -> None:
    converted = backends.snake_case(build(replace(JOB, environment={"MixedCase": "1"})))

    assert converted["algorithm_specification"]["container_entrypoint"][0] == "python3"
    assert converted["resource_config"]["volume_size_in_gb"] == 30
    assert converted["environment"]["MixedCase"] == "1"
    assert converted["input_data_config"][0]["data_source"]["s3_data_source"]["s3_uri"] == "s3://my-artifacts/code/abc/"


def test_code_is_named_by_its_content_and_holds_the_entry_point() -> None:
    code = backends.collect_code("digits")

    assert {"training/bootstrap.py", "training/train.py", "training/requirements.txt"} <= set(code.files)
    assert code.uri("b") == backends.collect_code("digits").uri("b")
    assert replace(code, files={**code.files, "more.py": b""}).digest != code.digest


def test_a_dry_run_prints_the_request_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["digits", "--bucket", "b-artifacts", "--role", JOB.role, "--dry-run", "--set", "epochs=1"], {})

    assert status == 0
    assert '"epochs": "1"' in capsys.readouterr().out


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["digits", "--bucket", "b", "--role", "arn:aws:iam::1:user/me", "--dry-run"], {})

    assert status == 1
    assert capsys.readouterr().err.startswith("error: role 'arn:aws:iam::1:user/me' is no role ARN, e.g. arn:aws:iam::")
