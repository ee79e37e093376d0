"""Scikit-learn estimators: seeded, checked before fitting, refused in one sentence."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training.data import Dataset, Examples
from training.errors import ExportFailed, InvalidRecipe
from training.fitting import estimators, trainer
from training.hyperparameters import Hyperparameters
from training.recipe import Recipe

pytestmark = pytest.mark.train
CPU = torch.device("cpu")


def examples(target: Any, **inputs: Any) -> Examples:
    return Examples(
        {name: np.asarray(values) for name, values in inputs.items()}, np.asarray(target)
    )


def test_the_seed_fills_a_missing_random_state() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline

    rows = examples(
        [0, 1] * 20, x=np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    )

    def fitted(seed: int, own: int | None = None) -> Any:
        made = make_pipeline(RandomForestClassifier(5, random_state=own))
        return estimators.predict(estimators.fit(made, rows, seed=seed), rows.inputs)

    assert np.array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))
    assert np.array_equal(fitted(1, own=7), fitted(2, own=7))


def test_an_estimator_without_an_onnx_form_is_not_fitted() -> None:
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
    recipe = Recipe(
        name="mine",
        description="",
        task="classification",
        hyperparameters=Hyperparameters,
        data=lambda: data,
        model=lambda: model,
        labels=("a", "b", "c"),
    )
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


def test_a_network_without_network_hyperparameters_is_refused() -> None:
    recipe, data = make_recipe(torch.nn.Linear(2, 3), [0, 1, 2])

    with pytest.raises(InvalidRecipe, match="extend NetworkHyperparameters"):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)
