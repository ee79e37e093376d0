"""Jobs on the local stack really run, with output in S3."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import onnx
import psutil
import pytest
from botocore.exceptions import ClientError
from onnx import numpy_helper

from training.sagemaker import backends
from training.sagemaker.cli import main
from training.sagemaker.job_logs import JobLog
from training.sagemaker.source_code import collect_code
from training.sagemaker.training_job import (
    ACCOUNTS,
    Job,
    build,
    image_uri,
    job_name,
)

ROOT = Path(__file__).parents[3]
ROLE = "arn:aws:iam::123456789012:role/training"
BUCKET = "test-artifacts"
FINAL = ("Completed", "Failed", "Stopped")
DEADLINE_S = 240  # generous for a machine under load, below the timeout of a test
SDK_PYTHON = Path(
    os.environ.get("MAYFLY_SAGEMAKER_PYTHON", ROOT / ".venv-sagemaker" / "bin" / "python")
)


class Stack:
    """Server of moto whose jobs really run, and clients for it."""

    def __init__(self, endpoint: str, logs: Path) -> None:
        self.endpoint, self.logs = endpoint, logs
        self.s3 = boto3.client("s3", endpoint_url=endpoint)
        self.sagemaker = boto3.client("sagemaker", endpoint_url=endpoint)

    def submit(self, code: str, **changes: Any) -> str:
        """Submit a job that runs `code`, with changes to its request."""
        job = make_job(**changes.pop("job", {}))
        self.s3.put_object(Bucket=BUCKET, Key=f"code/{job.name}/entry.py", Body=code.encode())
        request = build(replace(job, code_uri=f"s3://{BUCKET}/code/{job.name}/"))
        request["AlgorithmSpecification"]["ContainerEntrypoint"] = [
            "python3",
            "/opt/ml/input/data/code/entry.py",
        ]
        del request["AlgorithmSpecification"]["ContainerArguments"]
        for name, value in changes.items():
            request[name] = {**request[name], **value} if isinstance(value, Mapping) else value
        self.sagemaker.create_training_job(**request)
        return job.name

    def describe(self, name: str) -> Any:
        return self.sagemaker.describe_training_job(TrainingJobName=name)

    def until(self, name: str, *statuses: str) -> Any:
        """Wait for a status or secondary status, and return the description."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            job = self.describe(name)
            if {job["TrainingJobStatus"], job["SecondaryStatus"]} & set(statuses):
                return job
            time.sleep(0.05)
        pytest.fail(f"{name} is {job['SecondaryStatus']} after {DEADLINE_S} s\n{self.log(name)}")

    def log(self, name: str) -> str:
        path = self.logs / f"training-{name}.log"
        return path.read_text() if path.exists() else ""

    def until_logged(self, name: str, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.log(name):
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def keys(self, name: str) -> list[str]:
        """List the keys that the job wrote, relative to its output path."""
        prefix = f"models/digits/{name}/"
        objects = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"].removeprefix(prefix) for item in objects]

    def read(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body


def make_job(**changes: Any) -> Job:
    job = Job(
        name=job_name("digits"),
        recipe="digits",
        model="digits",
        bucket=BUCKET,
        role=ROLE,
        code_uri="s3://-/-/",
    )
    return replace(job, **changes)


@contextlib.contextmanager
def started(logs: Path) -> Iterator[Stack]:
    """Start a stack, and kill it in the end."""
    environment = {**os.environ, "MAYFLY_LOG_DIR": str(logs), "MAYFLY_STOP_GRACE_S": "3"}
    command = [sys.executable, "-m", "local.aws.server"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as moto:
        try:
            assert moto.stdout is not None
            endpoint = f"http://127.0.0.1:{json.loads(moto.stdout.readline())['port']}"
            stack = Stack(endpoint, logs)
            stack.s3.create_bucket(Bucket=BUCKET)
            yield stack
        finally:
            moto.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with started(tmp_path_factory.mktemp("logs")) as stack:
        yield stack


@pytest.fixture
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack.endpoint)


def parameters(model: bytes) -> dict[str, Any]:
    graph = onnx.load_model_from_string(model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


WRITES = """
import json, os, pathlib
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
model, data = base / "model", base / "output" / "data"
(model / "model.onnx").write_text("a model")
(model / "more").mkdir()
(model / "more" / "notes.txt").write_text("nested")
(data / "report.json").write_text("{}")
(data / "environment.json").write_text(json.dumps(dict(os.environ)))
print("epoch 1/2  loss=0.5  validation_accuracy=0.25")
print("epoch 2/2  loss=0.25  validation_accuracy=0.75")
"""


def test_uncompressed_output_is_one_object_a_file(stack: Stack) -> None:
    name = stack.submit(WRITES)
    job = stack.until(name, *FINAL)

    assert job["TrainingJobStatus"] == "Completed", stack.log(name)
    assert sorted(stack.keys(name)) == [
        "output/data/environment.json", "output/data/report.json", "output/model/model.onnx",
        "output/model/more/notes.txt"]  # fmt: skip
    assert (
        job["ModelArtifacts"]["S3ModelArtifacts"]
        == f"s3://{BUCKET}/models/digits/{name}/output/model/"
    )


def test_compressed_output_is_an_archive_named_model(stack: Stack) -> None:
    name = stack.submit(WRITES, OutputDataConfig={"CompressionType": "GZIP"})
    job = stack.until(name, *FINAL)

    assert sorted(stack.keys(name)) == ["output/model.tar.gz", "output/output.tar.gz"]
    assert job["ModelArtifacts"]["S3ModelArtifacts"].endswith("/output/model.tar.gz")
    packed = stack.read(f"models/digits/{name}/output/model.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert sorted(archive.getnames()) == ["model.onnx", "more/notes.txt"]


def test_the_description_has_statuses_metrics_and_times(stack: Stack) -> None:
    name = stack.submit(WRITES)
    job = stack.until(name, *FINAL)

    transitions = job["SecondaryStatusTransitions"]
    assert [item["Status"] for item in transitions] == [
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert all("EndTime" in item for item in transitions[:-1])
    metrics = {item["MetricName"]: item["Value"] for item in job["FinalMetricDataList"]}
    assert metrics == {"train:epoch": 2, "train:loss": 0.25, "validation:accuracy": 0.75}
    assert job["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert job["TrainingTimeInSeconds"] >= 1


def test_the_job_sees_nothing_of_the_developer(stack: Stack) -> None:
    name = stack.submit(WRITES)
    stack.until(name, *FINAL)
    seen = json.loads(stack.read(f"models/digits/{name}/output/data/environment.json"))

    assert seen["TRAINING_JOB_NAME"] == name
    assert seen["AWS_SECRET_ACCESS_KEY"] == "testing"
    assert seen["AWS_ENDPOINT_URL"] == stack.endpoint
    assert not set(seen) & {
        "USER",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "MAYFLY_LOG_DIR",
        "MAYFLY_TRAINING_IMAGE",
    }


@pytest.mark.usefixtures("environment")
def test_a_job_is_followed_by_its_log_lines_status_and_time(stack: Stack) -> None:
    name = stack.submit("print('epoch 1/2')\nprint()\nprint('naïve left=3s')")
    lines: list[str] = []
    backends.wait(name, "us-east-1", lines.append)

    logged = [line for line in lines if " after " not in line]
    assert logged[-2:] == ["epoch 1/2", "naïve left=3s"]
    assert re.fullmatch(r"Completed +after \d+ s", lines[-1])
    again = JobLog(name, boto3.client("logs", region_name="us-east-1"))
    assert again.lines()[-2:] == logged[-2:]
    assert again.lines() == []
    stranger = JobLog("no-such-job", boto3.client("logs", region_name="us-east-1"))
    assert stranger.lines() == []


def test_a_failure_reason_is_the_scripts_own_text(stack: Stack) -> None:
    name = stack.submit("""
import os, pathlib
failure = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], "output", "failure")
failure.write_text("ValueError: 3 columns, expected 64")
raise SystemExit(1)
""")
    job = stack.until(name, *FINAL)

    assert job["TrainingJobStatus"] == "Failed"
    assert (
        job["FailureReason"] == "AlgorithmError: ValueError: 3 columns, expected 64, exit code: 1"
    )
    assert stack.keys(name) == []


def test_a_channel_without_objects_fails_the_job(stack: Stack) -> None:
    name = stack.submit(WRITES, job={"channels": {"train": f"s3://{BUCKET}/no-such-data/"}})
    job = stack.until(name, *FINAL)

    assert (
        job["FailureReason"]
        == f"ClientError: Data download failed: no objects under s3://{BUCKET}/no-such-data/"
    )


def test_a_missing_bucket_fails_the_job(stack: Stack) -> None:
    name = stack.submit(
        WRITES, OutputDataConfig={"S3OutputPath": "s3://no-such-bucket-here/models/"}
    )
    job = stack.until(name, *FINAL)

    assert job["TrainingJobStatus"] == "Failed"
    assert "NoSuchBucket" in job["FailureReason"]


def test_data_arrive_in_their_channel(stack: Stack) -> None:
    for key in ("rows/a.csv", "rows/deep/b c+d.csv"):
        stack.s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    name = stack.submit(
        """
import os, pathlib
folder = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], "input", "data", "train")
files = [path for path in folder.rglob("*") if path.is_file()]
print(sorted((str(path.relative_to(folder)), path.read_text()) for path in files))
""",
        job={"channels": {"train": f"s3://{BUCKET}/rows/"}},
    )
    stack.until(name, "Completed")

    assert "[('a.csv', 'rows/a.csv'), ('deep/b c+d.csv', 'rows/deep/b c+d.csv')]" in stack.log(name)


def test_a_name_is_used_once(stack: Stack) -> None:
    name = stack.submit("")
    request = build(make_job(name=name))

    with pytest.raises(ClientError) as caught:
        stack.sagemaker.create_training_job(**request)

    assert caught.value.response["Error"]["Code"] == "ResourceInUse"


STOPS = """
import os, pathlib, signal, sys
def stop(*_):
    model = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], "model", "model.onnx")
    model.write_text("saved in time")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    signal.pause()
"""
STUBBORN = STOPS.replace("stop)", "signal.SIG_IGN)")


def test_a_stopped_job_may_save_its_model(stack: Stack) -> None:
    name = stack.submit(STOPS)
    stack.until_logged(name, "ready")
    stack.sagemaker.stop_training_job(TrainingJobName=name)
    assert stack.describe(name)["TrainingJobStatus"] in ("Stopping", "Stopped")
    job = stack.until(name, *FINAL)

    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert stack.keys(name) == ["output/model/model.onnx"]
    with pytest.raises(ClientError, match="in status Stopped"):
        stack.sagemaker.stop_training_job(TrainingJobName=name)


def test_a_job_that_does_not_stop_is_killed(stack: Stack) -> None:
    name = stack.submit(STUBBORN)
    stack.until_logged(name, "ready")
    stack.sagemaker.stop_training_job(TrainingJobName=name)
    job = stack.until(name, *FINAL)

    assert job["SecondaryStatus"] == "Stopped"
    assert "exit status 137" in stack.log(name)


def test_a_job_that_takes_too_long_is_stopped(stack: Stack) -> None:
    name = stack.submit(STOPS, StoppingCondition={"MaxRuntimeInSeconds": 5})
    job = stack.until(name, *FINAL)

    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert stack.keys(name) == ["output/model/model.onnx"]


def test_a_spot_job_resumes_from_its_checkpoints(stack: Stack) -> None:
    name = stack.submit(
        """
import os, pathlib, signal
base = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
state = base / "checkpoints" / "state"
if state.exists():
    (base / "model" / "model.onnx").write_text(state.read_text() + " and ended")
else:
    def stop(*_):
        state.write_text("begun")
        raise SystemExit(143)
    signal.signal(signal.SIGTERM, stop)
    print("half way", flush=True)
    signal.pause()
""",
        Environment={"MAYFLY_INTERRUPT_ON": "half way"},
    )
    job = stack.until(name, *FINAL)

    statuses = [item["Status"] for item in job["SecondaryStatusTransitions"]]
    assert statuses == [
        "Starting",
        "Downloading",
        "Training",
        "Interrupted",
        "Restarting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert stack.read(f"models/digits/{name}/output/model/model.onnx") == b"begun and ended"


def _runs(pid: int) -> bool:
    """Return True if a process runs; an adopted zombie has ended."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_jobs_end_when_the_stack_is_killed(tmp_path: Path) -> None:
    """Processes of a job end however the stack ends."""
    with started(tmp_path) as stack:
        name = stack.submit(f"import os\nprint('pid', os.getpid(), flush=True)\n{STUBBORN}")
        stack.until_logged(name, "ready")
        pid = int(stack.log(name).split()[1])
    deadline = time.monotonic() + DEADLINE_S
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_an_interrupted_spot_job_resumes_to_the_same_weights(stack: Stack, tmp_path: Path) -> None:
    """The weights equal those of an uninterrupted run, bit for bit.

    Both run without the machine's own settings: OPENBLAS_CORETYPE, for one, changes the last bits.
    """
    code = collect_code("digits")
    backends.upload_code(code, BUCKET, "us-east-1")
    job = make_job(
        hyperparameters={"epochs": 3, "seed": 7},
        code_uri=code.uri(BUCKET),
        environment={"MAYFLY_INTERRUPT_ON": "epoch 1/3"},
    )
    backends.submit_boto3(build(job), "us-east-1")
    lines: list[str] = []
    description = backends.wait(job.name, "us-east-1", lines.append)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "training.train",
            "digits",
            "--set",
            "epochs=3",
            "--set",
            "seed=7",
            "--device",
            "cpu",
            "--model-dir",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        check=True,
    )

    assert "Interrupted" in [item["Status"] for item in description["SecondaryStatusTransitions"]]
    assert "resumed after" in stack.log(job.name)
    beside = ("report.json", "learning.png", "confusion.png")
    written = {f"output/{folder}/{name}" for folder in ("data", "model") for name in beside}
    written |= {"output/data/record.json", "output/model/model.onnx"}
    assert written <= set(stack.keys(job.name))
    model = stack.read(f"models/digits/{job.name}/output/model/model.onnx")
    ours, theirs = parameters(model), parameters((tmp_path / "model.onnx").read_bytes())
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    card = json.loads(onnx.load_model_from_string(model).metadata_props[0].value)
    assert card["training"]["job"] == job.name
    assert card["training"]["image"] is None  # none ran
    assert card["training"]["instance_type"] == "local"
    assert lines[-1].startswith("Completed")
    assert "test:accuracy" in lines[-1]


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_job_out_of_time_delivers_a_model_and_is_continued(stack: Stack) -> None:
    code = collect_code("mlp")
    backends.upload_code(code, BUCKET, "us-east-1")
    limit = {"MAYFLY_MAX_RUNTIME_S": "1"}  # used up before the first step
    options: dict[str, Any] = {"recipe": "mlp", "code_uri": code.uri(BUCKET)}
    first = make_job(hyperparameters={"epochs": 2}, environment=limit, **options)
    backends.submit_boto3(build(first), "us-east-1")
    backends.wait(first.name, "us-east-1")
    second = make_job(hyperparameters={"epochs": 2}, resume=first.name, **options)
    backends.submit_boto3(build(second), "us-east-1")
    backends.wait(second.name, "us-east-1")

    assert "time limit: trained for 0 epochs and 1 steps" in stack.log(first.name)
    assert "resumed after 0 epochs and 1 steps" in stack.log(second.name)
    for job in (first, second):
        assert "output/model/model.onnx" in stack.keys(job.name)


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_mistake_in_a_users_recipe_is_the_failure_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "training" / "recipes" / "digits.py").read_text()
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        text.replace('name="digits"', 'name="mine"').replace(
            "networks.cnn(10,", "networks.cnn(10, side=32,"
        )
    )

    assert (
        main([str(recipe), "--bucket", BUCKET, "--role", ROLE, "--wait", "--set", "epochs=1"]) == 1
    )
    error = capsys.readouterr().err
    reason = "the data do not go through the model (image [2, 1, 28, 28]"
    assert f"ended as Failed: AlgorithmError: error: {reason}" in error
    assert "shapes cannot be multiplied" in error


GUARD = """
import socket, sys
def audit(event, arguments):
    address = arguments[1] if event == "socket.connect" else None
    if isinstance(address, tuple) and address[0] != "127.0.0.1":
        print("LEAK", arguments[1], flush=True)
        raise PermissionError(f"connection to {arguments[1]}")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost"):
        print("LEAK", arguments[0], flush=True)
        raise PermissionError(f"look-up of {arguments[0]}")
sys.addaudithook(audit)
import json
from training.__main__ import main
commands = [["train", "--on", "sagemaker", *json.loads(options)] for options in sys.argv[1:]]
sys.exit(any([main(command) for command in commands]))
"""
SPOT = [
    "--spot",
    "--max-wait",
    "9000",
    "--max-runtime",
    "7200",
    "--retries",
    "4",
    "--kms-key",
    "alias/k",
    "--subnet",
    "subnet-1",
    "--security-group",
    "sg-1",
    "--tag",
    "team=a",
    "--instance",
    "ml.g5.2xlarge",
]
WARM = [
    "--no-spot",
    "--keep-alive",
    "600",
    "--instances",
    "2",
    "--volume",
    "50",
    "--instance",
    "ml.g5.12xlarge",
]


@pytest.mark.skipif(
    os.environ.get("MAYFLY_SKIP_SAGEMAKER") == "1", reason="MAYFLY_SKIP_SAGEMAKER=1"
)
def test_the_sdk_sends_the_same_request_and_nothing_else(stack: Stack, tmp_path: Path) -> None:
    assert SDK_PYTHON.exists(), (
        f"{SDK_PYTHON} is missing: make .venv-sagemaker, or set MAYFLY_SKIP_SAGEMAKER=1"
    )
    file = tmp_path / "run.yaml"
    file.write_text("recipe: digits\nset: {note: o'brien}\nexpected: {code: c0de}\ndevice: auto\n")
    options = ["--config", str(file), "--bucket", BUCKET, "--role", ROLE, "--region", "us-east-1"]
    environment = {**os.environ, "AWS_ENDPOINT_URL": stack.endpoint}
    dry, sent = (
        subprocess.run(
            [
                str(SDK_PYTHON),
                "-c",
                GUARD,
                *(json.dumps([*options, *kind, *more]) for kind in (SPOT, WARM)),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        for more in (["--dry-run"], ["--backend", "sagemaker"])
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "LEAK" not in dry.stdout + sent.stdout
    names = re.findall(r"^submitted (\S+)$", sent.stdout, re.MULTILINE)
    requests = json.loads("[" + dry.stdout.replace("}\n{", "}\n,{") + "]")

    for name, request in zip(names, requests, strict=True):
        job = stack.until(name, *FINAL)
        # The command ran, in spite of the apostrophe in its arguments.
        assert "unknown hyperparameter 'note'" in job["FailureReason"]
        # The name is new each time, and a description has no tags.
        different = {"TrainingJobName", "Tags"}
        for field in set(request) - different:
            value = request[field]
            if field == "CheckpointConfig":
                value = {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}/"}
            assert job[field] == value, field
        tags = stack.sagemaker.list_tags(ResourceArn=job["TrainingJobArn"])["Tags"]
        assert tags == request["Tags"]
    spot, warm = requests
    assert spot["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 9000}
    assert spot["RetryStrategy"] == {"MaximumRetryAttempts": 4}
    assert spot["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert warm["ResourceConfig"] == {
        "InstanceType": "ml.g5.12xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 50,
        "KeepAlivePeriodInSeconds": 600,
    }


@pytest.mark.skipif(
    os.environ.get("MAYFLY_SKIP_SAGEMAKER") == "1", reason="MAYFLY_SKIP_SAGEMAKER=1"
)
def test_image_addresses_equal_the_sdks() -> None:
    script = """
import json, sys
from sagemaker.core import image_uris
print(json.dumps([
    image_uris.retrieve("pytorch-amzn2023", region=region, version="2.13",
                        instance_type=instance, image_scope="training")
    for region, instance in json.loads(sys.argv[1])
]))
"""
    cases = [
        (region, instance)
        for region in ACCOUNTS
        for instance in ("ml.g5.xlarge", "ml.gr6.4xlarge", "ml.p6-b200.48xlarge", "ml.m5.large")
    ]
    command = [str(SDK_PYTHON), "-c", script, json.dumps(cases)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)

    assert json.loads(answer.stdout.splitlines()[-1]) == [image_uri(*case) for case in cases]
