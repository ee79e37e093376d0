"""Weights of rows and of classes: the same as repeated rows, and no part of metrics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.data import Dataset, Examples, files, split
from training.errors import InvalidData, InvalidRecipe
from training.fitting import estimators, losses, trainer
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Recipe

pytestmark = pytest.mark.train
CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(1)
X = GENERATOR.normal(size=(120, 2)).astype(np.float32)
RARE = (X[:, 0] + GENERATOR.normal(size=120) > 1.6).astype(np.int64)  # about one row in eight
COUNTS = GENERATOR.integers(1, 4, 120)


def dataset(weights: Any = None) -> Dataset:
    rows = Examples({"x": X}, RARE, weights=weights)
    return Dataset(
        rows, rows, rows, source="made", sha256="0", split={"by": "row"}, labels=("n", "y")
    )


def recipe(model: Any, **more: Any) -> Recipe[Any]:
    return Recipe(
        name="own", description="", task="classification", data=dataset, model=lambda: model,
        hyperparameters=NetworkHyperparameters, **more,
    )  # fmt: skip


def linear(data: Dataset, **more: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    settings = NetworkHyperparameters(epochs=150, lr=0.1, batch_size=1000, weight_decay=0)
    trainer.fit(recipe(model, **more), settings, data, device=CPU)
    return model.weight.detach().numpy()


def test_weighted_rows_train_as_repeated_rows_do() -> None:
    repeated = np.repeat(np.arange(120), COUNTS)
    copies = dataset().train.take(repeated)
    data = replace(dataset(), train=copies, validation=copies)

    assert linear(dataset(COUNTS)) == pytest.approx(linear(data), abs=1e-3)
    assert linear(dataset()) != pytest.approx(linear(data), abs=0.02)


def test_balanced_classes_are_found_as_often_as_the_others() -> None:
    def recall(**more: Any) -> float:
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        settings = NetworkHyperparameters(epochs=80, lr=0.1, batch_size=1000)
        trained = trainer.fit(recipe(model, **more), settings, dataset(), device=CPU)
        answers = trained.run({"x": X[RARE == 1]})["probabilities"]
        return float((answers.argmax(1) == 1).mean())

    assert recall(class_weights="balanced") > recall() + 0.2
    assert recall(class_weights={"y": 0.01}) < 0.1


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())],
    ids=["alone", "in a pipeline"],
)
def test_an_estimator_gets_the_weights_of_rows_times_classes(model: Any) -> None:
    trained = trainer.fit(
        recipe(model, class_weights={"y": 3.0}), NetworkHyperparameters(), dataset(COUNTS),
        device=CPU,
    )  # fmt: skip

    weights = COUNTS * np.where(RARE == 1, 3.0, 1.0)
    features = estimators.table({"x": X})
    if model.__class__.__name__ == "Pipeline":
        features = model[0].transform(features)
    expected = LogisticRegression().fit(features, RARE, sample_weight=weights)
    own = getattr(trained.model, "steps", [("", trained.model)])[-1][1]
    assert own.coef_ == pytest.approx(expected.coef_)


GRID = {"C": [1.0, 1.001]}


@pytest.mark.parametrize(
    "model",
    [
        AdaBoostClassifier(n_estimators=3),
        AdaBoostClassifier(LogisticRegression(), n_estimators=3),
        BaggingClassifier(LogisticRegression(), n_estimators=3),
        GridSearchCV(LogisticRegression(), GRID),
        RandomizedSearchCV(LogisticRegression(), GRID, n_iter=2),
        make_pipeline(StandardScaler(), GridSearchCV(LogisticRegression(), GRID)),
        GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression()),
            {"logisticregression__C": GRID["C"]},
        ),
        make_pipeline(
            StandardScaler(),
            GridSearchCV(
                make_pipeline(StandardScaler(), LogisticRegression()),
                {"logisticregression__C": GRID["C"]},
            ),
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_weights_reach_estimators_within_searches_and_ensembles(model: Any) -> None:
    def found(**more: Any) -> float:
        own = recipe(clone(model), **more)
        trained = trainer.fit(own, NetworkHyperparameters(), dataset(), device=CPU)
        return float((trained.model.predict(estimators.table({"x": X[RARE == 1]})) == 1).mean())

    assert found(class_weights={"y": 1000.0}) == 1
    assert found(class_weights={"y": 0.01}) < 0.5


@pytest.mark.parametrize(
    "model",
    [
        KNeighborsClassifier(),
        make_pipeline(
            StandardScaler(), GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [3, 5]})
        ),
    ],
    ids=["alone", "in a search"],
)
def test_an_estimator_without_weights_is_refused_by_name(model: Any) -> None:
    with pytest.raises(InvalidRecipe, match="KNeighborsClassifier takes no weights"):
        trainer.fit(
            recipe(model, class_weights="balanced"),
            NetworkHyperparameters(), dataset(), device=CPU,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("even", "give 'balanced', or weights by label"),
        ({"maybe": 2.0}, "'maybe' is none of the labels n, y"),
        ({"y": -1.0}, "0 or more"),
        ({"y": float("nan")}, "0 or more"),
    ],
)
def test_wrong_class_weights_are_refused(weights: Any, reason: str) -> None:
    with pytest.raises(InvalidRecipe, match=reason):
        losses.class_weights(weights, ("n", "y"), RARE)


def test_a_loss_without_a_weighted_form_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="cross_entropy, binary, mse, huber"):
        losses.weighted("regression", lambda model, inputs, target: model(*inputs).mean())


def test_weights_come_from_a_column_and_are_no_input(tmp_path: Path) -> None:
    rows = "".join(f"{row},{row % 2},{1 + row % 3}\n" for row in range(60))
    (tmp_path / "rows.csv").write_text("a,y,w\n" + rows)

    data = files.table(tmp_path / "rows.csv", target="y", weights="w")

    assert data.columns == {"numbers": ("a",)}
    numbers = data.train.inputs["numbers"][:, 0]
    assert data.train.weights is not None
    assert data.train.weights.tolist() == (1 + numbers % 3).tolist()


@pytest.mark.parametrize("weights", [[-1.0], [np.nan], [0.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    rows = Examples({"x": X}, RARE, weights=np.array(weights * 120))

    with pytest.raises(InvalidData, match="weights"):
        split(rows, source="made", sha256="0")


def test_weights_work_for_regression_and_beside_augmentation() -> None:
    target = X @ np.array([1.0, -2.0], np.float32)
    rows = Examples({"x": X}, target, weights=COUNTS)
    data = Dataset(rows, rows, rows, source="made", sha256="0", split={})
    own = replace(recipe(torch.nn.Linear(2, 1)), task="regression", augment=lambda x: x + 0.0)
    settings = NetworkHyperparameters(epochs=200, lr=0.05, batch_size=40, weight_decay=0)

    trained = trainer.fit(own, settings, data, device=CPU)

    assert trained.model.weight.detach().numpy()[0] == pytest.approx([1.0, -2.0], abs=0.05)
    forest = replace(own, model=lambda: Ridge(alpha=1e-6))
    assert trainer.fit(forest, settings, data, device=CPU).model.coef_ == pytest.approx([1, -2])
