"""Metrics equal scikit-learn's; intervals, leads, groups and baselines."""

import json
from typing import Any

import numpy as np
import pytest

from functions.register.manifest import read_manifest
from training.data import Dataset, Examples, digits, split
from training.errors import InvalidData
from training.evaluation import bootstrap, metrics
from training.evaluation.calibration import reliability
from training.evaluation.evaluate import evaluate, evaluate_baselines
from training.evaluation.metrics import compute

pytestmark = pytest.mark.train


def classified(
    rows: int = 300, classes: int = 3, *, right: float = 2.0, groups: int = 0
) -> tuple[Any, Examples]:
    """Draw classes, and probabilities that favour them."""
    generator = np.random.default_rng(5)
    target = generator.integers(0, classes, rows)
    scores = generator.normal(size=(rows, classes)) + right * np.eye(classes)[target]
    probabilities = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).astype(np.float32)
    named = np.array([f"g{row % groups}" for row in range(rows)]) if groups else None
    return probabilities, Examples({"x": scores.astype(np.float32)}, target, named)


def whole(examples: Examples, by: str = "row") -> Dataset:
    return Dataset(examples, examples, examples, source="made", sha256="0", split={"by": by})


def ranked() -> tuple[Any, Examples]:
    generator = np.random.default_rng(1)
    relevance = generator.integers(0, 3, (40, 30)) * (generator.random((40, 30)) < 0.2)
    return relevance + generator.normal(size=(40, 30)), Examples(
        {"user": np.zeros((40, 1), np.float32)}, relevance
    )


@pytest.mark.parametrize("classes", [2, 3, 150])
def test_classification_metrics_equal_scikit_learns(classes: int) -> None:
    from sklearn import metrics as sk

    outputs, examples = classified(rows=2000, classes=classes)
    target, predicted = examples.target, outputs.argmax(axis=1)
    normal = outputs.astype(np.float64) / outputs.astype(np.float64).sum(axis=1, keepdims=True)
    scores = outputs[:, 1] if classes == 2 else normal
    expected = {
        "accuracy": sk.accuracy_score(target, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(target, predicted),
        "macro_f1": sk.f1_score(target, predicted, average="macro"),
        "log_loss": sk.log_loss(target, normal),
        "roc_auc": sk.roc_auc_score(target, scores, multi_class="ovr"),
    }
    if classes > metrics.MOST_CLASSES:
        del expected["balanced_accuracy"]

    values = compute("classification", outputs, examples)

    assert list(values) == list(expected)
    assert values == {name: round(value, 6) for name, value in expected.items()}


@pytest.mark.parametrize("columns", [1, 2])
def test_regression_metrics_equal_scikit_learns(columns: int) -> None:
    from sklearn import metrics as sk

    outputs, examples = classified()
    target = examples.inputs["x"][:, :columns].astype(np.float64) + 1000
    expected = {
        "rmse": sk.root_mean_squared_error(target, outputs[:, :columns]),
        "mae": sk.mean_absolute_error(target, outputs[:, :columns]),
        "r2": sk.r2_score(target, outputs[:, :columns]),
    }

    values = compute("regression", outputs[:, :columns], Examples(examples.inputs, target))

    assert values == {name: round(value, 6) for name, value in expected.items()}


def test_a_class_without_test_rows_leaves_roc_auc_out() -> None:
    outputs, examples = classified()
    rows = np.flatnonzero(examples.target != 2)

    result = compute("classification", outputs[rows], examples.take(rows))

    assert "roc_auc" not in result
    json.dumps(result, allow_nan=False)


def test_a_constant_target_has_no_r2() -> None:
    examples = Examples({"x": np.zeros((4, 1))}, np.ones(4))

    assert compute("regression", np.array([1.0, 1, 1, 3]), examples) == {
        "rmse": 1.0,
        "mae": 0.5,
    }


def test_ndcg_equals_scikit_learns() -> None:
    from sklearn.metrics import ndcg_score

    scores, examples = ranked()
    some = examples.target.any(axis=1)

    result = compute("ranking", scores, examples)

    assert result["ndcg_at_10"] == pytest.approx(
        ndcg_score(examples.target[some], scores[some], k=10), abs=1e-6
    )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert compute("ranking", order, examples) == result


def test_items_with_negative_relevance_are_not_ranked() -> None:
    scores, relevance = np.arange(12.0)[None], np.zeros((1, 12), np.int64)
    relevance[0, 11], relevance[0, 10] = -1, 1
    examples = Examples({"user": np.zeros((1, 1))}, relevance)

    assert compute("ranking", scores, examples) == {
        "ndcg_at_10": 1.0,
        "recall_at_10": 1.0,
        "mrr_at_10": 1.0,
    }


def test_a_uniform_byte_model_costs_eight_bits_without_the_padding() -> None:
    target = np.array([[1, 2, 3], [4, -1, -1]])
    examples = Examples({"bytes": np.maximum(target, 0)}, target)

    even = compute("generation", np.zeros((2, 3, 256), np.float32), examples)
    costs = compute("generation", np.where(target < 0, 1e9, np.log(256)), examples)

    assert (even["bits_per_byte"], even["perplexity"]) == (8.0, 256.0)
    assert costs == {"bits_per_byte": 8.0, "perplexity": 256.0}


def test_pairs_are_matched_by_angle_and_ties_do_not_help() -> None:
    generator = np.random.default_rng(0)
    left = generator.normal(size=(50, 8))
    examples = Examples({"a": left, "b": left}, np.arange(50))

    assert compute("embedding", np.stack([left, 3 * left], axis=1), examples)["recall_at_1"] == 1.0
    assert compute("embedding", np.ones((50, 2, 8)), examples)["recall_at_10"] == 0.0


def test_outputs_of_a_wrong_shape_are_refused() -> None:
    outputs, examples = classified()

    with pytest.raises(InvalidData, match="299 outputs for 300 examples"):
        compute("classification", outputs[1:], examples)
    with pytest.raises(InvalidData, match="for 4 labels"):
        compute("classification", outputs, examples, labels="abcd")
    with pytest.raises(InvalidData, match="for class 2"):
        compute("classification", outputs[:, :2], examples)


def test_an_intervals_width_is_that_of_the_normal_approximation() -> None:
    outputs, examples = classified(rows=2000)

    result = evaluate("classification", outputs, whole(examples))

    low, high = result["intervals"]["accuracy"]
    accuracy = compute("classification", outputs, examples)["accuracy"]
    assert low < accuracy < high
    assert high - low == pytest.approx(
        2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000), rel=0.1
    )
    assert result == evaluate("classification", outputs, whole(examples))


@pytest.mark.parametrize("classes", [2, 4])
def test_roc_auc_of_a_draw_equals_scikit_learns_on_its_rows(
    classes: int,
) -> None:
    outputs, examples = classified(rows=120, classes=classes)
    outputs = outputs.round(1) + 1e-3  # many ties
    outputs /= outputs.sum(axis=1, keepdims=True)
    areas = bootstrap.resample_roc_auc(outputs, examples.target, None)
    counts = np.concatenate(list(bootstrap._draws(120)))

    assert len(areas) == bootstrap.DRAWS
    for draw in range(5):
        rows = np.repeat(np.arange(120), counts[draw])
        drawn = compute("classification", outputs[rows], examples.take(rows))
        assert areas[draw] == pytest.approx(drawn["roc_auc"], abs=1e-6)
    low, high = evaluate("classification", outputs, whole(examples))["intervals"]["roc_auc"]
    assert low < compute("classification", outputs, examples)["roc_auc"] < high


def test_groups_are_drawn_whole_so_few_speakers_widen_the_interval() -> None:
    """Half of the groups are always right: resampled rows would give a far too narrow interval."""
    target = np.zeros(1000, np.int64)
    group = np.arange(1000) // 100
    outputs = np.eye(2)[group % 2]
    examples = Examples({"x": outputs}, target, np.array([f"speaker {number}" for number in group]))

    by_group = evaluate("classification", outputs, whole(examples, by="speaker"))
    by_row = evaluate("classification", outputs, whole(examples))

    def width(result: Any) -> float:
        low, high = result["intervals"]["accuracy"]
        return float(high - low)

    assert width(by_group) > 5 * width(by_row)
    assert by_group["bootstrap"]["by"] == "speaker"
    assert by_group["groups"]["count"] == 10
    assert {row["accuracy"] for row in by_group["groups"]["worst"]} == {0.0}
    assert {row["accuracy"] for row in by_group["groups"]["best"]} == {1.0}
    assert {row["rows"] for row in by_group["groups"]["best"]} == {100}


def test_the_worst_group_has_the_highest_error() -> None:
    target = np.zeros(30)
    groups = np.repeat(["near", "far", "away"], 10)
    outputs = np.repeat([1.0, 2.0, 3.0], 10)

    result = evaluate(
        "regression", outputs, whole(Examples({"x": outputs}, target, groups), by="place")
    )

    assert [row["group"] for row in result["groups"]["worst"]] == ["away", "far", "near"]


def test_an_honest_classifier_has_no_calibration_error() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.uniform(0.5, 1, 20_000)
    target = (generator.random(20_000) > confidence).astype(np.int64)
    honest = np.column_stack([confidence, 1 - confidence])
    boasting = np.column_stack([np.full(20_000, 0.99), np.full(20_000, 0.01)])

    assert reliability(honest, target)["expected_error"] < 0.02
    assert reliability(boasting, target)["expected_error"] == pytest.approx(0.24, abs=0.02)
    assert sum(row["rows"] for row in reliability(honest, target)["bins"]) == 20_000


def test_the_lead_is_over_the_best_baseline_and_paired() -> None:
    """The model is wrong in 1 of 359 rows, the nearest class mean in 42."""
    data = digits()
    outputs = np.eye(10)[data.test.target]
    outputs[0] = np.roll(outputs[0], 1)

    lead = evaluate("classification", outputs, data)["lead"]

    assert lead["over"] == "nearest class mean"
    assert lead["by"] == pytest.approx(41 / 359, abs=1e-6)
    assert 0 < lead["interval"][0] < lead["by"] < lead["interval"][1]


def test_a_lead_is_positive_for_errors_and_ignores_the_best_possible() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=500)
    y = x + generator.normal(size=500)
    examples = Examples(
        {"x": x[:, None]}, y, references={"best possible": x, "last value": np.zeros(500)}
    )

    result = evaluate("regression", x * 0.9, whole(examples))

    assert result["lead"]["over"] in ("mean", "median", "last value")
    assert result["lead"]["interval"][0] > 0
    assert evaluate_baselines("regression", whole(examples))["best possible"][
        "rmse"
    ] == pytest.approx(1, abs=0.1)


def test_an_evaluation_is_small_json() -> None:
    outputs, examples = classified(rows=3000, classes=300, groups=500)

    text = json.dumps(
        evaluate("classification", outputs, whole(examples, by="speaker")), allow_nan=False
    )

    assert len(text) < 20_000


def test_the_registry_reads_an_evaluation() -> None:
    outputs, examples = classified(groups=7)
    evaluation = evaluate("classification", outputs, whole(examples, by="speaker"))

    card = read_manifest(json.dumps({"schema": 1, "evaluation": evaluation}).encode()).card

    assert card["evaluation"] == evaluation


def test_baselines_are_measured_on_the_same_test_set() -> None:
    x = np.array([[0.0], [0.1], [0.2], [1.0]], np.float32)
    examples = Examples({"x": x}, np.array([0, 0, 0, 1]))

    result = evaluate_baselines("classification", whole(examples))

    assert {name: values["accuracy"] for name, values in result.items()} == {
        "majority class": 0.75,
        "nearest class mean": 1.0,
    }


def test_the_nearest_class_mean_reads_gaps_categories_texts_and_tokens() -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, 300)
    noise = generator.random(300) < 0.2
    seen = np.where(noise, 1 - target, target)
    numbers = (seen + generator.normal(size=300) * 0.1).astype(np.float32)
    numbers[::7] = np.nan
    inputs = {
        "numbers": numbers[:, None],
        "category": np.array([["red"], ["blue"]], object)[seen],
        "text": np.array(
            [
                f"{'good' if one else 'bad'} word{row} word{row // 2}"
                for row, one in enumerate(seen)
            ],
            object,
        ),
        "tokens": np.column_stack([seen + 5, generator.integers(0, 5, 300)]),
    }
    for name, values in inputs.items():
        data = split(Examples({name: values}, target), source="made", sha256="0", gaps=True)
        result = evaluate_baselines("classification", data)
        best = result["nearest class mean"]["accuracy"]
        assert best > result["majority class"]["accuracy"] + 0.1, name


def test_byte_pairs_cost_less_than_bytes_alone_where_order_matters() -> None:
    text = np.frombuffer(b"abcabcabdabc" * 50, np.uint8).astype(np.int64)
    examples = Examples(
        {"bytes": text[None, :-1].repeat(4, axis=0)}, text[None, 1:].repeat(4, axis=0)
    )

    result = evaluate_baselines("generation", whole(examples))

    assert (
        result["byte pairs"]["bits_per_byte"]
        < 0.5
        < 1.5
        < result["byte frequencies"]["bits_per_byte"]
    )


def test_popularity_ranks_what_most_users_took() -> None:
    relevance = np.zeros((20, 40), np.int64)
    relevance[:, 7] = 1
    examples = Examples({"user": np.zeros((20, 1), np.float32)}, relevance)

    result = evaluate_baselines("ranking", whole(examples))

    assert result["popularity"]["ndcg_at_10"] == 1.0
    assert result["random"]["ndcg_at_10"] < 0.5


def test_tf_idf_matches_texts_with_shared_words() -> None:
    one = np.array([f"the quick w{row} jumps v{row}" for row in range(60)], object)
    other = np.array([f"a lazy dog w{row}" for row in range(60)], object)
    examples = Examples({"a": one, "b": other}, np.arange(60))

    result = evaluate_baselines("embedding", whole(examples))

    assert result["TF-IDF"]["recall_at_1"] > 0.9
    assert result["random"]["recall_at_1"] < 0.2


def test_the_last_value_is_a_baseline_of_a_window_of_channels() -> None:
    windows = np.random.default_rng(0).random((40, 6, 3)).astype(np.float32)
    target = np.stack([windows[:, -1, 1]] * 2, axis=1)  # two steps ahead of the second channel

    result = evaluate_baselines("regression", whole(Examples({"series": windows}, target)))

    assert result["last value"]["rmse"] == 0
    assert result["mean"]["rmse"] > 0.1


def test_the_last_value_is_a_baseline_of_a_table_split_by_time() -> None:
    times = np.array([3, 1, 0, 2, 5, 5, 4, 6, 8, 7])
    examples = Examples({"x": np.zeros((10, 2))}, times * 10.0, times=times)
    data = split(examples, source="made", sha256="0", by="time", test=0.4)

    result = evaluate_baselines("regression", data)

    assert result["last value"]["mae"] == pytest.approx(10)  # every target is 10 above the last
    assert "last value" not in evaluate_baselines("regression", whole(examples))


@pytest.mark.parametrize("step", [1, 2])
def test_the_last_value_of_steps_ahead_was_known_before_the_row(step: int) -> None:
    series = np.random.default_rng(0).random(100) + np.arange(100)
    starts = np.arange(1, 94, step)
    starts = np.delete(starts, 5)  # a gap
    target = np.stack([series[start : start + 4] for start in starts])
    examples = Examples({"x": np.zeros((len(starts), 2))}, target, times=starts)
    data = split(examples, source="made", sha256="0", by="time")

    result = evaluate_baselines("regression", data)

    known = np.array([series[start - 1] for start in data.test.times])
    errors = abs(data.test.target - known[:, None])
    assert result["last value"]["mae"] == pytest.approx(errors.mean())


def test_the_last_values_of_several_quantities_are_their_own() -> None:
    times = np.arange(40)
    target = np.stack([times * 10.0, times * 7.0 + 500], axis=1)
    examples = Examples({"x": np.zeros((40, 2))}, target, times=times)
    data = split(examples, source="made", sha256="0", by="time")

    result = evaluate_baselines("regression", data)

    assert result["last value"]["mae"] == pytest.approx((10 + 7) / 2)


def test_a_split_by_time_is_resampled_by_row() -> None:
    examples = Examples({"x": np.zeros((40, 2))}, np.arange(40.0), times=np.arange(40))
    data = split(examples, source="made", sha256="0", by="time")

    assert evaluate("regression", data.test.target, data)["bootstrap"]["by"] == "row"
