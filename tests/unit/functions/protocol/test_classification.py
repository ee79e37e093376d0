"""Classification extension: Triton's strings, and the cases that Triton leaves open."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from functions.core.protocol.classification import classify
from functions.core.protocol.signature import DATATYPES, TensorSpec
from tests.arrays import DTYPES, to_array, to_tensor

NUMBERS = sorted(DATATYPES.keys() - {"BOOL", "BYTES"})


def classes(
    array: np.ndarray,
    count: int,
    *,
    datatype: str = "",
    batched: bool = True,
    **more: tuple[str, ...],
) -> np.ndarray:
    tensor = to_tensor(array, datatype)
    result = classify(
        TensorSpec("scores", tensor.datatype, (), **more), tensor, count, batched=batched
    )
    assert result.datatype == "BYTES"
    return to_array(result)


def test_each_batch_row_has_its_highest_values_first() -> None:
    result = classes(np.array([[0, 4, 2], [9, 7, 8]], np.float32), 2)

    assert result.tolist() == [[b"4.000000:1", b"2.000000:2"], [b"9.000000:0", b"8.000000:2"]]


def test_a_model_without_a_batch_is_one_row() -> None:
    assert classes(np.array([1, 3, 2], np.float32), 2, batched=False).tolist() == [
        b"3.000000:1",
        b"2.000000:2",
    ]
    assert classes(np.array(1.5, np.float32), 2, batched=False).tolist() == [b"1.500000:0"]


def test_a_count_above_the_number_of_values_returns_all() -> None:
    assert classes(np.zeros((2, 3), np.float32), 1000).shape == (2, 3)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_output_has_no_classes(shape: tuple[int, ...]) -> None:
    assert classes(np.zeros(shape, np.float32), 2).shape == (shape[0], min(2, shape[1]))


def test_labels_follow_the_index_and_may_be_too_few() -> None:
    result = classes(np.array([[1, 2, 3]], np.float32), 3, labels=("cat", "größer"))

    assert result.tolist() == [[b"3.000000:2", "2.000000:1:größer".encode(), b"1.000000:0:cat"]]


def test_labels_name_the_last_dimension() -> None:
    result = classes(np.array([[[1, 2], [4, 3]]], np.float32), 2, labels=("cat", "dog"))

    assert result.tolist() == [[b"4.000000:2:cat", b"3.000000:3:dog"]]


def test_nan_comes_last() -> None:
    result = classes(np.array([[math.nan, -math.inf, 1, math.inf]], np.float32), 4)

    assert result.tolist() == [[b"inf:3", b"1.000000:2", b"-inf:1", b"nan:0"]]


@pytest.mark.parametrize("count", range(1, 8))
def test_nans_keep_their_order(count: int) -> None:
    result = classes(
        np.array([[math.nan, -math.nan, math.nan, math.nan, 2, math.nan, -math.inf]], np.float32),
        count,
    )
    order = [b"2.000000:4", b"-inf:6", b"nan:0", b"nan:1", b"nan:2", b"nan:3", b"nan:5"]

    assert result.tolist() == [order[:count]]


def test_equal_values_keep_their_order() -> None:
    assert classes(np.array([[0.0, -0.0, 0.0]], np.float32), 3).tolist() == [
        [b"0.000000:0", b"-0.000000:1", b"0.000000:2"]
    ]


@pytest.mark.parametrize("count", range(1, 6))
def test_any_count_keeps_the_order_of_equal_values(count: int) -> None:
    order = [b"2:1", b"2:3", b"1:0", b"1:2", b"1:4"]

    assert classes(np.array([[1, 2, 1, 2, 1]], np.int64), count).tolist() == [order[:count]]


@pytest.mark.parametrize(
    "datatype", ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
)
def test_integers_are_ordered_over_their_whole_range(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype].str)
    low, high = int(limits.min), int(limits.max)
    result = classes(np.array([[1, low, high, high - 1, low + 2]], DTYPES[datatype]), 5)
    order = sorted([(1, 0), (low, 1), (high, 2), (high - 1, 3), (low + 2, 4)], reverse=True)

    assert result.tolist() == [[f"{value}:{index}".encode() for value, index in order]]


def test_bf16_is_ordered_as_numbers_not_as_bits() -> None:
    bits = (np.array([[-2, 0.5, 1]], np.float32).view(np.uint32) >> 16).astype(np.uint16)

    assert classes(bits, 2, datatype="BF16").tolist() == [[b"1.000000:2", b"0.500000:1"]]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_the_order_is_that_of_a_stable_sort(datatype: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16) if datatype == "BF16" else DTYPES[datatype]
    few = st.sampled_from(
        [0, 1, 2] if dtype.kind in "iu" else [-0.0, 0.0, 1.5, -1.5, math.inf, -math.inf, math.nan]
    )
    any_value = npst.from_dtype(DTYPES[datatype]).map(
        lambda value: float(value.view(dtype)) if datatype == "BF16" else value
    )

    @settings(max_examples=60, deadline=None)
    @given(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 3)),
        st.integers(1, 10),
        st.lists(few, max_size=18) | st.lists(few | any_value, max_size=18),
    )
    def check(shape: tuple[int, int, int], count: int, some: list[float]) -> None:
        array = np.resize(np.array([*some, 1], dtype), shape)
        rows = array.reshape(shape[0], shape[1] * shape[2])
        order = np.argsort(
            ~rows if dtype.kind in "iu" else -rows.astype(np.float64), axis=1, kind="stable"
        )[:, :count]
        number_format = "d" if dtype.kind in "iu" else ".6f"
        expected = [
            [
                f"{row[index]:{number_format}}:{index}:{'abc'[index % shape[2]]}".encode()
                for index in best
            ]
            for row, best in zip(rows.tolist(), order.tolist(), strict=True)
        ]

        result = classes(
            array.view(DTYPES[datatype]), count, datatype=datatype, labels=("a", "b", "c")
        )

        assert result.shape == (shape[0], min(count, shape[1] * shape[2]))
        assert result.tolist() == expected

    check()
