"""Histograms of inputs, outputs and classes in the manifest."""

import json
import tracemalloc

import numpy as np
import pytest

from functions.register.manifest import read_manifest
from training.evaluation import distributions

GENERATOR = np.random.default_rng(3)


def of(inputs: dict[str, np.ndarray], **more: object) -> dict:
    described = distributions.describe(inputs, {}, parts=("train", "test"), **more)
    return dict(described)


def test_bins_are_open_at_both_ends_and_hold_a_tenth_each() -> None:
    values = GENERATOR.normal(size=(1000, 1)).astype(np.float32)
    values[7] = np.nan

    (feature,) = of({"x": values}, columns={"x": ["age"]})["inputs"]["features"]

    assert (feature["name"], feature["feature"], feature["of"]) == ("x", "age", "value")
    assert feature["missing"] == 1
    edges, counts = feature["edges"], feature["counts"]
    assert len(edges) == 9
    bins = [-np.inf, *edges, np.inf]
    expected = np.histogram(values[np.isfinite(values)].astype(float), bins)[0]
    assert counts == expected.tolist()
    assert min(counts) >= 95


def test_few_distinct_numbers_get_a_bin_each() -> None:
    values = np.array([[3], [3], [7], [9]], np.int64)

    (feature,) = of({"x": values})["inputs"]["features"]

    assert feature["edges"] == [5, 8]
    assert feature["counts"] == [2, 1, 1]


def test_a_constant_and_an_empty_column_have_one_bin() -> None:
    values = np.array([[1.0, np.nan]] * 4, np.float32)

    constant, empty = of({"x": values})["inputs"]["features"]

    assert (constant["edges"], constant["counts"], constant["missing"]) == ([], [4], 0)
    assert (empty["edges"], empty["counts"], empty["missing"]) == ([], [0], 4)


def test_an_image_has_a_histogram_of_its_values_and_of_row_means() -> None:
    images = GENERATOR.random((50, 1, 28, 28)).astype(np.float32)

    values, means = of({"image": images})["inputs"]["features"]

    assert (values["of"], sum(values["counts"])) == ("value", images.size)
    assert (means["of"], sum(means["counts"])) == ("mean", 50)


def test_categories_are_counted_and_free_texts_are_not_stored() -> None:
    plans = np.array([["basic"], ["pro"], ["basic"], [""]], object)
    letters = np.array([f"Dear Ms {number}" for number in range(100)], object)

    counted, free = of({"plan": plans, "letter": letters})["inputs"]["features"]

    assert (counted["values"], counted["counts"], counted["missing"]) == (
        ["basic", "pro"],
        [2, 1],
        1,
    )
    assert free["of"] == "length"
    assert "Dear" not in json.dumps(free)


def test_one_long_text_among_many_short_ones_does_not_widen_the_others() -> None:
    texts = np.array(["x" * 1_000_000, *["short"] * 20_000], object)

    tracemalloc.start()
    (feature,) = of({"letter": texts})["inputs"]["features"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (feature["of"], sum(feature["counts"])) == ("length", 20_001)
    assert peak < 20_000_000  # the width of the longest for all would be 80 GB


@pytest.mark.parametrize("rows", [3, 40])
def test_large_outputs_are_described_from_a_bounded_number_of_values(rows: int) -> None:
    logits = np.zeros((rows, 4, 500_000), np.float32)

    described = distributions.describe({}, {"logits": logits}, parts=("train", "test"))["outputs"]

    values, means = described["features"]
    assert described["rows"] == rows
    assert sum(values["counts"]) <= distributions.VALUES
    assert 1 <= sum(means["counts"]) <= rows


def test_neighbouring_times_stay_in_bins_of_their_own() -> None:
    days = 1_700_000_000 + 86_400 * np.arange(1000, dtype=np.int64).reshape(-1, 1)
    seconds = 1_700_000_000 + np.array([[0], [1], [1], [2]], np.int64)

    (many,), (few,) = (of({"t": times})["inputs"]["features"] for times in (days, seconds))

    assert (len(many["counts"]), min(many["counts"])) == (10, 100)
    assert few["counts"] == [1, 2, 1]


def test_edges_are_short_where_bins_keep_their_rows() -> None:
    (feature,) = of({"x": GENERATOR.random((1000, 1))})["inputs"]["features"]

    assert all(edge == float(f"{edge:.6g}") for edge in feature["edges"])


@pytest.mark.parametrize(("rows", "most"), [(0, 5), (3, 5), (1001, 1000), (5000, 1000)])
def test_described_rows_are_spread_over_all(rows: int, most: int) -> None:
    numbers = distributions.spread(rows, most)

    assert len(numbers) == min(rows, most) == len(set(numbers))
    if rows:
        assert numbers[0] == 0
        assert rows - numbers[-1] <= rows // most + 1


def test_a_classifiers_scores_decisions_and_priors_are_described() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], np.float32)

    described = distributions.describe(
        {"x": np.zeros((4, 1), np.float32)},
        {"probabilities": scores},
        parts=("train", "test"),
        labels=["stays", "leaves"],
        target=np.array([0, 0, 0, 1]),
    )

    largest, decided, stays, _ = described["outputs"]["features"]
    assert (described["inputs"]["rows"], described["outputs"]["rows"]) == (4, 3)
    assert (largest["of"], sum(largest["counts"])) == ("largest", 3)
    assert (decided["values"], decided["counts"]) == (["stays", "leaves"], [1, 2])
    assert stays["feature"] == "stays"
    assert described["priors"] == {"stays": 0.75, "leaves": 0.25}


@pytest.mark.parametrize("columns", [100, 128, 129, 4000])
def test_the_description_is_bounded_and_says_how_much_is_left_out(columns: int) -> None:
    table = GENERATOR.normal(size=(300, columns)).astype(np.float32)
    words = np.array([[f"{row % 40:070}"] * columns for row in range(300)], object)

    described = of({"numbers": table, "words": words})["inputs"]

    assert len(json.dumps(described)) < distributions.BYTES + 200
    assert len(described["features"]) + described.get("left_out", 0) >= min(columns, 3)
    assert ("left_out" in described) == (columns <= distributions.FEATURES)


def test_the_registry_accepts_what_training_describes() -> None:
    described = distributions.describe(
        {"x": GENERATOR.normal(size=(30, 3)).astype(np.float32)},
        {"value": np.full(5, 2.0, np.float32)},
        parts=("train", "test"),
    )

    manifest = read_manifest(json.dumps({"schema": 1, "distributions": described}).encode())

    assert "distributions" not in manifest.card  # the registry's items stay small
