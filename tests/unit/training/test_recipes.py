"""Built-in recipes beat every baseline by a margin, with settings that take seconds."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training.evaluation.evaluate import evaluate_baselines
from training.evaluation.metrics import PRIMARY
from training.export import graphs, model_exporter
from training.fitting import trainer
from training.fitting.trained import Trained
from training.hyperparameters import override
from training.recipe_loading import load

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # raised by the exporters
]
CPU = torch.device("cpu")


def fit(name: str, **settings: object) -> Trained:
    recipe = load(name)
    chosen = override(recipe.hyperparameters(), settings)
    return trainer.fit(recipe, chosen, recipe.load_data({}, chosen), device=CPU)


def compare(run: Trained) -> tuple[float, float]:
    """Return the primary metric on the test part, and that of the best baseline."""
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
def test_a_recipe_beats_every_baseline(name: str, settings: dict[str, Any], margin: float) -> None:
    run = fit(name, **settings)
    ours, theirs = compare(run)

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


def test_a_grid_search_tries_every_pair_and_prints_the_best(
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


def test_a_forecast_is_measured_against_the_best_achievable_error() -> None:
    run = fit("sequence", series=150, epochs=3)
    found, _ = run.measure(run.data.test)
    known = evaluate_baselines("regression", run.data)
    best = known["best possible"]["rmse"]

    assert found["times_best_possible"] == pytest.approx(found["rmse"] / best, rel=1e-4)
    assert 1 < found["times_best_possible"] < known["seasonal naive"]["rmse"] / best
