"""Tensors: what JSON and bytes may say, and what becomes of it."""

import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from functions.core.errors import InvalidRequest
from functions.core.signature import DATATYPES, TensorSpec
from functions.core.tensors import DTYPES, ELEMENTS_LIMIT, from_bytes, from_json, numeric, read_shape, to_bytes, to_json

INTEGERS = [datatype for datatype in DATATYPES if "INT" in datatype]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]
few = settings(max_examples=30, deadline=None)


def spec(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec("x", datatype, shape)


def array_of(datatype: str, data: object, *shape: int, base64: bool = False) -> np.ndarray:
    return from_json(spec(datatype, *shape), shape, data, base64=base64)


def refusal(datatype: str, data: object, *shape: int, base64: bool = False) -> str:
    with pytest.raises(InvalidRequest) as refused:
        array_of(datatype, data, *shape, base64=base64)
    return str(refused.value)


def elements(datatype: str) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any shape, empty and scalar ones too, and of any value: every NaN, both zeros, subnormals."""
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    if datatype == "BYTES":
        return npst.arrays(np.object_, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    return npst.arrays(DTYPES[datatype], shapes)


def test_every_datatype_has_a_dtype_of_its_size_on_the_wire() -> None:
    assert DTYPES.keys() == DATATYPES.keys()
    assert all(DTYPES[name].itemsize == size for name, size in DATATYPES.items() if size)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
def test_json_gives_back_what_it_was_made_of(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        values, base64 = to_json(datatype, array)
        text = json.dumps(values, allow_nan=False)
        back = array_of(datatype, json.loads(text), *array.shape, base64=base64)

        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.flags.c_contiguous
        # any NaN is as good as another
        np.testing.assert_array_equal(numeric(datatype, back), numeric(datatype, array))

    check()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_bytes_give_back_what_they_were_made_of(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        raw = to_bytes(datatype, array)
        back = from_bytes(spec(datatype, *array.shape), array.shape, memoryview(raw))

        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.flags.c_contiguous
        assert to_bytes(datatype, back) == raw
        assert back.tolist() == array.tolist() or datatype in FLOATS  # NaN is not itself

    check()


@settings(max_examples=200, deadline=None)
@given(npst.arrays(np.uint32, 16).map(lambda bits: bits.view(np.float32)))
def test_bf16_rounds_as_ml_dtypes_does(numbers: np.ndarray) -> None:
    numbers = numbers[np.isfinite(numbers)]
    with np.errstate(over="ignore"):
        expected = numbers.astype(ml_dtypes.bfloat16)
    kept = np.isfinite(expected)
    if not kept.all():
        assert "beyond the range of BF16" in refusal("BF16", numbers.tolist(), numbers.size)

    assert array_of("BF16", numbers[kept].tolist(), int(kept.sum())).tolist() == expected[kept].view(np.uint16).tolist()


def test_binary_data_is_not_copied_when_it_lies_aligned() -> None:
    numbers = np.arange(4, dtype=np.float32)
    raw = memoryview(numbers.tobytes() + b"\0" * 4)
    aligned = from_bytes(spec("FP32", 4), (4,), raw[:16])
    moved = from_bytes(spec("FP32", 4), (4,), memoryview(b"\0" + numbers.tobytes())[1:])

    assert aligned.base is not None
    assert not aligned.flags.writeable
    assert moved.flags.aligned
    assert moved.tolist() == numbers.tolist()


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ((2, 2), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        ((2, 2), [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ((1, 2, 1), [[[1], [2]]], [[[1], [2]]]),
        ((), [5], 5),
        ((), 5, 5),
        ((0,), [], []),
        ((0, 3), [], []),
        ((2, 0), [], [[], []]),
        ((2, 0), [[], []], [[], []]),
        ((2, 0, 3), [[], []], [[], []]),
    ],
)
def test_data_is_flat_or_nested_like_its_shape(shape: tuple[int, ...], data: object, expected: object) -> None:
    array = array_of("INT64", data, *shape)

    assert array.shape == shape
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("shape", "data", "says"),
    [
        ((2, 2), [1, 2, 3], "data holds 3 values, shape [2, 2] takes 4"),
        ((2, 2), [], "data holds 0 values, shape [2, 2] takes 4"),
        ((0, 2), [1], "data holds 1 values, shape [0, 2] takes 0"),
        ((2, 2), [[1, 2], [3]], "nested data must match shape [2, 2]: a list at depth 2 holds 1 items"),
        ((2, 2), [[1, 2, 3, 4]], "nested data must match shape [2, 2]: a list at depth 1 holds 1 items"),
        ((2, 2), [[1, 2], 3, 4], "nested data must match shape [2, 2]: a list at depth 1 holds 3 items"),
        ((2, 2), [[1, 2], 3], "data must be flat, or nested exactly like shape [2, 2], not in part"),
        ((2, 2, 1), [[1, 2], [3, 4]], "data must be flat, or nested exactly like shape [2, 2, 1], not in part"),
        ((2, 2), [[[1], [2]], [[3], [4]]], "data is nested deeper than shape [2, 2]"),
        ((2,), [[1], [2]], "data is nested deeper than shape [2]"),
        ((2,), [1, [2]], "data is nested deeper than shape [2]"),
        ((), [[5]], "data is nested deeper than shape []"),
        ((), [], "data holds 0 values, shape [] takes 1"),
        ((), {}, "value 0 of data is an object; INT64 takes integers"),
        ((1,), 5, "data must be a list, not 5"),
        ((1,), "5", "data must be a list, not the string '5'"),
        ((1,), {"0": 5}, "data must be a list, not an object"),
        ((1,), None, "data must be a list, not null"),
        ((2, 0), [[], [1]], "a list at depth 2 holds 1 items"),
        ((0, 2), [[], []], "a list at depth 1 holds 2 items"),
    ],
)
def test_data_of_another_structure_is_refused(shape: tuple[int, ...], data: object, says: str) -> None:
    assert says in refusal("INT64", data, *shape)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (None, "shape must be a list of non-negative integers, not null"),
        ("2,3", "shape must be a list of non-negative integers, not the string '2,3'"),
        ([2], "shape has 1 dimensions, the model takes 2: [-1, 3], where -1 is any size"),
        ([2, 3, 1], "shape has 3 dimensions, the model takes 2"),
        ([-1, 3], "shape must hold non-negative integers, not -1"),
        ([True, 3], "shape must hold non-negative integers, not true"),
        ([2.0, 3], "shape must hold non-negative integers, not 2.0"),
        (["2", 3], "shape must hold non-negative integers, not the string '2'"),
        ([[2], 3], "shape must hold non-negative integers, not a list"),
        ([2, 4], "shape [2, 4] does not fit the model's [-1, 3], where -1 is any size"),
        ([2**63, 3], "a dimension may be at most 67108864"),
        ([10**4000, 3], "a dimension may be at most 67108864"),
        ([ELEMENTS_LIMIT, 3], "shape [67108864, 3] holds more than 67108864 elements"),
    ],
)
def test_a_shape_that_does_not_fit_the_model_is_refused(shape: object, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_shape(spec("FP32", -1, 3), shape)

    assert says in str(refused.value)


def test_an_empty_dimension_hides_no_huge_one() -> None:
    with pytest.raises(InvalidRequest, match="holds more than 67108864 elements"):
        read_shape(spec("FP32", -1, -1, -1), [0, ELEMENTS_LIMIT, ELEMENTS_LIMIT])


@pytest.mark.parametrize("datatype", DATATYPES)
def test_nothing_is_allocated_for_a_claim(datatype: str) -> None:
    shape = (ELEMENTS_LIMIT,)
    tracemalloc.start()
    assert "data holds 1 values" in refusal(datatype, [1], *shape)
    with pytest.raises(InvalidRequest):
        from_bytes(spec(datatype, *shape), shape, memoryview(bytes(400)))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 100_000


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_exact_up_to_their_limits_and_never_wrap(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype].str)
    low, high = int(limits.min), int(limits.max)

    assert array_of(datatype, [low, high], 2).tolist() == [low, high]
    assert f"value 1 of data is {high + 1}; {datatype} takes {low} to {high}" in refusal(datatype, [0, high + 1], 2)
    assert f"value 0 of data is {low - 1}; {datatype} takes {low} to {high}" in refusal(datatype, [low - 1, 0], 2)
    assert f"{datatype} takes {low} to {high}" in refusal(datatype, [10**4000], 1)


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize(
    ("value", "named"),
    [(1.0, "1.0"), (True, "true"), (None, "null"), ("1", "the string '1'"), ({}, "an object"), (math.nan, "nan")],
)
def test_integers_are_nothing_but_integers(datatype: str, value: object, named: str) -> None:
    assert f"value 1 of data is {named}; {datatype} takes integers" in refusal(datatype, [0, value], 2)


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", None])
def test_booleans_are_nothing_but_true_and_false(value: object) -> None:
    assert array_of("BOOL", [True, False], 2).tolist() == [True, False]
    assert "BOOL takes true or false" in refusal("BOOL", [True, value], 2)


@pytest.mark.parametrize("datatype", FLOATS)
def test_floats_take_numbers_and_the_spellings_of_what_is_no_number(datatype: str) -> None:
    array = array_of(datatype, [1, -0.5, None, "NaN", "Infinity", "-Infinity"], 6)

    assert to_json(datatype, array)[0] == [1, -0.5, "NaN", "NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize(
    ("value", "named"),
    [("1.5", "the string '1.5'"), ("nan", "the string 'nan'"), ("inf", "the string 'inf'"), (True, "true"), ({}, "an")],
)
def test_floats_are_not_read_out_of_strings_or_booleans(datatype: str, value: object, named: str) -> None:
    assert f"value 2 of data is {named}" in refusal(datatype, [1.0, "NaN", value], 3)


@pytest.mark.parametrize(
    ("datatype", "largest", "too_large"),
    [
        ("FP16", 65504.0, 65520.0),
        ("BF16", 3.3895313892515355e38, 3.4e38),
        ("FP32", 3.4028234663852886e38, 3.5e38),
        ("FP64", 1.7976931348623157e308, json.loads("1e999")),
    ],
)
def test_a_finite_number_never_becomes_infinite(datatype: str, largest: float, too_large: float) -> None:
    assert to_json(datatype, array_of(datatype, [largest, -largest], 2))[0] == [largest, -largest]
    for value in (too_large, -too_large, 10**400):
        assert f"a number beyond the range of {datatype}" in refusal(datatype, [value, "Infinity"], 2)


def test_strings_are_utf8_or_base64() -> None:
    assert array_of("BYTES", ["", "grün", "\0"], 3).tolist() == [b"", "grün".encode(), b"\0"]
    assert array_of("BYTES", ["", "/wA="], 2, base64=True).tolist() == [b"", b"\xff\0"]


@pytest.mark.parametrize("text", ["/wA", "/w A=", "/wA=\n", "_wA=", "ü", "\ud800", "/wA=garbage"])
def test_base64_is_exact(text: str) -> None:
    assert "holds a string that is not base64" in refusal("BYTES", [text], 1, base64=True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1, "value 0 of data is 1; BYTES takes strings"),
        (None, "value 0 of data is null; BYTES takes strings"),
        ("\ud800", "data holds a lone surrogate, which is no text"),
    ],
)
def test_strings_are_nothing_but_text(value: object, says: str) -> None:
    assert says in refusal("BYTES", [value], 1)


def test_one_element_that_is_no_text_turns_the_whole_output_into_base64() -> None:
    assert to_json("BYTES", np.array([b"ab", b"\xff"], np.object_)) == (["YWI=", "/w=="], True)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "says"),
    [
        ("FP32", (2,), bytes(7), "shape [2] of FP32 is 8 bytes of binary data, not 7"),
        ("BOOL", (2,), b"\x01\x02", "binary BOOL data must hold bytes 0 and 1 only"),
        ("BYTES", (2,), bytes(7), "binary data of 7 bytes cannot hold the lengths of 2 BYTES elements"),
        ("BYTES", (2,), b"\x02\0\0\0abcd", "binary data ends within the length of BYTES element 1 of 2"),
        ("BYTES", (1,), b"\x03\0\0\0ab", "BYTES element 0 claims 3 bytes, 2 are left"),
        ("BYTES", (1,), b"\xff\xff\xff\xff", "BYTES element 0 claims 4294967295 bytes, 0 are left"),
        ("BYTES", (1,), b"\x01\0\0\0ab", "binary data has 1 bytes after its 1 BYTES elements"),
        ("BYTES", (0,), b"a", "binary data has 1 bytes after its 0 BYTES elements"),
    ],
)
def test_binary_data_of_another_size_is_refused(datatype: str, shape: tuple[int, ...], raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_bytes(spec(datatype, *shape), shape, memoryview(raw))

    assert says in str(refused.value)
