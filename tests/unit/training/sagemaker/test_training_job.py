"""The one request of a training job: pure, complete, and refused before anything is sent where it is wrong."""

import copy
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from training.__main__ import COMMANDS
from training.__main__ import main as command
from training.errors import InvalidJob
from training.evaluation import metrics, report
from training.hyperparameters import NetworkHyperparameters, Range
from training.recipe import Recipe
from training.recipe_loading import built_in
from training.sagemaker import backends, tuning_job
from training.sagemaker.cli import main
from training.sagemaker.training_job import Job, build, image_uri, job_name
from training.sagemaker.validation import validate
from training.tuning.study import Study

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
    assert (
        request["OutputDataConfig"]["KmsKeyId"]
        == request["ResourceConfig"]["VolumeKmsKeyId"]
        == "alias/k"
    )
    assert "MaxWaitTimeInSeconds" not in request["StoppingCondition"]


def test_a_job_of_several_hosts_or_processes_says_so() -> None:
    request = build(replace(JOB, instances=3, processes=2, instance_type="ml.g5.12xlarge"))
    validate(request)

    assert request["ResourceConfig"]["InstanceCount"] == 3
    assert request["Environment"]["MAYFLY_PROCESSES"] == "2"
    assert "MAYFLY_PROCESSES" not in build(JOB)["Environment"]


def test_a_job_may_be_tried_once_only() -> None:
    request = build(replace(JOB, retries=0))
    validate(request)

    assert "RetryStrategy" not in request


def test_a_tag_may_be_in_any_language() -> None:
    validate(build(replace(JOB, tags={"équipe": "grün 数 1"})))


def test_a_trial_writes_where_nothing_is_registered() -> None:
    request = build(replace(JOB, trial=True))

    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://my-artifacts/trials/digits/"
    assert request["Environment"]["MAYFLY_TRIAL"] == "1"


@pytest.mark.train
@pytest.mark.parametrize("task", [None, *metrics.PRIMARY])
def test_the_metrics_of_every_task_are_few_enough_and_found_in_what_is_printed(
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
def test_every_recipes_request_is_valid(name: str) -> None:
    pytest.importorskip("torch", reason="recipes need torch")
    code = backends.collect_code(name)
    model, task = backends.check_recipe(name, {})
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


SEARCHED = Recipe(
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


def tuning(job: Job = JOB, limit: int = 20, parallel: int = 4) -> Any:
    study = Study(SEARCHED, NetworkHyperparameters(seed=3), fixed=(), kind="sagemaker", limit=limit)
    return tuning_job.build(replace(job, name=job_name("toy", suffix="1a2b")), study, parallel)


def test_a_tuning_job_searches_the_same_space_by_the_older_contract() -> None:
    request = tuning(
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
def test_a_wrong_tuning_job_is_refused_with_the_field(
    change: Callable[[Any], Any], message: str
) -> None:
    request = tuning()
    change(request)

    with pytest.raises(InvalidJob, match=re.escape(message)):
        tuning_job.validate(request)


def described(
    status: str, completed: int, best: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A tuning job as SageMaker describes it; botocore's Stubber holds it against the service model."""
    request = tuning()
    found = {
        "HyperParameterTuningJobName": "toy",
        "HyperParameterTuningJobArn": "arn:aws:sagemaker:us-east-1:123456789012:hyper-parameter-tuning-job/toy",
        "HyperParameterTuningJobConfig": request["HyperParameterTuningJobConfig"],
        "HyperParameterTuningJobStatus": status,
        "CreationTime": datetime(2026, 11, 22),
        "TrainingJobStatusCounters": {"Completed": completed, "InProgress": 2},
        "ObjectiveStatusCounters": {"Succeeded": completed},
        **more,
    }
    if best is not None:
        found["BestTrainingJob"] = {
            "TrainingJobName": "toy-003",
            "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/toy-003",
            "CreationTime": datetime(2026, 11, 22),
            "TrainingJobStatus": "Completed",
            "TunedHyperParameters": best,
            "FinalHyperParameterTuningJobObjectiveMetric": {
                "MetricName": "validation:rmse",
                "Value": 0.125,
            },
        }
    return found


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
    for answer in (described("InProgress", 0), described("InProgress", 0), described("InProgress", 3, best),
                   described("Completed", 20, best)):  # fmt: skip
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
            described("Failed", 0, FailureReason="no capacity"),
            "tuning job toy ended as Failed: no capacity",
        ),
        (described("Completed", 0), "tuning job toy ended as Completed: no trial ended well"),
    ],
    ids=["failed", "without a trial"],
)
def test_a_tuning_job_that_ends_badly_says_why(
    sagemaker: Stubber, answer: dict[str, Any], message: str
) -> None:
    sagemaker.add_response("describe_hyper_parameter_tuning_job", answer)

    with pytest.raises(InvalidJob, match=f"^{message}$"):
        tuning_job.wait("toy", "us-east-1", lambda _: None)


def test_a_job_that_cannot_be_followed_any_more_is_one_sentence(sagemaker: Stubber) -> None:
    for operation in ("describe_training_job", "describe_hyper_parameter_tuning_job"):
        sagemaker.add_client_error(operation, "AccessDeniedException", "not for you")

    for wait in (backends.wait, tuning_job.wait):
        with pytest.raises(
            InvalidJob, match="^toy was sent, and cannot be followed: .* not for you$"
        ):
            wait("toy", "us-east-1")


@pytest.mark.train
def test_the_best_settings_of_a_tuning_job_are_trained_when_it_is_waited_for(
    sagemaker: Stubber, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the recipe needs torch")
    best = {"lr": "0.01", "hidden": "[64]"}
    sagemaker.add_response("describe_hyper_parameter_tuning_job", described("Completed", 4, best))
    sent: list[Any] = []
    monkeypatch.setitem(tuning_job.SENDERS, "boto3", lambda *request: sent.append(request[0]))
    monkeypatch.setitem(backends.BACKENDS, "boto3", lambda *request: sent.append(request[0]))
    monkeypatch.setattr(backends.Code, "upload", lambda *_: None)
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
def test_the_local_stack_has_no_search_of_sagemakers_own(
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


def test_the_archive_of_the_older_contract_holds_the_same_code() -> None:
    code = backends.collect_code("digits")
    with tarfile.open(fileobj=io.BytesIO(code.archive())) as archive:
        names = archive.getnames()
        bootstrap = archive.extractfile("training/sagemaker/bootstrap.py")
        assert bootstrap is not None
        assert bootstrap.read() == code.files["training/sagemaker/bootstrap.py"]

    assert names == sorted(code.files)
    assert code.archive() == code.archive()


def test_the_request_says_what_the_design_says() -> None:
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.pop("OutputDataConfig"),
            'Missing required parameter in input: "OutputDataConfig"',
        ),
        (lambda r: r["StoppingCondition"].update(MaxRuntimeInSeconds="1h"), "MaxRuntimeInSeconds"),
        (lambda r: r.update(Spot=True), 'Unknown parameter in input: "Spot"'),
        (
            lambda r: r["ResourceConfig"].update(InstanceType="ml.g5.huge"),
            "'ml.g5.huge' is none of SageMaker's",
        ),
        (lambda r: r.update(TrainingJobName="under_score"), "job name 'under_score'"),
        (lambda r: r.update(RoleArn="arn:aws:iam::1:user/x-and-then-some"), "is no role ARN"),
        (
            lambda r: r["StoppingCondition"].update(MaxWaitTimeInSeconds=1),
            "max wait includes the runtime",
        ),
        (
            lambda r: r["HyperParameters"].update(note="x" * 3000),
            "HyperParameters.note: 3000 characters where SageMaker",
        ),
        (
            lambda r: r["HyperParameters"].update({str(n): "" for n in range(101)}),
            "HyperParameters: 105 entries where",
        ),
        (
            lambda r: r["HyperParameters"].update({"n" * 300: ""}),
            "300 characters where SageMaker takes 256 at most",
        ),
        (
            lambda r: r["RetryStrategy"].update(MaximumRetryAttempts=31),
            "MaximumRetryAttempts: 31 where SageMaker takes 30",
        ),
        (
            lambda r: r["ResourceConfig"].update(VolumeKmsKeyId="a key"),
            "ResourceConfig.VolumeKmsKeyId: 'a key' does not",
        ),
        (
            lambda r: r["OutputDataConfig"].update(CompressionType="ZIP"),
            "CompressionType: 'ZIP' is none of GZIP, NONE",
        ),
        (
            lambda r: r["Tags"].append({"Key": "a#b", "Value": ""}),
            "Tags[1].Key: 'a#b' does not have the form",
        ),
        (
            lambda r: r["InputDataConfig"][0]["DataSource"]["S3DataSource"].update(
                S3Uri="my/folder"
            ),
            "a job reads its data from S3: --data NAME=s3://bucket/prefix/, not 'my/folder'",
        ),
    ],
    ids=[
        "missing",
        "type",
        "unknown",
        "instance",
        "name",
        "role",
        "wait",
        "long",
        "many",
        "name of one",
        "retries",
        "key",
        "choice",
        "tag",
        "folder",
    ],
)
def test_a_wrong_request_is_refused_with_the_field(
    change: Callable[[Any], Any], message: str
) -> None:
    request = build(JOB)
    change(request)

    with pytest.raises(InvalidJob) as caught:
        validate(request)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    assert (
        converted["input_data_config"][0]["data_source"]["s3_data_source"]["s3_uri"]
        == "s3://my-artifacts/code/abc/"
    )


def test_code_is_named_by_its_content_and_holds_the_entry_point() -> None:
    code = backends.collect_code("digits")

    assert {
        "training/sagemaker/bootstrap.py",
        "training/train.py",
        "training/requirements.txt",
    } <= set(code.files)
    assert code.uri("b") == backends.collect_code("digits").uri("b")
    assert replace(code, files={**code.files, "more.py": b""}).digest != code.digest


def test_packages_are_brought_along_with_the_code(tmp_path: Path) -> None:
    (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    (tmp_path / "notes.txt").touch()
    code = backends.collect_code("digits", tmp_path)

    assert {name for name in code.files if not name.startswith("training/")} == {
        "wheels/a-1.0-py3-none-any.whl"
    }
    assert code.digest != backends.collect_code("digits").digest
    assert main(["digits", "--dry-run", "--wheels", str(tmp_path)], {}) == 0


def test_a_folder_without_packages_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", "--dry-run", "--wheels", str(tmp_path)], {}) == 1
    assert "there is no .whl file in it" in capsys.readouterr().err


def test_a_dry_run_prints_the_request_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["digits", "--bucket", "b-artifacts", "--role", JOB.role, "--dry-run", "--set", "epochs=1"],
        {},
    )

    assert status == 0
    assert '"epochs": "1"' in capsys.readouterr().out


@pytest.mark.parametrize("where", ["sagemaker", "local-stack"])
def test_training_elsewhere_needs_no_bucket_to_print_its_request(
    where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused")
    options = ["--instance", "ml.g5.12xlarge", "--instances", "2", "--no-spot", "--keep-alive", "600",
               "--retries", "3",
               "--volume", "50", "--tag", "team=a", "--kms-key", "alias/k", "--subnet", "s-1",
               "--security-group", "g-1", "--seeds", "3", "--compress", "int8"]  # fmt: skip

    assert command(["train", "digits", "--on", where, "--dry-run", *options]) == 0
    request = json.loads(capsys.readouterr().out)

    validate(request)
    assert request["AlgorithmSpecification"]["ContainerArguments"] == [
        "-m", "training.train", "digits", "--seeds", "3", "--compress", "int8"]  # fmt: skip
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.g5.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 50, "KeepAlivePeriodInSeconds": 600,
        "VolumeKmsKeyId": "alias/k"}  # fmt: skip
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert {"Key": "team", "Value": "a"} in request["Tags"]
    assert request["VpcConfig"] == {"Subnets": ["s-1"], "SecurityGroupIds": ["g-1"]}


@pytest.mark.train
def test_a_tuning_job_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_what_is_missing_or_cannot_be_is_said_before_anything_is_sent(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", *options], {}) == 1
    assert message in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "job", interrupted)

    assert command(["job", "digits"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["digits", "--bucket", "b", "--role", "arn:aws:iam::1:user/me", "--dry-run"], {})

    assert status == 1
    assert capsys.readouterr().err.startswith(
        "error: role 'arn:aws:iam::1:user/me' is no role ARN, e.g. arn:aws:iam::"
    )
