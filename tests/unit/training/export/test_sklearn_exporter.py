"""Graphs of scikit-learn estimators answer as the estimators do, from raw columns."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("skl2onnx", reason="training needs skl2onnx")
pytest.importorskip("sklearn")

from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from training.errors import ExportFailed
from training.export import graphs, sklearn_exporter
from training.fitting import estimators

# The converter's own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

Inputs = dict[str, Any]
TEXTS = [
    "the cat sat on the mat",
    "A dog, barked loudly!",
    "two cafés by the sea",
    "don't x y zz",
] * 10
SIDES = [0, 1, 0, 1] * 10


@pytest.fixture(scope="module")
def digits() -> tuple[Inputs, Any]:
    x, y = load_digits(return_X_y=True)
    return {"image": x.astype(np.float32).reshape(-1, 1, 8, 8)}, y


def customers(rows: int = 600) -> tuple[Inputs, Any]:
    """Make measures and a category with gaps, years and a flag.

    The target depends on all of them.
    """
    random = np.random.default_rng(0)
    use = random.standard_normal((rows, 2)).astype(np.float32)
    use[random.random(rows) < 0.1, 0] = np.nan
    plan = np.array(random.choice(["gold", "tin", ""], (rows, 1)), object)
    years, mobile = random.integers(0, 90, rows), random.random(rows) < 0.5
    target = ((np.nan_to_num(use[:, 0]) + years / 90 + mobile > 1) ^ (plan[:, 0] == "tin")).astype(
        int
    )
    return {"use": use, "plan": plan, "years": years, "mobile": mobile}, target


def cleaning() -> Any:
    measures = make_pipeline(SimpleImputer(), StandardScaler())
    plans = make_pipeline(
        SimpleImputer(missing_values="", strategy="constant", fill_value="none"),
        OneHotEncoder(handle_unknown="ignore"),
    )
    return ColumnTransformer([("measures", measures, [0, 1, 3, 4]), ("plans", plans, [2])])


def converted(estimator: Any, data: tuple[Inputs, Any], output: str = "probabilities") -> Any:
    inputs, target = data
    table = estimators.table(inputs)
    middle = len(table) * 3 // 4
    estimator.fit(table[:middle], target[:middle])
    return sklearn_exporter.export(
        estimator, {name: values[middle:] for name, values in inputs.items()}, output
    )


def answer(result: Any, **feeds: Any) -> Any:
    return graphs.open_session(result.graph).run(None, feeds)[0]


def test_a_forest_takes_images_and_answers_probabilities(
    digits: tuple[Inputs, Any],
) -> None:
    forest = RandomForestClassifier(30, random_state=0)

    result = converted(forest, digits)

    assert [output.name for output in result.graph.graph.output] == ["probabilities"]
    assert next((entry.domain, entry.version) for entry in result.graph.opset_import) == ("", 20)
    assert len({entry.domain for entry in result.graph.opset_import}) == len(
        result.graph.opset_import
    )
    assert result.graph.ir_version == 10
    images = digits[0]["image"][:7]
    np.testing.assert_allclose(
        answer(result, image=images), forest.predict_proba(images.reshape(7, -1)), atol=1e-5
    )


@pytest.mark.parametrize("forest", [RandomForestClassifier, RandomForestRegressor])
def test_missing_values_take_the_same_branch_of_a_tree(
    forest: Any, digits: tuple[Inputs, Any]
) -> None:
    output = "probabilities" if forest is RandomForestClassifier else "value"
    with_gaps = digits[0]["image"].copy()
    with_gaps[np.random.default_rng(0).random(with_gaps.shape) < 0.2] = np.nan

    result = converted(forest(10, random_state=0), ({"image": with_gaps}, digits[1]), output)

    assert (result.mismatch_rate, result.relabel_rate) == (0.0, 0.0)


def test_values_on_a_threshold_take_the_same_branch(digits: tuple[Inputs, Any]) -> None:
    """Scaled whole numbers lie on thresholds, where float32 decides otherwise."""
    estimator = make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0))

    result = converted(estimator, digits)

    assert (result.mismatch_rate, result.relabel_rate) == (0.0, 0.0)
    held_out = {"image": digits[0]["image"][1347:]}
    graph = sklearn_exporter._convert(
        estimator, estimator.predict_proba, held_out, "probabilities", False
    )
    with pytest.raises(ExportFailed, match="differs from the estimator in"):
        sklearn_exporter._prove(graph, estimator.predict_proba, held_out, "in float32")


@pytest.mark.parametrize(
    "model", [LogisticRegression(), RandomForestClassifier(10, random_state=0)]
)
def test_mixed_columns_are_cleaned_inside_the_graph(model: Any) -> None:
    inputs, target = customers()
    pipeline = make_pipeline(cleaning(), model)

    result = converted(pipeline, (inputs, target))

    assert [value.name for value in result.graph.graph.input] == ["use", "plan", "years", "mobile"]
    assert result.mismatch_rate == 0.0
    odd = {
        "use": np.array([[np.nan, np.nan]], np.float32),
        "plan": np.array([["a plan of next year"]], object),
        "years": np.array([200]),
        "mobile": np.array([True]),
    }
    expected = pipeline.predict_proba(estimators.table(odd))
    np.testing.assert_allclose(answer(result, **odd), expected, atol=1e-5)


def test_a_grid_search_exports_its_best_estimator(digits: tuple[Inputs, Any]) -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"logisticregression__C": [0.1, 1]},
        cv=2,
    )

    result = converted(search, ({"image": digits[0]["image"][:400]}, digits[1][:400]))

    assert result.mismatch_rate == 0.0


@pytest.mark.parametrize("targets", [1, 2])
def test_regressors_answer_one_value_for_each_target(targets: int) -> None:
    x, y = load_diabetes(return_X_y=True)
    target = y if targets == 1 else np.stack([y, -y], axis=1)

    result = converted(
        make_pipeline(StandardScaler(), Ridge() if targets > 1 else Lasso(0.1)),
        ({"x": x.astype(np.float32)}, target),
        "value",
    )

    assert answer(result, x=x[:3].astype(np.float32)).shape == ((3,) if targets == 1 else (3, 2))


def test_transformers_answer_their_features(digits: tuple[Inputs, Any]) -> None:
    assert answer(converted(PCA(5), digits, "embedding"), image=digits[0]["image"][:2]).shape == (
        2,
        5,
    )


def test_text_of_any_alphabet_needs_no_locale() -> None:
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression())

    result = converted(pipeline, ({"text": np.array(TEXTS, object)}, np.array(SIDES)))

    assert result.mismatch_rate == 0.0
    texts = ["THREE CATS, two cafés", "", "unheard-of"]
    np.testing.assert_allclose(
        answer(result, text=np.array(texts, object)),
        pipeline.predict_proba(texts),
        rtol=1e-3,
        atol=1e-5,
    )
    (normaliser,) = (node for node in result.graph.graph.node if node.op_type == "StringNormalizer")
    assert {attribute.name: attribute.s for attribute in normaliser.attribute}["locale"] == b"C"


def test_capitals_that_the_runtime_cannot_lower_are_refused() -> None:
    texts = np.array(["ÉTÉ au café" if side else "hiver au bar" for side in SIDES], object)

    with pytest.raises(ExportFailed, match="lower-cases A to Z only: lower-case the texts in data"):
        converted(
            make_pipeline(TfidfVectorizer(), LogisticRegression()),
            ({"text": texts}, np.array(SIDES)),
        )


@pytest.mark.parametrize(
    ("estimator", "advice"),
    [
        (HistGradientBoostingClassifier(), "use GradientBoostingClassifier"),
        (make_pipeline(HashingVectorizer(), LogisticRegression()), "use TfidfVectorizer"),
        (
            make_pipeline(TfidfVectorizer(analyzer="char_wb"), LogisticRegression()),
            "use analyzer='word'",
        ),
        (make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression()), "leave it out"),
        (
            ColumnTransformer([("t", TfidfVectorizer(strip_accents="unicode"), 0)]),
            "strip accents in data",
        ),
        (
            ColumnTransformer([("n", SimpleImputer(add_indicator=True), [0])]),
            "SimpleImputer with add_indicator=True .* add a column of 0 and 1",
        ),
        (make_pipeline(KNNImputer(), LogisticRegression()), "use SimpleImputer"),
    ],
    ids=[
        "histogram boosting",
        "hashing",
        "character n-grams",
        "sublinear",
        "accents",
        "indicators",
        "imputer of neighbours",
    ],
)
def test_an_estimator_without_conversion_is_refused_before_the_fit(
    estimator: Any, advice: str
) -> None:
    with pytest.raises(ExportFailed, match=advice) as caught:
        estimators.check_exportable(estimator)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LinearSVC(), "LinearSVC gives no probabilities: wrap it in CalibratedClassifierCV"),
        (
            make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()),
            "cannot be converted to ONNX",
        ),
    ],
    ids=["no probabilities", "own function"],
)
def test_a_refusal_after_the_fit_is_one_sentence(
    estimator: Any, reason: str, digits: tuple[Inputs, Any]
) -> None:
    with pytest.raises(ExportFailed, match=reason) as caught:
        converted(estimator, ({"image": digits[0]["image"][:200]}, digits[1][:200]))
    assert "\n" not in str(caught.value)


def test_the_advised_calibration_works(digits: tuple[Inputs, Any]) -> None:
    few = {"image": digits[0]["image"][:300]}, digits[1][:300]

    assert converted(CalibratedClassifierCV(LinearSVC(), cv=2), few).mismatch_rate == 0.0


def test_the_graph_of_another_estimator_is_refused(digits: tuple[Inputs, Any]) -> None:
    inputs, target = {"image": digits[0]["image"][:300]}, digits[1][:300]
    first = LogisticRegression().fit(estimators.table(inputs), target)
    second = LogisticRegression(C=0.01).fit(estimators.table(inputs), target)
    graph = sklearn_exporter._convert(first, first.predict_proba, inputs, "probabilities", False)

    with pytest.raises(ExportFailed, match="is off by"):
        sklearn_exporter._prove(graph, second.predict_proba, inputs, "LogisticRegression")


@pytest.mark.parametrize(("answers", "message"), [
    (None, "ends the process that asks it about no rows"),
    ([{"probabilities": np.zeros((1, 10), np.float32)}], "answers 1 rows where it is asked none"),
])  # fmt: skip
def test_a_request_without_rows_has_no_answers(
    answers: Any, message: str, digits: tuple[Inputs, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LogisticRegression(max_iter=20).fit(estimators.table(digits[0]), digits[1])
    graph = sklearn_exporter.export(model, digits[0], "probabilities").graph
    empty = {name: values[:0] for name, values in digits[0].items()}
    [answer] = graphs.run_in_subprocess(graph, [empty])
    assert answer["probabilities"].shape == (0, 10)

    monkeypatch.setattr(graphs, "run_in_subprocess", lambda graph, requests: answers)
    with pytest.raises(ExportFailed, match=message):
        sklearn_exporter.export(model, digits[0], "probabilities")
