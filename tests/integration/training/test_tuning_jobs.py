"""SageMaker's search: sent by the SDK's tuner, run by the older toolkit.

Moto records a tuning job and starts no training, so the test does what SageMaker would: it fills
a container's folder from the record, with settings of the ranges, and starts the toolkit's `train`.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.test_jobs import (
    BUCKET,
    DEADLINE_S,
    GUARD,
    ROLE,
    ROOT,
    SDK_PYTHON,
    Stack,
    started,
)
from training.sagemaker import tuning_job
from training.sagemaker.cli import LOCAL_CREDENTIALS
from training.sagemaker.source_code import collect_code

pytestmark = [
    pytest.mark.train,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("MAYFLY_SKIP_SAGEMAKER") == "1", reason="MAYFLY_SKIP_SAGEMAKER=1"
    ),
]
TOOLKIT = Path(os.environ.get("MAYFLY_TOOLKIT", ROOT / ".venv-toolkit" / "bin" / "train"))
OPTIONS = [
    "penalised",
    "--bucket",
    BUCKET,
    "--role",
    ROLE,
    "--region",
    "us-east-1",
    "--tune",
    "6",
    "--search",
    "sagemaker",
    "--parallel",
    "2",
    "--instance",
    "ml.g5.xlarge",
    "--max-wait",
    "5000",
    "--set",
    "seed=4",
    "--subnet",
    "subnet-1",
    "--security-group",
    "sg-1",
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with started(tmp_path_factory.mktemp("logs")) as stack:
        yield stack


@pytest.fixture(scope="module")
def sent(stack: Stack) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return our request, and the request of the SDK's tuner for it."""
    assert SDK_PYTHON.exists(), (
        f"{SDK_PYTHON} is missing: make .venv-sagemaker, or set MAYFLY_SKIP_SAGEMAKER=1"
    )
    environment = {**os.environ, "AWS_ENDPOINT_URL": stack.endpoint, **LOCAL_CREDENTIALS}
    dry, done = (
        subprocess.run(
            [str(SDK_PYTHON), "-c", GUARD, json.dumps([*OPTIONS, *more])],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        for more in (["--dry-run"], ["--backend", "sagemaker"])
    )
    assert dry.returncode == done.returncode == 0, dry.stderr + done.stdout + done.stderr
    assert "LEAK" not in dry.stdout + done.stdout
    name = done.stdout.split("submitted ")[1].split()[0]
    return json.loads(dry.stdout), stack.sagemaker.describe_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name
    )


def test_the_sdks_tuner_sends_our_request(sent: Any) -> None:
    ours, sdks = sent
    tuning_job.validate(ours)

    assert sdks["HyperParameterTuningJobConfig"] == ours["HyperParameterTuningJobConfig"]
    definition, sdks_definition = ours["TrainingJobDefinition"], sdks["TrainingJobDefinition"]
    # The SDK adds a channel for its own scripts.
    channels = [channel["ChannelName"] for channel in sdks_definition["InputDataConfig"]]
    assert channels == ["sm_drivers"]
    different = {"StaticHyperParameters", "InputDataConfig", "CheckpointConfig"}
    for field in set(definition) - different:
        assert sdks_definition[field] == definition[field], field
    uri = sdks_definition["CheckpointConfig"]["S3Uri"]
    assert uri.startswith(f"s3://{BUCKET}/checkpoints/penalised-")
    values = definition["StaticHyperParameters"]
    sdks_values = sdks_definition["StaticHyperParameters"]
    assert sdks_values["sagemaker_program"] == values["sagemaker_program"]
    assert values.items() - sdks_values.items() == {
        ("sagemaker_submit_directory", values["sagemaker_submit_directory"])
    }


def test_boto3_sends_our_request_with_the_code(
    stack: Stack, sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack.endpoint)
    code = collect_code("penalised")
    tuning_job.send_boto3(sent[0], "us-east-1", code)

    uri = sent[0]["TrainingJobDefinition"]["StaticHyperParameters"]["sagemaker_submit_directory"]
    assert stack.read(uri.removeprefix(f"s3://{BUCKET}/")) == code.archive()


def container(base: Path, definition: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Fill `base` as SageMaker does for a tuning job.

    Values are text, and SageMaker adds one.
    """
    hyperparameters = (
        definition["StaticHyperParameters"]
        | settings
        | {"_tuning_objective_metric": "validation:rmse"}
    )
    files = {
        "hyperparameters": hyperparameters,
        "inputdataconfig": {},
        "resourceconfig": {
            "current_host": "algo-1",
            "hosts": ["algo-1"],
            "network_interface_name": "lo",
        },
    }
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
        (base / name).mkdir(parents=True)
    for name, content in files.items():
        (base / "input" / "config" / f"{name}.json").write_text(json.dumps(content))


def run(
    base: Path, stack: Stack, definition: Mapping[str, Any]
) -> "subprocess.CompletedProcess[str]":
    """Run the toolkit as a container's first process, with our packages."""
    import torch

    environment = {
        **definition["Environment"],
        "PATH": f"{TOOLKIT.parent}:{os.environ['PATH']}",
        "HOME": str(base),
        "PYTHONPATH": str(Path(torch.__file__).parents[1]),
        "SAGEMAKER_BASE_DIR": str(base),
        "SM_STUDIO_LOCAL_MODE": "true",  # without it, the toolkit waits 15 min for the name algo-1
        "TRAINING_JOB_NAME": "penalised-001",
        "CUDA_VISIBLE_DEVICES": "",
        "AWS_ENDPOINT_URL": stack.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        **LOCAL_CREDENTIALS,
    }
    return subprocess.run(
        [str(TOOLKIT)],
        cwd=base,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.skipif(
    not TOOLKIT.exists(), reason="no toolkit here: make .venv-toolkit (it needs a C compiler)"
)
def test_the_older_toolkit_runs_a_trial_of_the_sent_job(
    sent: Any, stack: Stack, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    definition = sent[1]["TrainingJobDefinition"]
    container(tmp_path, definition, {"penalty": "l2", "strength": "0.5"})
    done = run(tmp_path, stack, definition)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Reporting training SUCCESS" in done.stdout + done.stderr
    assert "Penalty(seed=4, penalty='l2', strength=0.5)" in done.stdout
    metrics = [line for line in done.stdout.splitlines() if line.startswith("validation_rmse=")]
    assert 40 < float(metrics[-1].removeprefix("validation_rmse=")) < 60
    assert list((tmp_path / "model").iterdir()) == []  # a trial registers nothing


@pytest.mark.skipif(
    not TOOLKIT.exists(), reason="no toolkit here: make .venv-toolkit (it needs a C compiler)"
)
def test_a_mistake_is_reported_under_the_older_toolkit(
    sent: Any, stack: Stack, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    definition = sent[1]["TrainingJobDefinition"]
    container(tmp_path, definition, {"penalty": "l3"})
    done = run(tmp_path, stack, definition)

    assert done.returncode != 0
    assert "error: penalty: 'l3' is none of l1, l2" in done.stdout + done.stderr
    assert (tmp_path / "output" / "failure").read_text() == "error: penalty: 'l3' is none of l1, l2"
