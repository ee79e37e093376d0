"""Temperature scaling of classifiers: fitting it, and its place in the exported graph."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from training import manifest, pipeline, train
from training.data import Dataset, Examples, split
from training.evaluation import calibration, report
from training.evaluation.metrics import compute
from training.export import graphs, model_exporter
from training.fitting import trainer
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe
from training.recipe_loading import load

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # the exporters' own
CPU = torch.device("cpu")


def drawn(rows: int, too_sure: float, seed: int = 0) -> tuple[Any, Any]:
    """Draw classes from honest logits, and return these logits scaled by `too_sure`."""
    generator = np.random.default_rng(seed)
    honest = 2 * generator.standard_normal((rows, 4))
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    target = (shares.cumsum(1) < generator.random((rows, 1))).sum(1)
    return honest * too_sure, target


@pytest.mark.parametrize("too_sure", [3.0, 0.4])
def test_the_temperature_undoes_a_scaling_of_the_logits(too_sure: float) -> None:
    logits, target = drawn(4000, too_sure)

    assert calibration.temperature(logits, target) == pytest.approx(too_sure, rel=0.08)


def test_honest_logits_and_too_few_of_them_are_left_alone() -> None:
    assert calibration.temperature(*drawn(4000, 1.0)) == 1.0
    assert calibration.temperature(*drawn(40, 3.0)) == 1.0


def test_a_temperature_that_helps_one_group_alone_is_rejected() -> None:
    """The first group is overconfident and the second underconfident."""
    (over, over_target), (under, under_target) = drawn(200, 4.0), drawn(200, 0.5, seed=1)
    logits, target = np.concatenate([over, under]), np.concatenate([over_target, under_target])

    assert calibration.temperature(logits, target) > 1.2
    assert calibration.temperature(logits, target, np.repeat(["a", "b"], 200)) == 1.0


def test_logits_that_are_always_right_keep_a_finite_temperature() -> None:
    """The next row may be the first that is wrong."""
    generator = np.random.default_rng(1)
    target = generator.integers(0, 4, 200)
    logits = generator.standard_normal((200, 4)) + 9 * np.eye(4)[target]

    assert (logits.argmax(1) == target).all()
    assert calibration.temperature(logits, target) == 1.0
    shares = calibration.scaled(np.exp(logits / 8) / np.exp(logits / 8).sum(1, keepdims=True), 1.0)
    fitted = calibration.temperature(logits / 8, target)
    assert 0.1 < fitted < 0.9
    assert 0.95 < calibration.scaled(shares, fitted).max(1).mean() < 0.999


def test_no_temperature_changes_the_predicted_class() -> None:
    logits, _ = drawn(100, 1.0)
    shares = calibration.scaled(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)

    hotter = calibration.scaled(shares, 2.5)

    assert (hotter.argmax(1) == shares.argmax(1)).all()
    assert (hotter.max(1) < shares.max(1)).all()


def noisy(rows: int = 600) -> Dataset:
    """Make a data set on which networks overfit: 30 columns, a quarter of the labels random."""
    generator = np.random.default_rng(4)
    x = generator.standard_normal((rows, 30)).astype(np.float32)
    y = np.where(generator.random(rows) < 0.25, generator.integers(0, 3, rows), x[:, :3].argmax(1))
    return split(
        Examples({"x": x}, y),
        source="made",
        sha256="0",
        labels=["a", "b", "c"],
        validation=0.3,
        test=0.3,
    )


def overconfident() -> Recipe[Any]:
    def network() -> Any:
        return torch.nn.Sequential(
            torch.nn.Linear(30, 128), torch.nn.ReLU(), torch.nn.Linear(128, 3)
        )

    return Recipe(
        name="sure",
        description="",
        task="classification",
        hyperparameters=NetworkHyperparameters,
        data=noisy,
        model=network,
    )


def test_an_overconfident_network_is_calibrated_inside_its_graph(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, data = overconfident(), noisy()
    settings = NetworkHyperparameters(epochs=40, lr=0.01, weight_decay=0.0)

    run = trainer.fit(recipe, settings, data, device=CPU)
    graph = model_exporter.export(run)
    before = graphs.runner(model_exporter.export(replace(run, temperature=1.0)))(data.test.inputs)[
        "probabilities"
    ]
    after = graphs.runner(graph)(data.test.inputs)["probabilities"]

    assert run.temperature > 2
    assert f"at temperature {run.temperature:.2f}, validation log loss" in capsys.readouterr().out
    assert (after.argmax(1) == before.argmax(1)).all()
    reported = pipeline._evaluation(run, after)["calibration"]
    assert reported["temperature"] == run.temperature
    plain = calibration.reliability(before, data.test.target)["expected_error"]
    assert plain > 0.15
    assert reported["expected_error"] < 0.5 * plain
    assert reported["expected_error_before"] == pytest.approx(plain, abs=1e-3)
    loss = compute("classification", before, data.test)["log_loss"]
    assert reported["log_loss_before"] == pytest.approx(loss, rel=1e-2)
    assert compute("classification", after, data.test)["log_loss"] < 0.7 * loss
    shown = {
        "task": "classification",
        "metrics": {},
        "baselines": {},
        "evaluation": {"calibration": reported},
    }
    assert report.lines(shown)[-1] == (  # type: ignore[arg-type]
        f"expected calibration error {reported['expected_error']:.4f}, "
        f"{reported['expected_error_before']:.4f} before temperature {run.temperature:.2f}"
    )


def test_a_forest_is_calibrated_inside_its_graph_too() -> None:
    from sklearn.ensemble import RandomForestClassifier

    recipe = replace(overconfident(), model=lambda: RandomForestClassifier(3))
    data = noisy()

    run = trainer.fit(recipe, NetworkHyperparameters(), data, device=CPU)
    graph = model_exporter.export(run)

    assert run.temperature != 1
    answer = graphs.runner(graph)(data.test.inputs)["probabilities"]
    np.testing.assert_allclose(answer, run.run(data.test.inputs)["probabilities"], atol=1e-4)
    assert [node.op_type for node in graph.graph.node][-4:] == ["Max", "Log", "Mul", "Softmax"]
    assert graphs.load_problem(graph) is None
    raw = graphs.runner(model_exporter.export(replace(run, temperature=1.0)))(data.test.inputs)[
        "probabilities"
    ]
    log_loss = [
        compute("classification", shares, data.test)["log_loss"] for shares in (raw, answer)
    ]
    assert log_loss[1] < log_loss[0]


def test_a_pruned_networks_temperature_is_fitted_again(tmp_path: Path) -> None:
    """The card has the temperature of the pruned network, not of the network before."""
    arguments = [
        "mlp",
        "--set",
        "epochs=3",
        "--compress",
        "prune",
        "--budget",
        "0.5",
        "--model-dir",
        str(tmp_path),
    ]
    assert train.main([*arguments, "--device", "cpu"], {}) == 0

    graph = onnx.load(tmp_path / "model.onnx")
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == manifest.KEY))
    assert [row["kind"] for row in card["compression"] if row["taken"]] == ["prune"]
    data = load("mlp").load_data({}, NetworkHyperparameters())
    part = data.validation
    answers = graphs.runner(graph)(part.inputs)["probabilities"]
    temperature = card["evaluation"]["calibration"].get("temperature", 1.0)
    best = calibration.temperature(temperature * np.log(answers.astype(np.float64)), part.target)
    assert temperature == pytest.approx(best, rel=0.02)
