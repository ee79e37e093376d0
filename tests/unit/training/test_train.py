"""Command line of training: one model.onnx with its reports, or one sentence."""

import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from training import manifest, networks, train
from training import recipe as recipe_module
from training.__main__ import main as command
from training.compression import select
from training.export import graphs, model_exporter
from training.fitting import trainer
from training.hyperparameters import Hyperparameters, override
from training.recipe_loading import load

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised by the exporters
]
CPU = torch.device("cpu")


def read_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the graph in `folder`, and its card."""
    graph = onnx.load(folder / "model.onnx")
    prop = next(prop for prop in graph.metadata_props if prop.key == manifest.KEY)
    return graph, json.loads(prop.value)


def test_the_card_has_the_metrics_of_the_written_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["logistic", "--model-dir", str(tmp_path)], {}) == 0

    graph, card = read_model(tmp_path)
    recipe = load("logistic")
    data = recipe.load_data({}, Hyperparameters())
    answers = graphs.runner(graph)(data.test.inputs)["probabilities"]
    assert card["metrics"]["accuracy"] == pytest.approx(
        (answers.argmax(1) == data.test.target).mean(), abs=1e-6
    )
    assert card["outputs"] == [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [-1, 2],
            "kind": "probabilities",
            "labels": ["malignant", "benign"],
        }
    ]
    assert card["inputs"][0]["preprocessing"].startswith("in this order, as measured: mean radius")
    assert [len(sample["request"]["inputs"][0]["data"]) for sample in card["samples"]] == [30, 60]
    described = card["distributions"]
    assert described["inputs"]["rows"] == len(data.train)
    assert described["inputs"]["features"][0]["feature"] == "mean radius"
    predicted = np.bincount(answers.argmax(1)).tolist()
    assert described["outputs"]["features"][1]["counts"] == predicted
    assert sum(described["priors"].values()) == pytest.approx(1)
    record = json.loads((tmp_path / "record.json").read_text())
    accuracy = card["metrics"]["accuracy"]
    spread = {"mean": accuracy, "deviation": 0.0, "low": accuracy, "high": accuracy}
    assert record["metrics"]["accuracy"] == spread
    assert {"report.json", "confusion.png"} <= {path.name for path in tmp_path.iterdir()}
    assert f"test_accuracy={card['metrics']['accuracy']:.4f}" in capsys.readouterr().out


def test_several_seeds_are_reported_with_their_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "forest",
        "--seeds",
        "2",
        "--set",
        "trees=5",
        "--set",
        "depth=[4]",
        "--set",
        "pixels=[0.02]",
    ]
    assert train.main([*arguments, "--set", "folds=2", "--model-dir", str(tmp_path)], {}) == 0

    record = json.loads((tmp_path / "record.json").read_text())
    values = [metrics["accuracy"] for metrics in record["metrics_by_seed"]]
    assert record["seeds"] == [0, 1]
    assert values[0] != values[1]
    assert record["metrics"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
    assert "over 2 seeds: accuracy " in capsys.readouterr().out


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Folder with the recipe of recipe.py's docstring and its data: few minutes, and they leave."""
    lines = str(recipe_module.__doc__).split("anywhere:\n", 1)[1].split("    python -m", 1)[0]
    (tmp_path / "churn.py").write_text(textwrap.dedent(lines))
    generator = np.random.default_rng(0)
    rows = ["customer,calls,minutes,months,leaves"]
    for number in range(240):
        calls, minutes, months = (
            generator.integers(0, 9),
            generator.uniform(0, 9),
            generator.integers(1, 60),
        )
        rows.append(
            f"c{number // 2},{calls},{minutes:.2f},{months},{'yes' if minutes < 4 else 'no'}"
        )
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "customers.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def train_mine(folder: Path, *more: str) -> int:
    arguments = [
        "train",
        str(folder / "churn.py"),
        "--data",
        f"train={folder / 'rows'}",
        "--device",
        "cpu",
    ]
    return command([*arguments, "--model-dir", str(folder / "out"), *more])


def test_the_recipe_of_the_documentation_trains_on_a_users_own_file(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mine(mine, "--set", "epochs=25", "--set", "lr=0.02", "--set", "hidden=16") == 0

    _, card = read_model(mine / "out")
    assert card["metrics"]["accuracy"] > card["baselines"]["majority class"]["accuracy"] + 0.2
    assert card["data"]["source"] == "file:customers.csv"
    assert card["data"]["split"]["by"] == "customer"
    assert card["outputs"][0]["labels"] == ["no", "yes"]
    assert str(mine) not in json.dumps(card)


def test_a_job_out_of_time_still_exports_its_model(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"MAYFLY_MAX_RUNTIME_S": "600", "MAYFLY_STARTED_AT": "0"}
    arguments = [str(mine / "churn.py"), "--data", f"train={mine / 'rows'}", "--device", "cpu"]
    arguments += ["--set", "epochs=100000", "--seeds", "2", "--model-dir", str(mine / "out")]

    assert train.main(arguments, environ) == 0

    output = capsys.readouterr().out
    assert "time limit: trained for 0 epochs and 1 steps of 100000 epochs" in output
    assert "time limit: 1 of 2 seeds are trained" in output
    assert read_model(mine / "out")[1]["metrics"]["accuracy"] > 0


def test_a_run_starts_from_the_weights_of_another(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = str(mine / "state")
    assert train_mine(mine, "--set", "epochs=1", "--checkpoint-dir", state) == 0
    capsys.readouterr()

    assert train_mine(mine, "--set", "epochs=1", "--weights", state) == 0
    assert "weights of checkpoint.pt: 4 of 4 tensors\n" in capsys.readouterr().out
    assert train_mine(mine, "--tune", "2", "--weights", state) == 1
    assert "leave out --tune" in capsys.readouterr().err


def damage(folder: Path, old: str, new: str, count: int = -1) -> None:
    path = folder / "rows" / "customers.csv"
    path.write_text(path.read_text().replace(old, new, count))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("leaves", "left", "customers.csv has no column 'leaves'"),
        ("c5,", "c5,many", "customers.csv, row "),
        (
            "yes\n",
            "perhaps\n",
            "the model answers 2 numbers a row, and there are 3 labels: no, perhaps, yes",
        ),
    ],
    ids=["missing column", "no number", "another label"],
)
def test_wrong_data_are_refused_in_one_sentence(
    mine: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    damage(mine, old, new, 1)

    assert train_mine(mine, "--set", "epochs=1") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (mine / "out").exists()


def test_too_little_memory_is_answered_with_advice(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (mine / "churn.py").read_text()
    (mine / "churn.py").write_text(
        text.replace(
            "networks.mlp(",
            "(_ for _ in ()).throw(__import__('torch').OutOfMemoryError('Tried 9 GiB.')) or (",
        )
    )

    assert train_mine(mine) == 1
    assert capsys.readouterr().err == "error: Tried 9 GiB. Lower batch_size, or set accumulate=2.\n"


def test_a_missing_channel_is_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["train", str(mine / "churn.py")]) == 1
    assert (
        capsys.readouterr().err
        == "error: recipe churn reads the channel 'train': add --data train=FOLDER\n"
    )


def test_the_command_line_lists_recipes_and_refuses_unknown_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"digits", "mlp", "forest", "linear", "logistic", "penalised", "sequence"} <= set(listed)
    assert command([]) == 0
    assert "publish FILE" in capsys.readouterr().out
    assert command(["trian", "digits"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: there is no command 'trian'; there are train, publish"
    )


def test_show_lists_hyperparameters_with_meaning_and_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(["show", "mlp"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mlp: classification. ")
    assert "  epochs=20  (int)  passes over the training rows" in out
    assert "      --tune tries " in out
    assert command(["show", "mpl"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no recipe 'mpl'")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:7", "torch sees no GPU here"),
        ("mps", "torch sees no Apple GPU here; use cpu"),
        ("cpu:1", "give cpu, cuda, cuda:1 or mps"),
        ("tpu", "give cpu, cuda, cuda:1 or mps"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_device_that_is_not_there_is_named(
    device: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["train", "mlp", "--device", device]) == 1
    assert f"error: --device {device}: {reason}" in capsys.readouterr().err


def test_a_wrong_place_to_train_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["train", "digits", "--on", "mars"])
    assert "python -m training train: error: argument --on" in capsys.readouterr().err


def test_train_on_sagemaker_prints_the_request_of_the_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    role = "arn:aws:iam::123456789012:role/training"
    options = [
        "--bucket",
        "mine",
        "--role",
        role,
        "--instance",
        "ml.g6.xlarge",
        "--spot",
        "--set",
        "epochs=2",
    ]
    assert (
        command(
            [
                "train",
                "digits",
                "--on",
                "sagemaker",
                *options,
                "--data",
                "train=s3://mine/rows/",
                "--dry-run",
            ]
        )
        == 0
    )

    request = json.loads(capsys.readouterr().out)
    assert request["ResourceConfig"]["InstanceType"] == "ml.g6.xlarge"
    assert request["EnableManagedSpotTraining"] is True
    assert [channel["ChannelName"] for channel in request["InputDataConfig"]] == ["code", "train"]
    assert request["HyperParameters"] == {"epochs": "2"}


def test_every_compression_is_measured_and_the_card_describes_the_written_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "mlp",
        "--set",
        "epochs=4",
        "--compress",
        "int8,prune",
        "--model-dir",
        str(tmp_path),
    ]
    assert train.main(arguments, {}) == 0

    graph, card = read_model(tmp_path)
    rows = {row["kind"]: row for row in card["compression"]}
    assert list(rows) == ["fp32", "prune", "int8"]
    assert [row["taken"] for row in rows.values()].count(True) == 1
    assert (
        0.4 < rows["prune"]["size_bytes"] / rows["fp32"]["size_bytes"] < 0.6
    )  # half of the neurons went
    assert rows["int8"]["size_bytes"] < 0.3 * rows["fp32"]["size_bytes"]
    data = load("mlp").load_data({}, Hyperparameters())
    answers = graphs.runner(graph)(data.test.inputs)["probabilities"]
    assert card["metrics"]["accuracy"] == pytest.approx(
        (answers.argmax(1) == data.test.target).mean(), abs=1e-6
    )
    assert "validation accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mlp", "--compress", "zip"],
            "there is no compression 'zip': distil, prune, int8, int8-static, int4, fp16",
        ),
        (["linear", "--compress", "prune"], "prune: only torch networks; Pipeline is none"),
        (
            ["mlp", "--set", "epochs=1", "--compress", "distil"],
            "recipe mlp has no student; --compress distil needs one",
        ),
    ],
)
def test_an_impossible_compression_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train.main([*arguments, "--model-dir", str(tmp_path)], {}) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_student_learns_from_the_trained_network() -> None:
    recipe = load("mlp")
    settings = override(recipe.hyperparameters(), {"epochs": 4})
    run = trainer.fit(recipe, settings, recipe.load_data({}, settings), device=CPU)
    small = replace(run.recipe, student=lambda: networks.mlp(28 * 28, (16,), 10))
    graph = model_exporter.export(run)
    found, judged = select.smallest(replace(run, recipe=small), graph, ["distil"], budget=0.2)

    [whole, student] = found.rows
    assert student.kind == "distil"
    assert student.size_bytes < 0.2 * whole.size_bytes
    assert student.metric is not None
    assert student.metric > 0.8
    assert judged.model is not run.model
    assert all(parameter.requires_grad for parameter in run.model.parameters())
