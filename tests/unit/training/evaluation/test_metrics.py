"""Metrics are scikit-learn's, intervals and groups follow from the same numbers, baselines are what they say."""

import json
from typing import Any

import numpy as np
import pytest

from functions.register.manifest import read_manifest
from training.data import Dataset, Examples, digits, split
from training.errors import InvalidData
from training.evaluation import metrics as evaluate

pytestmark = pytest.mark.train


def classified(
    rows: int = 300, classes: int = 3, *, right: float = 2.0, groups: int = 0
) -> tuple[Any, Examples]:
    """Probabilities that lean to the truth."""
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


def test_a_classifier_is_measured_as_scikit_learn_does() -> None:
    from sklearn import metrics as sk

    outputs, examples = classified()
    predicted = outputs.argmax(axis=1)

    found = evaluate.metrics("classification", outputs, examples)

    assert list(found) == ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc"]
    assert found["balanced_accuracy"] == round(
        sk.balanced_accuracy_score(examples.target, predicted), 6
    )
    assert found["accuracy"] == round(sk.accuracy_score(examples.target, predicted), 6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_statistics_behind_intervals_give_the_same_numbers_as_scikit_learn(task: Any) -> None:
    outputs, examples = classified()
    if task == "regression":
        outputs, examples = (
            outputs[:, :2],
            Examples(examples.inputs, examples.inputs["x"][:, 1:] + 1000),
        )

    ours = evaluate._finish(task, evaluate._statistics(task, outputs, examples.target).sum(axis=0))
    theirs = evaluate._sklearn(task, outputs, examples.target)

    shared = set(ours) & set(theirs)
    assert len(shared) == 3
    for name in shared:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_a_class_that_no_test_row_has_leaves_the_area_out_and_nothing_is_nan() -> None:
    outputs, examples = classified()
    rows = np.flatnonzero(examples.target != 2)

    found = evaluate.metrics("classification", outputs[rows], examples.take(rows))

    assert "roc_auc" not in found
    json.dumps(found, allow_nan=False)


def test_a_constant_target_has_no_r2() -> None:
    examples = Examples({"x": np.zeros((4, 1))}, np.ones(4))

    assert evaluate.metrics("regression", np.array([1.0, 1, 1, 3]), examples) == {
        "rmse": 1.0,
        "mae": 0.5,
    }


def test_ndcg_is_scikit_learns() -> None:
    from sklearn.metrics import ndcg_score

    scores, examples = ranked()
    some = examples.target.any(axis=1)

    found = evaluate.metrics("ranking", scores, examples)

    assert found["ndcg_at_10"] == pytest.approx(
        ndcg_score(examples.target[some], scores[some], k=10), abs=1e-6
    )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert evaluate.metrics("ranking", order, examples) == found


def test_items_that_are_not_to_be_ranked_take_no_place() -> None:
    scores, relevance = np.arange(12.0)[None], np.zeros((1, 12), np.int64)
    relevance[0, 11], relevance[0, 10] = -1, 1
    examples = Examples({"user": np.zeros((1, 1))}, relevance)

    assert evaluate.metrics("ranking", scores, examples) == {
        "ndcg_at_10": 1.0,
        "recall_at_10": 1.0,
        "mrr_at_10": 1.0,
    }


def test_a_uniform_byte_model_needs_eight_bits_and_padding_does_not_count() -> None:
    target = np.array([[1, 2, 3], [4, -1, -1]])
    examples = Examples({"bytes": np.maximum(target, 0)}, target)

    even = evaluate.metrics("generation", np.zeros((2, 3, 256), np.float32), examples)
    costs = evaluate.metrics("generation", np.where(target < 0, 1e9, np.log(256)), examples)

    assert (even["bits_per_byte"], even["perplexity"]) == (8.0, 256.0)
    assert costs == {"bits_per_byte": 8.0, "perplexity": 256.0}


def test_partners_are_found_by_their_angle_and_ties_do_not_help() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(50, 8))
    examples = Examples({"a": one, "b": one}, np.arange(50))

    assert (
        evaluate.metrics("embedding", np.stack([one, 3 * one], axis=1), examples)["recall_at_1"]
        == 1.0
    )
    assert evaluate.metrics("embedding", np.ones((50, 2, 8)), examples)["recall_at_10"] == 0.0


def test_outputs_that_do_not_fit_are_refused() -> None:
    outputs, examples = classified()

    with pytest.raises(InvalidData, match="299 outputs for 300 examples"):
        evaluate.metrics("classification", outputs[1:], examples)
    with pytest.raises(InvalidData, match="for 4 labels"):
        evaluate.metrics("classification", outputs, examples, labels="abcd")
    with pytest.raises(InvalidData, match="for class 2"):
        evaluate.metrics("classification", outputs[:, :2], examples)


def test_intervals_are_as_wide_as_theory_says() -> None:
    outputs, examples = classified(rows=2000)

    found = evaluate.details("classification", outputs, whole(examples))

    low, high = found["intervals"]["accuracy"]
    accuracy = evaluate.metrics("classification", outputs, examples)["accuracy"]
    assert low < accuracy < high
    assert high - low == pytest.approx(
        2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000), rel=0.1
    )
    assert found == evaluate.details("classification", outputs, whole(examples))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_area_under_the_curve_of_a_draw_is_scikit_learns_of_the_rows_that_were_drawn(
    classes: int,
) -> None:
    outputs, examples = classified(rows=120, classes=classes)
    outputs = outputs.round(1) + 1e-3  # many ties
    outputs /= outputs.sum(axis=1, keepdims=True)
    areas = evaluate._roc_areas(outputs, examples.target, None)
    counts = np.concatenate(list(evaluate._draws(120)))

    assert len(areas) == evaluate.DRAWS
    for draw in range(5):
        rows = np.repeat(np.arange(120), counts[draw])
        drawn = evaluate.metrics("classification", outputs[rows], examples.take(rows))
        assert areas[draw] == pytest.approx(drawn["roc_auc"], abs=1e-6)
    low, high = evaluate.details("classification", outputs, whole(examples))["intervals"]["roc_auc"]
    assert low < evaluate.metrics("classification", outputs, examples)["roc_auc"] < high


def test_groups_are_drawn_whole_so_a_few_speakers_make_a_wide_interval() -> None:
    """Half of the groups are always right, half always wrong: rows alone would know the accuracy far too well."""
    target = np.zeros(1000, np.int64)
    group = np.arange(1000) // 100
    outputs = np.eye(2)[group % 2]
    examples = Examples({"x": outputs}, target, np.array([f"speaker {number}" for number in group]))

    by_group = evaluate.details("classification", outputs, whole(examples, by="speaker"))
    by_row = evaluate.details("classification", outputs, whole(examples))

    def width(found: Any) -> float:
        low, high = found["intervals"]["accuracy"]
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

    found = evaluate.details(
        "regression", outputs, whole(Examples({"x": outputs}, target, groups), by="place")
    )

    assert [row["group"] for row in found["groups"]["worst"]] == ["away", "far", "near"]


def test_a_classifier_that_is_as_sure_as_it_is_right_is_calibrated() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.uniform(0.5, 1, 20_000)
    target = (generator.random(20_000) > confidence).astype(np.int64)
    honest = np.column_stack([confidence, 1 - confidence])
    boasting = np.column_stack([np.full(20_000, 0.99), np.full(20_000, 0.01)])

    assert evaluate.calibration(honest, target)["expected_error"] < 0.02
    assert evaluate.calibration(boasting, target)["expected_error"] == pytest.approx(0.24, abs=0.02)
    assert sum(row["rows"] for row in evaluate.calibration(honest, target)["bins"]) == 20_000


def test_the_lead_is_over_the_best_baseline_and_paired() -> None:
    """Wrong in one row of 359, where the nearest class mean is wrong in 42: surely better."""
    data = digits()
    outputs = np.eye(10)[data.test.target]
    outputs[0] = np.roll(outputs[0], 1)

    lead = evaluate.details("classification", outputs, data)["lead"]

    assert lead["over"] == "nearest class mean"
    assert lead["by"] == pytest.approx(41 / 359, abs=1e-6)
    assert 0 < lead["interval"][0] < lead["by"] < lead["interval"][1]


def test_a_lead_is_positive_where_less_is_better_and_the_best_possible_is_no_rival() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=500)
    y = x + generator.normal(size=500)
    examples = Examples(
        {"x": x[:, None]}, y, known={"best possible": x, "last value": np.zeros(500)}
    )

    found = evaluate.details("regression", x * 0.9, whole(examples))

    assert found["lead"]["over"] in ("mean", "median", "last value")
    assert found["lead"]["interval"][0] > 0
    assert evaluate.baselines("regression", whole(examples))["best possible"][
        "rmse"
    ] == pytest.approx(1, abs=0.1)


def test_everything_is_json_and_small() -> None:
    outputs, examples = classified(rows=3000, classes=300, groups=500)

    text = json.dumps(
        evaluate.details("classification", outputs, whole(examples, by="speaker")), allow_nan=False
    )

    assert len(text) < 20_000


def test_the_registry_understands_the_evaluation() -> None:
    outputs, examples = classified(groups=7)
    evaluation = evaluate.details("classification", outputs, whole(examples, by="speaker"))

    card = read_manifest(json.dumps({"schema": 1, "evaluation": evaluation}).encode()).card

    assert card["evaluation"] == evaluation


def test_baselines_are_measured_on_the_same_test_set() -> None:
    x = np.array([[0.0], [0.1], [0.2], [1.0]], np.float32)
    examples = Examples({"x": x}, np.array([0, 0, 0, 1]))

    found = evaluate.baselines("classification", whole(examples))

    assert {name: values["accuracy"] for name, values in found.items()} == {
        "majority class": 0.75,
        "nearest class mean": 1.0,
    }


def test_the_nearest_class_mean_reads_tables_with_gaps_categories_texts_and_tokens() -> None:
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
        found = evaluate.baselines("classification", data)
        best = found["nearest class mean"]["accuracy"]
        assert best > found["majority class"]["accuracy"] + 0.1, name


def test_byte_pairs_cost_less_than_bytes_alone_where_order_matters() -> None:
    text = np.frombuffer(b"abcabcabdabc" * 50, np.uint8).astype(np.int64)
    examples = Examples(
        {"bytes": text[None, :-1].repeat(4, axis=0)}, text[None, 1:].repeat(4, axis=0)
    )

    found = evaluate.baselines("generation", whole(examples))

    assert (
        found["byte pairs"]["bits_per_byte"]
        < 0.5
        < 1.5
        < found["byte frequencies"]["bits_per_byte"]
    )


def test_popularity_ranks_what_most_users_took() -> None:
    relevance = np.zeros((20, 40), np.int64)
    relevance[:, 7] = 1
    examples = Examples({"user": np.zeros((20, 1), np.float32)}, relevance)

    found = evaluate.baselines("ranking", whole(examples))

    assert found["popularity"]["ndcg_at_10"] == 1.0
    assert found["random"]["ndcg_at_10"] < 0.5


def test_words_in_common_find_partners() -> None:
    one = np.array([f"the quick w{row} jumps v{row}" for row in range(60)], object)
    other = np.array([f"a lazy dog w{row}" for row in range(60)], object)
    examples = Examples({"a": one, "b": other}, np.arange(60))

    found = evaluate.baselines("embedding", whole(examples))

    assert found["TF-IDF"]["recall_at_1"] > 0.9
    assert found["random"]["recall_at_1"] < 0.2
