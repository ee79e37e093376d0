"""Steps of a training, each called by name: load, fit, export, compress, describe, write."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from training import pipeline, train
from training.errors import TrainingError
from training.export import graphs
from training.fitting.checkpoint import Stop
from training.pipeline import Fitted, Setup

pytestmark = pytest.mark.train
TWICE = """
from training.data import files
from training.recipe import Hyperparameters, Recipe

recipe = Recipe(name="own", description="", task="classification", hyperparameters=Hyperparameters,
                data=lambda channels: files.table(dict(channels), target="y"), model=lambda: None)
"""


def load(*arguments: str, **environ: str) -> Setup:
    return pipeline.load(train.parser().parse_args([*arguments, "--device", "cpu"]), environ)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return load("logistic", "--set", "c=0.25", "--seeds", "2")


@pytest.fixture(scope="module")
def fitted(setup: Setup) -> Fitted:
    return pipeline.fit(setup, Stop())


def test_load_merges_the_settings_of_job_and_command_line() -> None:
    setup = load("logistic", "--set", "c=0.25", SM_HPS='{"c": "4", "seed": "3"}')

    assert (setup.settings.seed, setup.recipe.name) == (3, "logistic")
    assert setup.settings == setup.recipe.hyperparameters(seed=3, c=0.25)
    assert setup.data.source.startswith("sklearn:")


def test_load_reads_channels_and_refuses_s3(tmp_path: Path) -> None:
    recipe, rows, more = (tmp_path / name for name in ("own.py", "rows.csv", "more.csv"))
    recipe.write_text(TWICE)
    for path in (rows, more):
        path.write_text("x,y\n" + "".join(f"{number},{'ab'[number % 2]}\n" for number in range(20)))

    setup = load(str(recipe), "--data", f"test={more}", SM_CHANNEL_TRAIN=str(rows))

    assert setup.channels == {"train": rows, "test": more}
    assert len(setup.data.test) == 20
    with pytest.raises(TrainingError, match="training here reads folders"):
        load("logistic", "--data", "train=s3://bucket/rows/")


def test_a_trial_never_sees_the_test_part() -> None:
    setup = load("logistic", MAYFLY_TRIAL="1")

    assert setup.is_trial
    assert setup.data.test is setup.data.validation


def test_fit_trains_once_for_each_seed(setup: Setup, fitted: Fitted) -> None:
    assert [run.settings.seed for run in fitted.seeds] == [0, 1]
    assert fitted.first is fitted.seeds[0]
    assert fitted.search is None


def test_export_compress_and_describe_agree_on_the_metrics(setup: Setup, fitted: Fitted) -> None:
    model = pipeline.compress(setup, fitted.first, pipeline.export(fitted.first))
    description = pipeline.describe(setup, fitted, model)

    assert model.trained is fitted.first
    assert model.compressed is None
    probabilities = graphs.runner(model.graph)(setup.data.test.inputs)["probabilities"]
    np.testing.assert_array_equal(description.outcome, probabilities)
    accuracy = (probabilities.argmax(1) == setup.data.test.target).mean()
    assert description.card["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert description.record["seeds"] == [0, 1]


def test_write_puts_the_model_and_its_reports_where_a_job_wants_them(
    fitted: Fitted, tmp_path: Path
) -> None:
    environ = {"SM_MODEL_DIR": str(tmp_path / "model"), "SM_OUTPUT_DATA_DIR": str(tmp_path / "out")}
    setup = load("logistic", **environ)
    model = pipeline.compress(setup, fitted.first, pipeline.export(fitted.first))
    path = pipeline.write(setup, fitted, model, pipeline.describe(setup, fitted, model))

    assert path == tmp_path / "model" / "model.onnx"
    assert {item.name for item in (tmp_path / "model").iterdir()} >= {"model.onnx", "report.json"}
    assert json.loads((tmp_path / "out" / "record.json").read_text())["recipe"] == "logistic"


def test_copies_in_the_data_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{row / 7:.3f},{row % 2}" for row in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y", *rows, *rows]) + "\n")
    (tmp_path / "own.py").write_text(TWICE)

    load(str(tmp_path / "own.py"), "--data", f"train={tmp_path}")
    assert "60 rows are copies of other rows: kept in one part" in capsys.readouterr().out
    load(str(tmp_path / "own.py"), "--data", f"train={tmp_path}", "--data", f"test={tmp_path}")
    message = "rows to validate or test are copies of training rows: metrics may be too good"
    assert message in capsys.readouterr().out
