"""Copies of a row stay in one part of a split; copies between parts are counted."""

from typing import Any

import numpy as np
import pytest

from training.data import Dataset, Examples, duplicates, split
from training.errors import InvalidData

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.random((200, 4)).astype(np.float32)
IMAGES = RANDOM.random((200, 1, 6, 6)).astype(np.float32)
TEXTS = np.array([f"Text number {number}, in words." for number in range(200)], object)
CLASSES = np.arange(200) % 2


def parts_of(data: Dataset) -> list[set[int]]:
    parts = (data.train, data.validation, data.test)
    return [set(duplicates.row_keys(part.inputs).exact.tolist()) for part in parts]


def make_split(x: Any, y: Any, **options: Any) -> Dataset:
    return split(Examples({"x": x}, y), source="made", sha256="0", **options)


@pytest.mark.parametrize("values", [TABLE, IMAGES, TEXTS], ids=["table", "images", "texts"])
@pytest.mark.parametrize("times", [2, 3, 20])
def test_copies_of_a_row_stay_in_one_part(values: Any, times: int) -> None:
    x = np.concatenate([values] * times)

    data = make_split(x, np.tile(CLASSES, times))

    train, validation, test = parts_of(data)
    assert not train & validation | train & test | validation & test
    assert [len(part) for part in (train, validation, test)] == [140, 20, 40]
    assert data.split["copies"] == 200 * (times - 1)
    assert [data.split[name] for name in ("train", "test")] == [140 * times, 40 * times]
    assert data.test.target.mean() == pytest.approx(0.5)  # still stratified


def test_rows_of_one_input_and_two_targets_stay_in_one_part() -> None:
    data = make_split(np.concatenate([TABLE, TABLE]), np.concatenate([CLASSES, 1 - CLASSES]))

    assert not parts_of(data)[0] & parts_of(data)[2]


@pytest.mark.parametrize(
    "values",
    [
        RANDOM.integers(0, 2, (2000, 5)).astype(np.float32),
        np.array(["a", "b", "c"], object)[RANDOM.integers(0, 3, (2000, 2))],
        np.zeros((2000, 3)),
    ],
    ids=["yes and no", "categories", "constant"],
)
def test_repeats_in_columns_of_few_values_are_no_copies(values: Any) -> None:
    """Else no split could be made of a table with two categories."""
    data = make_split(values, np.arange(2000) % 2)

    assert data.split == {"seed": 20, "by": "row", "train": 1400, "validation": 200, "test": 400}


def test_data_without_copies_are_split_as_ever() -> None:
    data = make_split(TABLE, CLASSES)

    assert data.split == {"seed": 20, "by": "row", "train": 140, "validation": 20, "test": 40}


def test_too_few_different_rows_are_split_by_row_and_counted() -> None:
    record = make_split(np.tile(TABLE[:3], (8, 1)), np.ones(24)).split

    assert "copies" not in record
    assert record["identical_rows"] == 2 + 5  # all of the validation and test part


@pytest.mark.parametrize(
    ("values", "copies"),
    [
        (TABLE, TABLE * 1.00001),
        (TEXTS, np.array([f" {text.upper()}!" for text in TEXTS], object)),
    ],
    ids=["digits", "case and spaces"],
)
def test_near_duplicates_between_parts_are_counted(values: Any, copies: Any) -> None:
    record = make_split(np.concatenate([values, copies]), np.tile(CLASSES, 2)).split

    assert "copies" not in record
    assert 50 < record["near_rows"] <= 120  # of 120 rows to validate and test


def test_copies_between_parts_that_the_user_set_apart_are_counted() -> None:
    separate = Examples({"x": TABLE[:30]}, CLASSES[:30])

    data = make_split(TABLE, CLASSES, test=separate)

    train, _, test = parts_of(data)
    assert data.split["identical_rows"] == len(train & test) > 20


def test_missing_values_and_negative_zeros_are_equal() -> None:
    first = np.array([[np.nan, 0.0]], np.float32)
    second = np.array([[-np.nan, -0.0]], np.float32)

    keys = [duplicates.row_keys({"x": x}).exact for x in (first, second)]
    assert keys[0] == keys[1]


def test_a_split_by_time_tests_on_the_latest_rows() -> None:
    times = RANDOM.permutation(np.repeat(np.arange(50), 4))
    examples = Examples({"x": TABLE}, CLASSES, times=times)

    data = split(examples, source="made", sha256="0", by="time")

    spans = [
        (int(part.times.min()), int(part.times.max()))
        for part in (data.train, data.validation, data.test)
        if part.times is not None
    ]
    assert spans == [(0, 34), (35, 39), (40, 49)]
    assert data.split["by"] == "time"
    assert (data.split["validation_from"], data.split["test_from"]) == ("35", "40")


@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.0, 0.2), (0.1, 0.0), (0.8, 0.1)])
def test_every_part_of_a_split_by_time_has_rows(shares: tuple[float, float]) -> None:
    times = np.array([0] * 97 + [1, 2, 3])
    examples = Examples({"x": TABLE[:100]}, CLASSES[:100], times=times)

    data = split(
        examples, source="made", sha256="0", by="time", validation=shares[0], test=shares[1]
    )

    assert len(data.train) > 0
    assert [len(part) > 0 for part in (data.validation, data.test)] == [s > 0 for s in shares]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (None, "a split by time needs the time of each row"),
        (np.zeros(200), "1 times are too few for 3 parts"),
        (np.zeros(10), "'times' has 10 rows, and the target has 200"),
    ],
)
def test_an_impossible_split_by_time_is_refused(times: Any, message: str) -> None:
    examples = Examples({"x": TABLE}, CLASSES, times=times)

    with pytest.raises(InvalidData, match=message):
        split(examples, source="made", sha256="0", by="time")
