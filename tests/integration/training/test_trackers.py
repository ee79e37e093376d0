"""Runs in MLflow: the environment of SageMaker's SDK has it."""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = Path(".venv-sagemaker/bin/python")
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-sagemaker: make test installs it"),
]
LOG = """
import os
import sys
from pathlib import Path

import mlflow

from training.runs import trackers

folder = Path(sys.argv[1])
(folder / "model.onnx").write_bytes(b"model")
run = trackers.RunName("churn", 3, {"lr": 0.1, "hidden": (8, 4)})
board, tracker = trackers.start(run, folder, os.environ)
for epoch in (1, 2):
    for each in (board, tracker):
        each.epoch({"epoch": epoch, "loss": 1 / epoch})
tracker.end({"accuracy": 0.9}, [folder / "model.onnx"])
trackers.start(run, folder, os.environ)[1].abort()

client = mlflow.MlflowClient()
(experiment,) = [each for each in client.search_experiments() if each.name == "churn"]
failed, finished = client.search_runs([experiment.experiment_id])
assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
assert finished.data.params == {"lr": "0.1", "hidden": "(8, 4)"}
assert finished.data.metrics == {"loss": 0.5, "test_accuracy": 0.9}
history = client.get_metric_history(finished.info.run_id, "loss")
assert [(each.step, each.value) for each in history] == [(1, 1.0), (2, 0.5)]
assert [each.path for each in client.list_artifacts(finished.info.run_id)] == ["model.onnx"]
print("logged")
"""


def test_mlflow_has_parameters_epochs_and_files_and_knows_a_failed_run(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/runs.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONPATH": str(Path.cwd()),
    }
    environment.pop("WANDB_MODE", None)
    environment.pop("WANDB_API_KEY", None)

    done = subprocess.run(
        [PYTHON.absolute(), "-c", LOG, tmp_path],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip

    assert done.stdout.strip().endswith("logged"), done.stderr[-3000:]
