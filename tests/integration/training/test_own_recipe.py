"""A user's recipe and data are tuned, trained, registered and called."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.integration.training.test_jobs import BUCKET, Stack, started
from tests.platform import Platform
from training.__main__ import main
from training.sagemaker.cli import LOCAL_CREDENTIALS

pytestmark = [pytest.mark.train, pytest.mark.slow]

CHURN = """
from dataclasses import dataclass
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training.data import files
from training.recipe import Hyperparameters, Recipe

@dataclass(frozen=True)
class Knobs(Hyperparameters):
    c: float = 1e-6

recipe = Recipe(
    name="churn",
    description="Whether a customer leaves within the month.",
    task="classification",
    preprocessing="calls a day and minutes a call, as they are",
    hyperparameters=Knobs,
    data=lambda channels: files.table(channels["train"], target="leaves", groups="customer"),
    model=lambda h: make_pipeline(StandardScaler(), LogisticRegression(C=h.c)),
    search={"c": (1e-6, 1.0)},
)
"""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name in LOCAL_CREDENTIALS:  # --on local-stack sets them
        monkeypatch.setenv(name, "testing")
    with started(tmp_path) as stack:
        monkeypatch.setenv("AWS_ENDPOINT_URL", stack.endpoint)
        yield stack


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path, sandbox)
    sandbox.close()


def rows() -> str:
    """Make ten months of 40 customers; frequent short calls make leaving likely."""
    generator = np.random.default_rng(0)
    lines = ["customer,calls,minutes,leaves"]
    for customer in range(40):
        taste = generator.normal()
        for _ in range(10):
            calls, minutes = 5 + taste + generator.normal(), 3 - taste + generator.normal()
            leaves = "yes" if calls - minutes + generator.normal() > 2 else "no"
            lines.append(f"customer {customer},{calls:.3f},{minutes:.3f},{leaves}")
    return "\n".join(lines)


def test_a_recipe_outside_the_repository_is_tuned_trained_registered_and_called(
    stack: Stack, world: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "churn.py").write_text(CHURN)
    stack.s3.put_object(Bucket=BUCKET, Key="data/churn/2026.csv", Body=rows().encode())
    data = f"train=s3://{BUCKET}/data/churn/"
    options = [
        "--on",
        "local-stack",
        "--data",
        data,
        "--tune",
        "2",
        "--search",
        "grid",
        "--parallel",
        "2",
        "--wait",
    ]

    assert main(["train", str(tmp_path / "churn.py"), *options]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    name = re.findall(r"^submitted (\S+)$", out, re.MULTILINE)[-1]
    key = f"models/churn/{name}/output/model/model.onnx"
    listed = [item["Key"] for item in stack.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]

    assert "grid search over c: 2 complete" in out
    assert [key for key in listed if key.endswith(".onnx")] == [key]  # trials export no graph
    jobs = stack.sagemaker.list_training_jobs()["TrainingJobSummaries"]
    assert sorted(job["TrainingJobStatus"] for job in jobs) == ["Completed"] * 3
    model = stack.read(key)
    card: Any = json.loads(onnx.load_model_from_string(model).metadata_props[0].value)
    assert card["hyperparameters"]["c"] == 1.0  # the better one
    assert card["data"]["split"]["by"] == "customer"
    assert card["metrics"]["accuracy"] > card["baselines"]["majority class"]["accuracy"] + 0.1
    assert f"job-{name}" not in json.dumps(card)  # no folder of the machine's

    version = world.upload(model)
    assert version.state is State.READY, version.reason
    sample = card["samples"][0]
    reply = world.client.post(f"/v2/models/demo/versions/{version.number}/infer", sample["request"])
    assert reply.status == 200
    np.testing.assert_allclose(
        reply.json["outputs"][0]["data"], sample["response"]["outputs"][0]["data"], atol=1e-5
    )


def test_a_run_is_repeated_as_a_job_and_from_the_jobs_file(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "churn.py").write_text(CHURN)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "2026.csv").write_text(rows())
    monkeypatch.chdir(tmp_path)
    assert main(["train", "churn.py", "--data", "train=rows", "--set", "c=0.5", "--seeds", "2",
                 "--model-dir", "here"]) == 0  # fmt: skip
    job, s3 = ["--on", "local-stack", "--wait"], f"s3://{BUCKET}/rows/"

    assert main(["train", "--config", "here/run.yaml", *job]) == 1
    assert (
        f"run.yaml: data train is {tmp_path}/rows, which a job cannot see" in capfd.readouterr().err
    )

    stack.s3.upload_file("rows/2026.csv", BUCKET, "rows/2026.csv")
    first = _submitted(["--config", "here/run.yaml", "--data", f"train={s3}"], job, capfd)
    here = yaml.safe_load(Path("here/run.yaml").read_text())
    in_job = stack.read(f"models/churn/{first}/output/data/run.yaml").decode()
    assert yaml.safe_load(in_job) == here | {"recipe": "churn.py", "data": {"train": s3}}
    assert "results may differ" not in stack.log(first)  # code and data were compared
    Path("job.yaml").write_text(in_job)

    assert main(["train", "--config", "job.yaml"]) == 1
    assert f"--data train={s3}: training here reads folders" in capfd.readouterr().err
    again = ["--config", "job.yaml", "--data", "train=rows", "--model-dir", "again"]
    assert main(["train", *again]) == 0
    assert "results may differ" not in capfd.readouterr().out
    assert _coefficients(Path("again/model.onnx").read_bytes()) == _coefficients(
        stack.read(f"models/churn/{first}/output/model/model.onnx")
    )

    Path("churn.py").write_text(CHURN + "CHANGED = 1\n")
    second = _submitted(["--config", "job.yaml"], job, capfd)
    assert "warning: the recipe's code is not that of the run" in stack.log(second)


def _submitted(options: list[str], job: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["train", *options, *job]) == 0, capfd.readouterr().err
    (name,) = re.findall(r"^submitted (\S+)$", capfd.readouterr().out, re.MULTILINE)
    return str(name)


def _coefficients(model: bytes) -> list[list[float]]:
    graph = onnx.load_model_from_string(model).graph
    return [list(part.floats) for node in graph.node for part in node.attribute if part.floats]
