"""Every recipe beats what needs no model, by a margin, with settings that take seconds."""

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
from training.data import Dataset, Examples
from training.errors import ExportFailed, InvalidRecipe
from training.evaluation.evaluate import evaluate_baselines
from training.evaluation.metrics import PRIMARY
from training.export import graphs, model_exporter
from training.fitting import estimators, trainer
from training.fitting.trained import Trained
from training.hyperparameters import Hyperparameters, override
from training.recipe import Recipe
from training.recipe_loading import load

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # the exporters' own
CPU = torch.device("cpu")


def fit(name: str, **settings: object) -> Trained:
    recipe = load(name)
    chosen = override(recipe.hyperparameters(), settings)
    return trainer.fit(recipe, chosen, recipe.load_data({}, chosen), device=CPU)


def lead(run: Trained) -> tuple[float, float]:
    """The primary metric on the test part, and the best that needs no model."""
    task = run.recipe.task
    primary = PRIMARY[task]
    metrics, _ = run.measure(run.data.test)
    rivals = [values[primary.metric] for name, values in evaluate_baselines(task, run.data).items()
              if name != "best possible"]  # fmt: skip
    return metrics[primary.metric], max(rivals) if primary.higher_is_better else min(rivals)


@pytest.mark.parametrize(
    ("name", "settings", "margin"),
    [
        ("digits", {"epochs": 2}, 0.03),
        ("mlp", {"epochs": 6}, 0.05),
        ("forest", {"trees": 15, "depth": [14], "folds": 2}, 0.05),
        ("logistic", {}, 0.03),
        ("linear", {}, 15.0),
        ("penalised", {"penalty": "l1"}, 15.0),
        ("penalised", {"penalty": "l2"}, 15.0),
        ("sequence", {"series": 150, "epochs": 6, "cell": "rnn"}, 0.05),
        ("sequence", {"series": 150, "epochs": 6, "cell": "lstm"}, 0.05),
        ("sequence", {"series": 150, "epochs": 6, "cell": "gru"}, 0.05),
    ],
)
def test_a_recipe_beats_what_needs_no_model(
    name: str, settings: dict[str, Any], margin: float
) -> None:
    run = fit(name, **settings)
    ours, theirs = lead(run)

    better = ours - theirs if PRIMARY[run.recipe.task].higher_is_better else theirs - ours
    assert better > margin, (ours, theirs)


def test_l1_drops_measurements_and_l2_keeps_them_all() -> None:
    lasso, ridge = (fit("penalised", penalty=penalty).model[-1].coef_ for penalty in ("l1", "l2"))

    assert 1 <= (lasso == 0).sum() <= 8
    assert (ridge != 0).all()
    plain = fit("linear").model[-1].coef_
    assert np.linalg.norm(
        fit("penalised", penalty="l2", strength=100).model[-1].coef_
    ) < np.linalg.norm(plain)


def test_a_grid_search_tries_every_pair_and_says_which_it_took(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fit("forest", trees=5, depth=[2, 10], pixels=[0.02], folds=2)
    said = capsys.readouterr().out

    assert "fitting 2 candidates of RandomForestClassifier" in said
    assert [line.split()[-2] for line in said.splitlines() if " ± " in line] == [
        "max_depth=10,",
        "max_depth=2,",
    ]
    assert run.hyperparameters["max_depth"] == 10
    assert run.hyperparameters["trees"] == 5


def test_what_is_written_says_what_the_graph_itself_reaches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["logistic", "--model-dir", str(tmp_path)], {}) == 0

    graph = onnx.load(tmp_path / "model.onnx")
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY))
    recipe = load("logistic")
    data = recipe.load_data({}, Hyperparameters())
    answers = graphs.runner(graph)(data.test.inputs)["probabilities"]
    assert card["metrics"]["accuracy"] == pytest.approx(
        (answers.argmax(1) == data.test.target).mean(), abs=1e-6
    )
    assert card["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2], "kind": "probabilities",
                                "labels": ["malignant", "benign"]}]  # fmt: skip
    assert card["inputs"][0]["preprocessing"].startswith("in this order, as measured: mean radius")
    assert [len(sample["request"]["inputs"][0]["data"]) for sample in card["samples"]] == [30, 60]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["metrics"]["accuracy"] == {"mean": card["metrics"]["accuracy"], "deviation": 0.0,
                                             "low": card["metrics"]["accuracy"],
                                             "high": card["metrics"]["accuracy"]}  # fmt: skip
    assert {"report.json", "confusion.png"} <= {path.name for path in tmp_path.iterdir()}
    assert f"test_accuracy={card['metrics']['accuracy']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_dynamic_dimension_is_free_in_the_graph(cell: str) -> None:
    run = fit("sequence", series=60, epochs=1, cell=cell)
    graph = model_exporter.export(run)

    shape = [
        dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim
    ]
    assert shape == ["batch", "length", 1]
    for length in (12, 31, 96):
        x = np.random.default_rng(length).standard_normal((3, length, 1), np.float32)
        ours, theirs = (
            graphs.runner(graph)({"series": x})["value"],
            run.run({"series": x})["value"],
        )
        assert np.allclose(ours, theirs, atol=1e-4)


def test_a_forecast_is_told_beside_the_best_that_can_be() -> None:
    run = fit("sequence", series=150, epochs=3)
    found, _ = run.measure(run.data.test)
    known = evaluate_baselines("regression", run.data)
    best = known["best possible"]["rmse"]

    assert found["times_best_possible"] == pytest.approx(found["rmse"] / best, rel=1e-4)
    assert 1 < found["times_best_possible"] < known["seasonal naive"]["rmse"] / best


def test_several_seeds_are_told_with_their_spread(
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
    values = [one["accuracy"] for one in record["metrics_by_seed"]]
    assert record["seeds"] == [0, 1]
    assert values[0] != values[1]
    assert record["metrics"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
    assert "over 2 seeds: accuracy " in capsys.readouterr().out


# --- scikit-learn -----------------------------------------------------------------------------------------------------


def examples(target: Any, **inputs: Any) -> Examples:
    return Examples(
        {name: np.asarray(values) for name, values in inputs.items()}, np.asarray(target)
    )


def test_one_seed_one_estimator() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline

    rows = examples(
        [0, 1] * 20, x=np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    )

    def fitted(seed: int, given: int | None = None) -> Any:
        made = make_pipeline(RandomForestClassifier(5, random_state=given))
        return estimators.predict(estimators.fit(made, rows, seed=seed), rows.inputs)

    assert np.array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))
    assert np.array_equal(fitted(1, given=7), fitted(2, given=7))


def test_what_cannot_be_exported_is_not_fitted() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    with pytest.raises(ExportFailed, match="use GradientBoostingClassifier"):
        estimators.fit(HistGradientBoostingClassifier(), examples([0, 1], x=[[0.0], [1.0]]), seed=0)


def test_data_that_an_estimator_refuses_are_named_in_one_sentence() -> None:
    from sklearn.linear_model import LinearRegression

    with pytest.raises(InvalidRecipe) as caught:
        estimators.fit(LinearRegression(), examples([0.0, 1.0], x=[[0.0], [np.nan]]), seed=0)

    assert str(caught.value).startswith(
        "LinearRegression does not take the data (x [2, 1]): Input X contains NaN."
    )
    assert "\n" not in str(caught.value)


def make_recipe(model: Any, target: Any) -> tuple[Recipe[Any], Dataset]:
    part = examples(
        target, x=np.random.default_rng(0).standard_normal((len(target), 2)).astype(np.float32)
    )
    data = Dataset(part, part, part, source="made", sha256="0", split={})
    recipe = Recipe(name="mine", description="", task="classification", hyperparameters=Hyperparameters,
                    data=lambda: data, model=lambda: model, labels=("a", "b", "c"))  # fmt: skip
    return recipe, data


def test_a_class_without_a_training_row_is_named() -> None:
    from sklearn.linear_model import LogisticRegression

    recipe, data = make_recipe(LogisticRegression(), [0, 2, 0, 2])

    with pytest.raises(InvalidRecipe, match="the training part has no row of class 'b'"):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)


def test_a_model_of_neither_kind_is_refused() -> None:
    recipe, data = make_recipe("a model", [0, 1, 2])

    with pytest.raises(
        InvalidRecipe, match=r"model\(\) returns a str, which is neither a torch module nor"
    ):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)


def test_a_network_without_the_loops_hyperparameters_is_refused() -> None:
    recipe, data = make_recipe(torch.nn.Linear(2, 3), [0, 1, 2])

    with pytest.raises(InvalidRecipe, match="extend NetworkHyperparameters"):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)


# --- a recipe of one's own --------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The example of recipe.py's docstring, and the customers it asks for: those with few minutes leave."""
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

    graph = onnx.load(mine / "out" / "model.onnx")
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY))
    assert card["metrics"]["accuracy"] > card["baselines"]["majority class"]["accuracy"] + 0.2
    assert card["data"]["source"] == "file:customers.csv"
    assert card["data"]["split"]["by"] == "customer"
    assert card["outputs"][0]["labels"] == ["no", "yes"]
    assert str(mine) not in json.dumps(card)


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
def test_wrong_data_end_in_one_sentence(
    mine: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    damage(mine, old, new, 1)

    assert train_mine(mine, "--set", "epochs=1") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (mine / "out").exists()


def test_too_little_memory_ends_in_advice(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (mine / "churn.py").read_text()
    (mine / "churn.py").write_text(
        text.replace(
            "networks.mlp(",
            "(_ for _ in ()).throw(__import__('torch').OutOfMemoryError('Tried 9 GiB.')) or (",
        )
    )

    assert train_mine(mine) == 1
    assert capsys.readouterr().err == "error: Tried 9 GiB. Lower batch_size, or set accumulate=2.\n"


def test_a_channel_that_is_not_given_is_asked_for(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["train", str(mine / "churn.py")]) == 1
    assert (
        capsys.readouterr().err
        == "error: recipe churn reads the channel 'train': add --data train=FOLDER\n"
    )


def test_the_command_line_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"digits", "mlp", "forest", "linear", "logistic", "penalised", "sequence"} <= set(listed)
    assert command([]) == 0
    assert "publish FILE" in capsys.readouterr().out
    assert command(["trian", "digits"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: there is no command 'trian'; there are train, publish"
    )


def test_train_on_sagemaker_prints_the_request_of_the_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    role = "arn:aws:iam::123456789012:role/training"
    asked = [
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
                *asked,
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


# --- smaller forms ----------------------------------------------------------------------------------------------------


def test_every_form_that_was_asked_for_is_judged_and_the_card_is_of_the_one_that_is_written(
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

    graph = onnx.load(tmp_path / "model.onnx")
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY))
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
def test_a_form_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train.main([*arguments, "--model-dir", str(tmp_path)], {}) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_student_learns_from_the_trained_network() -> None:
    run = fit("mlp", epochs=4)
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
