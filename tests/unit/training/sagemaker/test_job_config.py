"""Options of a job from run.yaml: what fits goes with it, the rest is refused or said."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main as command
from training.runs import config
from training.sagemaker.cli import main
from training.sagemaker.validation import validate


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def dry_run(
    capsys: pytest.CaptureFixture[str], file: str, *options: str
) -> tuple[dict[str, Any], str]:
    """Return the printed request, and what was printed beside it."""
    assert command(["train", "--config", file, "--dry-run", *options]) == 0
    out, err = capsys.readouterr()
    request: dict[str, Any] = json.loads(out)
    validate(request)
    return request, err


def told(request: dict[str, Any]) -> dict[str, dict[str, str]]:
    return config.submitted(request["Environment"])


def test_what_fits_a_job_goes_with_it_and_flags_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path,
        "recipe: mlp\nset: {epochs: 3, hidden: [8, 4], lr: 0.01}\nseeds: 2\ncompress: int8\n"
        "budget: 0.1\ndata: {train: s3://b/old/, test: s3://b/test/}\nmax_runtime: 90.5\n"
        "weights: s3://b/checkpoints/old/\ndevice: auto\nexpected: {code: c0de, data: da7a}\n",
    )

    request, beside = dry_run(
        capsys, file, "--set", "lr=0.5", "--data", "train=s3://b/new/", "--seeds", "4"
    )

    assert beside == ""
    assert request["HyperParameters"] == {"epochs": "3", "hidden": "[8, 4]", "lr": "0.5"}
    assert request["AlgorithmSpecification"]["ContainerArguments"] == [
        "-m", "training.train", "mlp", "--seeds", "4", "--compress", "int8", "--budget", "0.1",
    ]  # fmt: skip
    sources = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in request["InputDataConfig"]
        if channel["ChannelName"] != "code"
    }
    weights = {"weights": "s3://b/checkpoints/old/"}
    assert sources == {"train": "s3://b/new/", "test": "s3://b/test/"} | weights
    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == 91
    assert told(request) == {"channels": sources, "expected": {"code": "c0de", "data": "da7a"}}


def test_a_search_comes_from_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    file = write(tmp_path, "recipe: mlp\ntune: 6\nsearch: sagemaker\nparallel: 3\n")

    assert main(["--config", file, "--dry-run"], {}) == 0

    request = json.loads(capsys.readouterr().out)
    assert request["HyperParameterTuningJobConfig"]["ResourceLimits"] == {
        "MaxNumberOfTrainingJobs": 6,
        "MaxParallelTrainingJobs": 3,
    }


def test_what_a_job_decides_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "recipe: mlp\ndevice: mps\nmodel_dir: here\ncheckpoint_dir: state\n"

    request, beside = dry_run(capsys, write(tmp_path, text))

    assert "state" not in json.dumps(request)
    lines = beside.splitlines()
    assert lines[0].startswith("run.yaml: device is left out: a job trains on all GPUs of its")
    assert lines[1].startswith("run.yaml: model_dir is left out: a job writes to models/<model>/")
    assert lines[2].startswith("run.yaml: checkpoint_dir is left out: a job saves its checkpoints")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: {train: /home/me/rows}", "data train is /home/me/rows, which a job cannot see: "
         "upload it (aws s3 cp --recursive), and add --data train=s3://BUCKET/PREFIX/"),
        ("weights: old/checkpoint.pt", "weights is old/checkpoint.pt, which a job cannot see: "
         "upload it (aws s3 cp --recursive), and add --weights s3://BUCKET/PREFIX/"),
        ("instance: ml.g5.xlarge", "run.yaml has no option 'instance'"),
        ("search: clever", "run.yaml: search is 'clever', none of random, grid, optuna, sagemaker"),
        ("tune: 0", "run.yaml: tune is 0, below 1"),
    ],
)  # fmt: skip
def test_what_fits_no_job_is_refused_in_one_sentence(
    tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, f"recipe: mlp\n{text}\n")

    assert main(["--config", file, "--dry-run"], {}) == 1
    assert reason in capsys.readouterr().err


def test_flags_replace_what_is_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "recipe: mlp\ndata: {train: rows}\nweights: old.pt\n")

    request, _ = dry_run(capsys, file, "--data", "train=s3://b/x/", "--weights", "s3://b/w/")

    assert told(request)["channels"] == {"train": "s3://b/x/", "weights": "s3://b/w/"}


def test_a_folder_for_checkpoints_is_for_searches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlp", "--dry-run", "--checkpoint-dir", "state"], {}) == 1
    assert "--checkpoint-dir saves a search: add --tune" in capsys.readouterr().err


def test_long_addresses_reach_the_job_in_several_variables() -> None:
    channels = {f"channel-{number}": f"s3://bucket/{'x' * 300}/" for number in range(12)}

    variables = config.variables(channels, {"code": "c0de"})

    assert len(variables) > 6
    assert max(map(len, variables.values())) <= 512
    assert config.submitted(variables) == {"channels": channels, "expected": {"code": "c0de"}}
    assert config.submitted({"PATH": "/bin"}) == {"channels": {}, "expected": {}}
