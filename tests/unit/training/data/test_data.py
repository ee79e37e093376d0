"""Data sets: the same rows in the same parts every time, no group in two of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from training import data
from training.data import Dataset, Examples, bundled, split, synthetic, texts
from training.errors import InvalidData, InvalidValue
from training.evaluation.evaluate import evaluate_baselines

pytestmark = pytest.mark.train

PARTS = ("train", "validation", "test")
SETS: dict[str, Callable[[], Dataset]] = {
    "breast_cancer": bundled.breast_cancer,
    "diabetes": bundled.diabetes,
    "textures": bundled.textures,
    "docstrings": texts.topics_of_docstrings,
    "pairs": texts.docstring_pairs,
    "language": texts.language,
    "series": lambda: synthetic.series(count=40),
    "interactions": lambda: synthetic.interactions(users=100),
    "speech": lambda: synthetic.speech(speakers=5, takes=1),
    "churn": lambda: synthetic.churn(rows=300),
}


def rows_of(part: Examples) -> set[bytes]:
    columns = [
        np.asarray(values, str) if values.dtype == object else values
        for values in part.inputs.values()
    ]
    return {b"|".join(column[row].tobytes() for column in columns) for row in range(len(part))}


def test_digits_are_images_of_28_by_28_between_0_and_1() -> None:
    digits = data.digits()
    images = digits.test.inputs["image"]

    assert images.shape[1:] == (1, 28, 28)
    assert images.dtype == np.float32
    assert (digits.train.inputs["image"].min(), digits.train.inputs["image"].max()) == (0.0, 1.0)


def test_digits_are_split_alike_every_time_and_share_no_image() -> None:
    first, second = data.digits(), data.digits()

    assert np.array_equal(first.test.inputs["image"], second.test.inputs["image"])
    assert len(first.train) + len(first.validation) + len(first.test) == 1797
    rows = {
        part: {image.tobytes() for image in getattr(first, part).inputs["image"]} for part in PARTS
    }
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]


def test_every_part_holds_every_class_in_the_same_share() -> None:
    digits = data.digits()

    for part in (digits.train, digits.validation, digits.test):
        assert np.abs(np.bincount(part.target, minlength=10) / len(part) - 0.1).max() < 0.02


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    ramp = np.tile(np.arange(4, dtype=np.float32) / 4, (1, 4, 1))

    assert np.allclose(
        bundled.resize(ramp, 8)[0, 0], [0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.75]
    )


@pytest.mark.parametrize("name", SETS)
def test_a_set_repeats_and_its_parts_share_no_group(name: str) -> None:
    first, second = SETS[name](), SETS[name]()

    assert first.sha256 == second.sha256
    assert first.source.split(":")[0] in ("sklearn", "cpython", "synthetic")
    for part in PARTS:
        rows, repeated = getattr(first, part), getattr(second, part)
        assert len(rows) == first.split[part] > 0
        assert np.array_equal(rows.target, repeated.target)
        assert rows_of(rows) == rows_of(repeated)
        assert all(len(values) == len(rows) for values in rows.inputs.values())
        if first.labels:
            assert set(rows.target) == set(range(len(first.labels)))
    by = first.split["by"]
    assert (by == "row") == (first.train.groups is None)
    if by != "row":
        groups = [set(getattr(first, part).groups) for part in PARTS]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


@pytest.mark.parametrize("by", ["row", "group"])
def test_parts_have_the_requested_sizes(by: str) -> None:
    generator = np.random.default_rng(3)
    target = generator.integers(0, 3, 1000)
    examples = Examples({"x": np.arange(1000)[:, None]}, target, generator.integers(0, 80, 1000))

    result = split(examples, source="made", sha256="0", by=by, validation=0.2, test=0.3)

    assert [result.split[part] for part in PARTS] == pytest.approx(
        [500, 200, 300], abs=0 if by == "row" else 15
    )
    seen = np.concatenate([getattr(result, part).inputs["x"][:, 0] for part in PARTS])
    assert sorted(seen) == list(range(1000))
    for part in PARTS:
        share = np.bincount(getattr(result, part).target, minlength=3) / result.split[part]
        assert np.abs(share - np.bincount(target) / 1000).max() < 0.04


def test_a_few_large_groups_still_make_three_parts() -> None:
    groups = np.repeat(["a", "b", "c"], [900, 50, 50])
    result = split(
        Examples({"x": np.zeros((1000, 1))}, np.zeros(1000), groups),
        source="made",
        sha256="0",
        by="user",
    )

    assert sorted(result.split[part] for part in PARTS) == [50, 50, 900]
    assert result.split["train"] == 900


@pytest.mark.parametrize(
    ("examples", "by", "message"),
    [
        (
            Examples({}, np.array([0] * 50 + [1] * 2)),
            "row",
            "class 'rare' has 2 rows; each needs 3",
        ),
        (
            Examples({}, np.arange(5)),
            "row",
            "5 rows are too few for 3 parts with 5 classes in each",
        ),
        (Examples({}, np.zeros(0)), "row", "0 rows are too few"),
        (
            Examples({}, np.zeros(9), np.repeat([1, 2], [4, 5])),
            "user",
            "2 groups (user) are too few",
        ),
        (Examples({}, np.zeros(9)), "user", "a split by user needs the group of each row"),
    ],
    ids=["rare class", "few rows", "none", "few groups", "no groups"],
)
def test_examples_that_cannot_be_split_are_an_error(
    examples: Examples, by: str, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        split(examples, source="file:x.csv", sha256="0", by=by, labels=["common", "rare"])

    assert str(caught.value).startswith("file:x.csv: ")
    assert message in str(caught.value)


def test_numbers_get_the_types_of_tensors() -> None:
    examples = Examples(
        {
            "x": np.zeros((20, 1)),
            "flag": np.zeros((20, 1), bool),
            "word": np.full(20, "a"),
            "id": np.zeros(20, np.int32),
        },
        np.arange(20, dtype=np.int8) % 2,
    )
    result = split(examples, source="made", sha256="0").train

    assert {name: values.dtype for name, values in result.inputs.items()} == {
        "x": np.float32,
        "flag": np.float32,
        "word": object,
        "id": np.int32,
    }
    assert result.target.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: x.__setitem__((7, 1), np.nan),
            "made, row 8, column 'fee': 'x' holds nan; fill it",
        ),
        (lambda x, y: x.__setitem__((7, 1), -np.inf), "made, row 8, column 'fee': 'x' holds -inf"),
        (lambda x, y: y.__setitem__(3, np.nan), "made, row 4: 'target' holds nan"),
    ],
)
def test_an_error_about_a_nan_names_row_and_column(
    change: Callable[[Any, Any], None], message: str
) -> None:
    x, y = np.zeros((20, 2)), np.zeros(20)
    change(x, y)

    with pytest.raises(InvalidValue) as caught:
        split(Examples({"x": x}, y), source="made", sha256="0", columns={"x": ["age", "fee"]})
    assert str(caught.value).startswith(message)
    with pytest.raises(InvalidValue, match="^made, test part, row "):
        split(
            Examples({"x": np.zeros((20, 2))}, np.zeros(20)),
            source="made",
            sha256="0",
            test=Examples({"x": x}, y),
        )


def test_gaps_are_kept_if_allowed() -> None:
    x = np.ones((20, 2), np.float32)
    x[5, 0] = np.nan
    result = split(Examples({"x": x}, np.zeros(20)), source="made", sha256="0", gaps=True)

    assert sum(np.isnan(getattr(result, part).inputs["x"]).sum() for part in PARTS) == 1


def test_separate_parts_stay_whole_and_may_share_no_group() -> None:
    def made(rows: int, first: int) -> Examples:
        return Examples(
            {"x": np.zeros((rows, 1))}, np.arange(rows) % 2, np.arange(first, first + rows) // 4
        )

    result = split(
        made(80, 0), source="made", sha256="0", by="user", validation=0.25, test=made(12, 80)
    )

    assert [result.split[part] for part in PARTS] == [60, 20, 12]
    with pytest.raises(
        InvalidData, match="made: user '19' is in the (train|validation) and in the test part"
    ):
        split(made(80, 0), source="made", sha256="0", by="user", test=made(12, 76))


def test_a_digest_ignores_the_last_bits_of_floats() -> None:
    values = np.array([[0.1, np.nan], [2, 3]])

    assert data.digest(values) == data.digest(values + 1e-12)
    changed = [
        values + 1e-3,
        values.reshape(4),
        np.nan_to_num(values),
        values[:, ::-1],
        np.array(["0.1"], object),
    ]
    assert len({data.digest(array) for array in [values, *changed]}) == 6


def test_docstrings_are_the_same_in_another_process() -> None:
    """The order of sets differs between processes."""
    code = "from training.data import texts; print(texts.topics_of_docstrings().sha256)"
    environment = os.environ | {"PYTHONHASHSEED": "12"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == texts.topics_of_docstrings().sha256


def test_docstrings_are_english_texts_of_all_topics_once_each() -> None:
    result = texts.docstrings()

    assert len(result) > 4000
    assert len({docstring.text for docstring in result}) == len(result)
    assert {docstring.topic for docstring in result} == set(texts.TOPICS)
    assert "Return a new shallow copy" not in {
        docstring.text for docstring in result
    }  # those of C modules are not in the sources
    assert any(
        docstring.module == "asyncio.queues" and docstring.text.startswith("A queue, useful for")
        for docstring in result
    )


def test_a_summary_belongs_to_the_body_that_follows_it() -> None:
    pairs = texts.docstring_pairs().test
    whole = [" ".join(docstring.text.split()) for docstring in texts.docstrings()]

    for summary, body in zip(pairs.inputs["summary"][:20], pairs.inputs["body"][:20], strict=True):
        assert any(text.startswith(f"{summary} {body}") for text in whole)


def test_the_target_of_a_language_model_is_the_next_byte() -> None:
    result = texts.language(length=64)

    for part in (result.train, result.test):
        shown, after = part.inputs["tokens"], part.target
        assert shown.shape == after.shape == (len(part), 64)
        real = after[:, :-1] >= 0
        assert np.array_equal(shown[:, 1:][real], after[:, :-1][real])
    text = bytes(result.test.inputs["tokens"][0].tolist())
    from pydoc_data.topics import topics

    assert any(text in topic.encode() for topic in topics.values())


def test_the_best_possible_error_of_a_series_is_its_noise() -> None:
    result = evaluate_baselines("regression", synthetic.series(count=400))

    assert result["best possible"]["rmse"] == pytest.approx(synthetic.NOISE, rel=0.1)
    rivals = [values["rmse"] for name, values in result.items() if name != "best possible"]
    assert result["best possible"]["rmse"] < 0.6 * min(rivals)


def test_users_take_favourites_and_popular_items() -> None:
    data = synthetic.interactions()
    result = evaluate_baselines("ranking", data)

    assert result["random"]["ndcg_at_10"] < 0.06 < 0.1 < result["popularity"]["ndcg_at_10"]
    assert result["best possible"]["ndcg_at_10"] > 2 * result["popularity"]["ndcg_at_10"]
    assert (
        data.train.inputs["ratings"].mean() > 3.3
    )  # 3 is the mean over all items: those with high ratings are seen


def test_a_history_and_the_held_out_items_are_disjoint() -> None:
    test = synthetic.interactions(users=100).test

    for history, relevance in zip(test.inputs["history"], test.target, strict=True):
        assert set(np.flatnonzero(relevance == -1)) == {0, *history}
        assert (relevance == 1).sum() == 6


def test_more_noise_makes_words_harder() -> None:
    clear, noisy = (synthetic.speech(speakers=8, takes=2, snr_db=snr) for snr in (20, -10))

    audio = clear.test.inputs["audio"]
    assert (audio.shape[1], audio.dtype) == (3200, np.float32)
    assert 0.05 < np.abs(audio).max(axis=1).min() <= np.abs(audio).max() <= 1
    accuracy = [
        evaluate_baselines("classification", words)["mean spectrum"]["accuracy"]
        for words in (clear, noisy)
    ]
    assert accuracy[0] > accuracy[1] + 0.1 > 0.3
    assert "snr_db=-10" in noisy.source


def test_churn_is_predictable_in_part_and_its_data_are_dirty() -> None:
    data = synthetic.churn()
    result = evaluate_baselines("classification", data)
    numbers, categories = data.train.inputs["numbers"], data.train.inputs["categories"]

    assert result["best possible"]["accuracy"] > result["nearest class mean"]["accuracy"] + 0.05
    assert np.isnan(numbers).mean() == pytest.approx(0.1, abs=0.02)
    assert {"monthly", "MONTHLY", " monthly ", ""} <= set(categories[:, 0])
    used, unit = numbers[:, synthetic.NUMBERS.index("data_used")], categories[:, -1]
    assert np.nanmedian(used[unit == "MB"]) == pytest.approx(
        1024 * np.nanmedian(used[unit == "GB"]), rel=0.2
    )


def test_another_seed_makes_other_data_and_another_source() -> None:
    first, second = synthetic.churn(seed=0, rows=200), synthetic.churn(seed=1, rows=200)

    assert first.sha256 != second.sha256
    assert (first.source, second.source) == (
        "synthetic:churn@1?seed=0&rows=200",
        "synthetic:churn@1?seed=1&rows=200",
    )


def test_data_need_no_torch() -> None:
    code = (
        "import sys; from training.data import digits, synthetic, texts; "
        "digits(); print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_taking_rows_takes_groups_and_references_along() -> None:
    examples = Examples(
        {"x": np.arange(4)}, np.arange(4), np.array(list("abcd")), {"last value": np.arange(4)}
    )
    part: Any = examples.take([2, 0])

    columns = (part.inputs["x"], part.target, part.groups, part.references["last value"])
    assert [column.tolist() for column in columns] == [[2, 0], [2, 0], ["c", "a"], [2, 0]]
