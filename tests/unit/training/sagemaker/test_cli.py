"""Command line of jobs: dry runs, and mistakes that are found before anything is sent."""

import json
from typing import Any

import pytest

from tests.unit.training.sagemaker.jobs import JOB
from training.__main__ import COMMANDS
from training.__main__ import main as command
from training.sagemaker.cli import main
from training.sagemaker.validation import validate


def test_a_dry_run_prints_the_request_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["digits", "--bucket", "b-artifacts", "--role", JOB.role, "--dry-run", "--set", "epochs=1"],
        {},
    )

    assert status == 0
    assert '"epochs": "1"' in capsys.readouterr().out


@pytest.mark.parametrize("where", ["sagemaker", "local-stack"])
def test_a_dry_run_needs_no_bucket_and_no_role(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")
    options = [
        "--instance",
        "ml.g5.12xlarge",
        "--instances",
        "2",
        "--no-spot",
        "--keep-alive",
        "600",
        "--retries",
        "3",
        "--volume",
        "50",
        "--tag",
        "team=a",
        "--kms-key",
        "alias/k",
        "--subnet",
        "s-1",
        "--security-group",
        "g-1",
        "--seeds",
        "3",
        "--compress",
        "int8",
    ]

    assert command(["train", "digits", "--on", where, "--dry-run", *options]) == 0
    request = json.loads(capsys.readouterr().out)

    validate(request)
    assert request["AlgorithmSpecification"]["ContainerArguments"] == [
        "-m", "training.train", "digits", "--seeds", "3", "--compress", "int8"]  # fmt: skip
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.g5.12xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 50,
        "KeepAlivePeriodInSeconds": 600,
    }
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert {"Key": "team", "Value": "a"} in request["Tags"]
    assert request["VpcConfig"] == {"Subnets": ["s-1"], "SecurityGroupIds": ["g-1"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the artifacts bucket: --bucket, or MAYFLY_BUCKET"),
        (["--bucket", "b"], "name the role the job runs as: --role, or MAYFLY_ROLE"),
        (["--dry-run", "--no-spot", "--max-wait", "9000"], "max wait is for spot instances"),
        (["--dry-run", "--keep-alive", "60"], "a warm pool needs an instance on demand"),
        (["--dry-run", "--instances", "0"], "a job needs one instance at least"),
        (
            ["--dry-run", "--subnet", "subnet-1"],
            "subnets and security groups go together: add --security-group",
        ),
        (
            ["--dry-run", "--security-group", "sg-1"],
            "go together: add --security-group, or --subnet",
        ),
        (["--dry-run", "--data", "train=my/folder"], "a job reads its data from S3"),
    ],
)
def test_mistakes_are_reported_before_anything_is_sent(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", *options], {}) == 1
    assert message in capsys.readouterr().err


def test_ctrl_c_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "job", interrupted)

    assert command(["job", "digits"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("role", ["arn:aws:iam::1:user/me", "training", "r"])
def test_a_mistake_is_printed_as_one_line(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["digits", "--bucket", "b", "--role", role, "--dry-run"], {})

    assert status == 1
    assert capsys.readouterr().err == (
        f"error: role {role!r} is no role ARN, e.g. arn:aws:iam::123456789012:role/training\n"
    )


def dry_run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["digits", "--dry-run", *options], {}) == 0
    request: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(request)
    return request


def test_a_job_knows_its_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    request = dry_run(capsys, "--max-runtime", "900")

    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == 900
    assert request["Environment"]["MAYFLY_MAX_RUNTIME_S"] == "900"


def test_a_job_continues_from_the_checkpoint_of_an_earlier_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = dry_run(capsys, "--resume", "digits-20261130-120000-1a2b")

    address = request["CheckpointConfig"]["S3Uri"]
    assert address.endswith("/checkpoints/digits-20261130-120000-1a2b/")
    assert request["TrainingJobName"] != "digits-20261130-120000-1a2b"


def test_a_job_gets_its_first_weights_in_a_channel(capsys: pytest.CaptureFixture[str]) -> None:
    request = dry_run(capsys, "--weights", "s3://b/checkpoints/old/")

    channel = request["InputDataConfig"][-1]
    assert channel["ChannelName"] == "weights"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://b/checkpoints/old/"


@pytest.mark.parametrize("option", ["--resume", "--weights"])
def test_a_search_neither_resumes_a_job_nor_starts_from_weights(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", "--dry-run", "--tune", "3", option, "s3://b/x/"], {}) == 1
    assert f"{option} is for one run and no search" in capsys.readouterr().err
