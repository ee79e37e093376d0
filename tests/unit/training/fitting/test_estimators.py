"""Scikit-learn estimators: seeded, checked before fitting, refused in one sentence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training.data import Dataset, Examples
from training.errors import ExportFailed, InvalidRecipe
from training.export import sklearn_exporter
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
        InvalidRecipe, match=r"model\(\) returns a str, which is no torch module, no Keras"
    ):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)


def test_a_network_without_network_hyperparameters_is_refused() -> None:
    recipe, data = make_recipe(torch.nn.Linear(2, 3), [0, 1, 2])

    with pytest.raises(InvalidRecipe, match="extend NetworkHyperparameters"):
        trainer.fit(recipe, Hyperparameters(), data, device=CPU)


def make_customers(groups: int | None = 12) -> Dataset:
    """Make a table of numbers and categories, with rows of customers."""
    generator = np.random.default_rng(0)
    numbers = generator.random((240, 2)).astype(np.float32)
    plans = np.array(["basic", "full", "none"], object)[generator.integers(0, 3, (240, 1))]
    target = ((numbers[:, 1] > 0.5) ^ (plans[:, 0] == "full")).astype(int)
    members = None if groups is None else np.arange(240) % groups
    rows = Examples({"numbers": numbers, "categories": plans}, target, members)
    columns = {"numbers": ("age", "fee"), "categories": ("plan",)}
    return Dataset(rows, rows, rows, source="made", sha256="0", split={}, columns=columns)


def by_name(numbers: Any, categories: Any) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    encoder = OneHotEncoder(handle_unknown="ignore")
    return ColumnTransformer([("n", StandardScaler(), numbers), ("c", encoder, categories)])


@pytest.mark.parametrize("numbers", [["fee"], ["age", "fee"]])
def test_a_column_transformer_finds_columns_by_name(numbers: list[str]) -> None:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    data = make_customers(None)
    pipeline = make_pipeline(by_name(numbers, ["plan"]), DecisionTreeClassifier())
    search = GridSearchCV(pipeline, {"decisiontreeclassifier__max_depth": [2, 4]}, cv=2)

    fitted = estimators.fit(search, data.train, seed=0, columns=data.columns)

    probabilities = estimators.predict(fitted, data.test.inputs)
    assert (probabilities.argmax(1) == data.test.target).mean() > 0.95
    graph = sklearn_exporter.export(fitted, data.test.inputs, "probabilities").graph
    assert [value.name for value in graph.graph.input] == ["numbers", "categories"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["price"], "there is no column 'price'; there are age, fee, plan"),
        (["fee", "age"], r"list columns in the table's order: \['age', 'fee'\]"),
        (lambda _: ["age"], "list the columns by name; a selector finds no types"),
    ],
)
def test_an_unknown_column_of_a_transformer_is_named(chosen: Any, message: str) -> None:
    data = make_customers(None)

    with pytest.raises(InvalidRecipe, match=message):
        estimators.fit(by_name(chosen, ["plan"]), data.train, seed=0, columns=data.columns)


@pytest.mark.parametrize("splitter", ["GroupKFold", "LeaveOneGroupOut", 3, None])
def test_cross_validation_keeps_groups_together(splitter: Any) -> None:
    from sklearn import model_selection
    from sklearn.linear_model import Ridge

    cv = getattr(model_selection, splitter)() if isinstance(splitter, str) else splitter
    data = make_customers()
    rows = replace(data.train, inputs={"x": data.train.inputs["numbers"]})
    search = model_selection.GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=cv)

    estimators.fit(search, rows, seed=0)

    assert rows.groups is not None
    for train_rows, test_rows in search.cv:
        assert not set(rows.groups[train_rows]) & set(rows.groups[test_rows])
    assert search.best_params_["alpha"] in (0.1, 1.0)


def test_a_splitter_by_group_without_groups_is_refused() -> None:
    from sklearn.linear_model import LassoCV
    from sklearn.model_selection import GroupKFold

    data = make_customers(None)

    with pytest.raises(InvalidRecipe, match="GroupKFold needs groups"):
        estimators.fit(LassoCV(cv=GroupKFold()), data.train, seed=0)
