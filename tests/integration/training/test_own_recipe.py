"""A user's recipe and data are tuned, trained, registered and called."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
