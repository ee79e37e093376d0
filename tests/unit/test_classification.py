"""The classification extension: Triton's strings, and the corners that Triton leaves open."""

import math

import numpy as np
import pytest

from functions.core.classification import classify
from functions.core.signature import TensorSpec
from functions.core.tensors import DTYPES


def classes(array: np.ndarray, count: int, *, datatype: str = "FP32", batched: bool = True, **more: tuple[str, ...]):
    return classify(TensorSpec("scores", datatype, (), **more), array, count, batched=batched)


def test_each_batch_row_has_its_highest_values_first() -> None:
    result = classes(np.array([[0, 4, 2], [9, 7, 8]], np.float32), 2)

    assert result.tolist() == [[b"4.000000:1", b"2.000000:2"], [b"9.000000:0", b"8.000000:2"]]


def test_a_model_without_a_batch_is_one_row() -> None:
    assert classes(np.array([1, 3, 2], np.float32), 2, batched=False).tolist() == [b"3.000000:1", b"2.000000:2"]
    assert classes(np.array(1.5, np.float32), 2, batched=False).tolist() == [b"1.500000:0"]


def test_asking_for_more_than_there_are_gives_all() -> None:
    assert classes(np.zeros((2, 3), np.float32), 1000).shape == (2, 3)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_classify_gives_an_empty_answer(shape: tuple[int, ...]) -> None:
    assert classes(np.zeros(shape, np.float32), 2).shape == (shape[0], min(2, shape[1]))


def test_labels_stand_behind_the_index_as_far_as_they_reach() -> None:
    result = classes(np.array([[1, 2, 3]], np.float32), 3, labels=("cat", "größer"))

    assert result.tolist() == [[b"3.000000:2", "2.000000:1:größer".encode(), b"1.000000:0:cat"]]


def test_labels_name_the_last_dimension() -> None:
    result = classes(np.array([[[1, 2], [4, 3]]], np.float32), 2, labels=("cat", "dog"))

    assert result.tolist() == [[b"4.000000:2:cat", b"3.000000:3:dog"]]


def test_not_a_number_is_never_the_best() -> None:
    result = classes(np.array([[math.nan, -math.inf, 1, math.inf]], np.float32), 4)

    assert result.tolist() == [[b"inf:3", b"1.000000:2", b"-inf:1", b"nan:0"]]


def test_equal_values_keep_their_order() -> None:
    assert classes(np.array([[0.0, -0.0, 0.0]], np.float32), 3).tolist() == [
        [b"0.000000:0", b"-0.000000:1", b"0.000000:2"]
    ]


@pytest.mark.parametrize("datatype", ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"])
def test_integers_are_ordered_over_their_whole_range(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype].str)
    low, high = int(limits.min), int(limits.max)
    result = classes(np.array([[0, low, high]], DTYPES[datatype]), 3, datatype=datatype)
    order = [(high, 2), (0, 0), (low, 1)]

    assert result.tolist() == [[f"{value}:{index}".encode() for value, index in order]]


def test_bf16_is_ordered_as_numbers_not_as_bits() -> None:
    bits = (np.array([[-2, 0.5, 1]], np.float32).view(np.uint32) >> 16).astype(np.uint16)

    assert classes(bits, 2, datatype="BF16").tolist() == [[b"1.000000:2", b"0.500000:1"]]
