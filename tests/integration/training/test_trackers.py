"""Runs in MLflow, Weights & Biases and TensorBoard, read back by their own libraries.

The environment of SageMaker's SDK has MLflow, .venv-trackers the others. Their packages are put
behind those of this environment, which trains.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")

ROOT = Path(__file__).parents[3]
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
pytestmark = [pytest.mark.train, pytest.mark.slow]

OWN = """
from dataclasses import dataclass
import numpy as np
import torch
from training.data import Examples, split
from training.recipe import NetworkHyperparameters, Recipe

@dataclass(frozen=True)
class Knobs(NetworkHyperparameters):
    epochs: int = 2
    hidden: int = 4

def rows(_, knobs):
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    examples = Examples({"x": x}, (x[:, 0] > 0).astype(np.int64))
    return split(examples, source="made", sha256="0", labels=("no", "yes"))

def model(knobs):
    if knobs.hidden == 6:
        raise ValueError("six is too many")
    return torch.nn.Linear(3, 2)

recipe = Recipe(name="own", description="", task="classification", hyperparameters=Knobs,
                data=rows, model=model, search={"hidden": (4, 6)})
"""
TRAIN = """
import sys
sys.path.append(sys.argv.pop(1))
from training.__main__ import main
assert main() == 0
"""

MLFLOW = (
    TRAIN
    + """
import mlflow
client = mlflow.MlflowClient()
(experiment,) = [each for each in client.search_experiments() if each.name == "own"]
*runs, group = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
runs.sort(key=lambda run: run.info.start_time)
names = [run.info.run_name for run in runs]
assert names == ["trial-001", "trial-002", "seed-0", "seed-1", "model"], names
assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {group.info.run_id}
statuses = [run.info.status for run in [group, *runs]]
assert statuses == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "FINISHED", "FINISHED"], statuses
assert [run.data.params["hidden"] for run in runs] == ["4", "6", "4", "4", "4"]
assert [run.data.params["seed"] for run in runs] == ["0", "0", "0", "1", "0"]
assert "six is too many" in runs[1].data.tags["reason"]
assert "validation_accuracy" in runs[0].data.metrics
first, second, model = (run.data.metrics["test_accuracy"] for run in runs[2:])
assert first == model
history = client.get_metric_history(runs[4].info.run_id, "loss")
assert [each.step for each in history] == [1, 2]
files = {each.path for each in client.list_artifacts(runs[4].info.run_id)}
assert {"model.onnx", "report.json", "run.yaml"} <= files
assert mlflow.active_run() is None
"""
)
WANDB = (
    TRAIN
    + """
import json
import struct
from pathlib import Path
from wandb.proto import wandb_internal_pb2


def records(raw):
    # The layout is that of LevelDB's log: blocks of 32 KB.
    content, at = b"", 7  # after the file's own header
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        content += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(content)
            content = b""


runs = []
paths = Path("out/wandb").glob("offline-run-*/*.wandb")
for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
    config, summary, status = {}, {}, None
    for record in records(path.read_bytes()):
        if record.HasField("run"):
            run = record.run
        if record.HasField("exit"):
            status = record.exit.exit_code
        for item in record.summary.update:
            summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key] = json.loads(item.value_json)
    runs.append((run.display_name, run.run_group, run.job_type, config, summary, status))
names, groups, kinds, configs, summaries, statuses = zip(*runs)
assert list(names) == ["trial-001", "trial-002", "seed-0", "seed-1", "model"], names
assert len(set(groups)) == 1 and groups[0].startswith("own-")
assert list(kinds) == ["trial", "trial", "seed", "seed", "model"]
assert list(statuses) == [0, 1, 0, 0, 0], statuses
assert [config["hidden"] for config in configs] == [4, 6, 4, 4, 4]
assert summaries[1]["state"] == "failed" and "six is too many" in summaries[1]["reason"]
assert "validation_accuracy" in summaries[0] and "test_accuracy" in summaries[3]
assert summaries[2]["test_accuracy"] == summaries[4]["test_accuracy"]
"""
)
TENSORBOARD = (
    TRAIN
    + """
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

runs = EventMultiplexer().AddRunsFromDirectory("out/tensorboard").Reload()
assert set(runs.Runs()) == {".", "seed-0", "seed-1", "trial-001", "trial-002"}, runs.Runs()
for name, hidden, status in [(".", 4, 1), ("seed-1", 4, 1), ("trial-002", 6, 2)]:
    contents = runs.PluginRunToTagToContent("hparams")[name]
    data = {tag: HParamsPluginData.FromString(content) for tag, content in contents.items()}
    start = data["_hparams_/session_start_info"].session_start_info
    assert start.hparams["hidden"].number_value == hidden, start
    assert start.hparams["optimizer"].string_value == "adamw"
    assert data["_hparams_/session_end_info"].session_end_info.status == status
assert [event.step for event in runs.Scalars(".", "loss")] == [1, 2]
assert len(runs.Scalars("trial-001", "validation_accuracy")) == 1
"""
)


def run(
    folder: Path, environment: str, script: str, *options: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    packages = ROOT / environment / "lib" / VERSION / "site-packages"
    if not packages.is_dir():
        pytest.skip(f"needs {environment}: make test installs it")
    (folder / "own.py").write_text(OWN)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_SILENT": "true"}
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-c", script, str(packages), "train", "own.py"]
    return subprocess.run(
        [*command, "--model-dir", "out", *options],
        cwd=folder, env=own | quiet | {"PYTHONPATH": str(ROOT), **variables},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "script", "variables"),
    [
        (".venv-sagemaker", MLFLOW, {"MLFLOW_TRACKING_URI": "sqlite:///runs.db"}),
        (".venv-trackers", WANDB, {"WANDB_MODE": "offline"}),
        (".venv-trackers", TENSORBOARD, {}),
    ],
    ids=["MLflow", "W&B", "TensorBoard"],
)
def test_each_trial_and_seed_is_a_run_and_the_models_is_the_last(
    tmp_path: Path, environment: str, script: str, variables: dict[str, str]
) -> None:
    search = ["--tune", "2", "--search", "grid", "--seeds", "2"]

    done = run(tmp_path, environment, script, *search, **variables)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "warning" not in done.stdout


def test_a_refused_file_leaves_no_run_open(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("a file where MLflow makes its folder of files")
    statuses = (
        TRAIN
        + """
import mlflow
(experiment,) = mlflow.search_experiments(filter_string="name = 'own'")
(run,) = mlflow.MlflowClient().search_runs([experiment.experiment_id])
assert run.info.status == "FINISHED" and "test_accuracy" in run.data.metrics, run
"""
    )

    done = run(tmp_path, ".venv-sagemaker", statuses, MLFLOW_TRACKING_URI="sqlite:///runs.db")

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "warning: MLflow fails, and logs no more of this run: " in done.stdout


def test_a_server_that_is_gone_ends_no_training(tmp_path: Path) -> None:
    gone = "http://127.0.0.1:9"  # the port "discard", at which nobody listens

    done = run(
        tmp_path, ".venv-sagemaker", TRAIN, "--seeds", "2", MLFLOW_TRACKING_URI=gone,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning")]
    assert warning.startswith("warning: MLflow fails, and logs no more of this run: ")
    assert (tmp_path / "out" / "model.onnx").is_file()
