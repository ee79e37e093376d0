"""Tensors from and to JSON and binary data, against numpy."""

import json
import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from functions.core.errors import InvalidRequest
from functions.core.protocol.fast_decoder import read_list
from functions.core.protocol.signature import DATATYPES, TensorSpec
from functions.core.protocol.tensors import (
    ELEMENTS_MAX,
    STRUCT_CODES,
    Tensor,
    from_bytes,
    from_json,
    read_shape,
    to_bytes,
    to_json,
)
from tests.arrays import DTYPES, to_array, to_tensor

INTEGERS = [datatype for datatype in DATATYPES if "INT" in datatype]
FLOATS: dict[str, Any] = {
    "FP16": np.float16, "BF16": ml_dtypes.bfloat16, "FP32": np.float32, "FP64": np.float64
}  # fmt: skip
few = settings(max_examples=30, deadline=None)


def _near_a_tie(at: int) -> int:
    """Return the bits of an FP32 halfway between two BF16, or beside it."""
    return (at % 2**16) << 16 | 0x7FFF + at // 2**16


def spec(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec("x", datatype, shape)


def read(datatype: str, data: object, *shape: int, base64: bool = False) -> Tensor:
    return from_json(spec(datatype, *shape), shape, data, base64=base64)


def refusal(datatype: str, data: object, *shape: int, base64: bool = False) -> str:
    with pytest.raises(InvalidRequest) as refused:
        read(datatype, data, *shape, base64=base64)
    return str(refused.value)


def in_bulk(datatype: str, text: str, *shape: int) -> Tensor | None:
    """Read a list from its text, and check that `from_json` gives the same."""
    surrounded = b'{"data":' + text.encode() + b"}"
    tensor = read_list(spec(datatype, *shape), shape, surrounded, 8, len(surrounded) - 1)
    assert tensor is None or tensor == read(datatype, json.loads(text), *shape)
    return tensor


def numbers(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array of numbers, BF16 as ml_dtypes has it."""
    return to_array(tensor).view(FLOATS.get(tensor.datatype, DTYPES[tensor.datatype]))


def assert_same(got: Tensor, sent: Tensor) -> None:
    """Compare tensors bit by bit, except that all NaNs are equal."""
    assert (got.datatype, got.shape) == (sent.datatype, sent.shape)
    if got.datatype not in FLOATS:
        assert got == sent
        return
    with np.errstate(invalid="ignore"):  # a NaN that signals
        nan = np.isnan(numbers(sent))
        assert np.isnan(numbers(got)).tolist() == nan.tolist()
    assert numbers(got)[~nan].tobytes() == numbers(sent)[~nan].tobytes()


def elements(datatype: str) -> st.SearchStrategy[np.ndarray]:
    """Draw arrays of any shape and any value.

    Empty and scalar ones too, with every NaN, both zeros and subnormals.
    """
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    if datatype == "BYTES":
        return npst.arrays(np.object_, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    return npst.arrays(DTYPES[datatype], shapes)


def test_every_datatype_has_a_dtype_of_its_size_on_the_wire() -> None:
    assert DTYPES.keys() == DATATYPES.keys()
    assert all(DTYPES[name].itemsize == size for name, size in DATATYPES.items() if size)


def test_every_datatype_of_numbers_has_a_struct_code() -> None:
    assert STRUCT_CODES.keys() == DATATYPES.keys() - {"BYTES"}


# --- round trips


@pytest.mark.parametrize("datatype", DATATYPES)
def test_values_equal_those_of_numpy(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        tensor = to_tensor(array, datatype)
        with np.errstate(invalid="ignore"):  # a NaN that signals
            expected = numbers(tensor).astype(np.float64) if datatype == "BF16" else numbers(tensor)

        assert tensor.size == array.size
        assert list(map(repr, tensor.values())) == list(
            map(repr, expected.ravel().tolist())
        )  # types and -0.0, too

    check()


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_16_bit_float_equals_that_of_numpy(datatype: str) -> None:
    sent = Tensor(datatype, (2**16,), np.arange(2**16, dtype=np.uint16).tobytes())
    with np.errstate(invalid="ignore"):  # a NaN that signals
        expected = numbers(sent).astype(np.float64)
    values, base64 = to_json(sent)

    np.testing.assert_array_equal(sent.values(), expected)
    assert (
        np.signbit(sent.values())[~np.isnan(expected)].tolist()
        == np.signbit(expected)[~np.isnan(expected)].tolist()
    )
    assert not base64
    assert_same(read(datatype, values, 2**16), sent)
    assert values.count("NaN") == np.count_nonzero(np.isnan(expected))
    assert (values.count("Infinity"), values.count("-Infinity")) == (1, 1)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tensors_survive_json(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        sent = to_tensor(array, datatype)
        values, base64 = to_json(sent)
        text = json.dumps(values, allow_nan=False)

        assert_same(read(datatype, json.loads(text), *array.shape, base64=base64), sent)

    check()


@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype != "BYTES"])
def test_tensors_survive_json_text_read_in_bulk(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        sent = to_tensor(array, datatype)
        values, _ = to_json(sent)
        back = in_bulk(datatype, json.dumps(values), *array.shape)

        if array.shape and not any(type(value) is str for value in values):
            assert back is not None
            assert_same(back, sent)
        else:
            assert back is None

    check()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tensors_survive_binary_data(datatype: str) -> None:
    @few
    @given(elements(datatype))
    def check(array: np.ndarray) -> None:
        sent = to_tensor(array, datatype)
        raw = to_bytes(sent)
        back = from_bytes(spec(datatype, *array.shape), array.shape, memoryview(raw))

        assert back == sent
        assert to_bytes(back) == raw
        assert len(raw) == (
            sum(4 + len(text) for text in sent.data) if datatype == "BYTES" else array.nbytes
        )

    check()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 0, 3)])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_tensor_may_be_empty(datatype: str, shape: tuple[int, ...]) -> None:
    empty = Tensor(datatype, shape, [] if datatype == "BYTES" else b"")

    assert (empty.size, empty.values()) == (0, [])
    assert read(datatype, [], *shape) == empty
    assert in_bulk(datatype, "[]", *shape) == (None if datatype == "BYTES" else empty)
    assert from_bytes(spec(datatype, *shape), shape, memoryview(b"")) == empty
    assert (to_json(empty), to_bytes(empty)) == (([], False), b"")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.floats(-7e4, 7e4)
        | st.integers(-(10**6), 10**6)
        | st.integers(-(2**1030), 2**1030),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(sorted(FLOATS)),
)
def test_numbers_are_rounded_as_numpy_does_or_refused(sent: list[float], datatype: str) -> None:
    """Check rounding to FP64, then to the datatype; BF16 through FP32, as ml_dtypes does."""
    with np.errstate(over="ignore"):
        wide = np.array([float(n) if abs(n) < 2**1024 - 2**970 else math.inf for n in sent])
        rounded = (wide.astype(np.float32) if datatype == "BF16" else wide).astype(FLOATS[datatype])
    tensor = in_bulk(datatype, json.dumps(sent), len(sent))

    if np.isfinite(rounded).all():
        assert read(datatype, sent, len(sent)).data == rounded.tobytes()
        assert tensor is not None
    else:
        assert f"a number beyond the range of {datatype}" in refusal(datatype, sent, len(sent))
        assert tensor is None


@settings(max_examples=200, deadline=None)
@given(
    npst.arrays(
        np.uint32,
        16,
        elements=st.integers(0, 2**32 - 1) | st.integers(0, 3 * 2**16 - 1).map(_near_a_tie),
    )
)
def test_bf16_rounds_as_ml_dtypes_does(bits: np.ndarray) -> None:
    sent = bits.view(np.float32)
    sent = sent[np.isfinite(sent)]
    with np.errstate(over="ignore"):
        expected = sent.astype(ml_dtypes.bfloat16)
    kept = np.isfinite(expected)
    if not kept.all():
        assert "beyond the range of BF16" in refusal("BF16", sent.tolist(), sent.size)
        assert in_bulk("BF16", json.dumps(sent.tolist()), sent.size) is None

    for tensor in (
        read("BF16", sent[kept].tolist(), int(kept.sum())),
        in_bulk("BF16", json.dumps(sent[kept].tolist()), int(kept.sum())),
    ):
        assert tensor is not None
        assert tensor.data == expected[kept].tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_data_is_copied_from_any_alignment(datatype: str) -> None:
    sent = to_tensor(
        np.array([b"one", b"", b"three", b"\xff"], np.object_)
        if datatype == "BYTES"
        else np.array([1, 0, 0, 1]).astype(DTYPES[datatype]),
        datatype,
    )
    raw = to_bytes(sent)
    for offset in range(9):
        body = bytearray(b"\x01" * offset + raw + b"\x01" * 8)
        tensor = from_bytes(spec(datatype, 4), (4,), memoryview(body)[offset : offset + len(raw)])
        body[:] = b"\xff" * len(body)
        body.clear()  # a BufferError if a view of it exists

        assert tensor == sent


# --- structure


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
def test_data_is_flat_or_nested_like_its_shape(
    shape: tuple[int, ...], data: object, expected: object
) -> None:
    tensor = read("INT64", data, *shape)

    assert tensor.shape == shape
    assert to_array(tensor).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "data", "says"),
    [
        ((2, 2), [1, 2, 3], "data holds 3 values, shape [2, 2] takes 4"),
        ((2, 2), [], "data holds 0 values, shape [2, 2] takes 4"),
        ((0, 2), [1], "data holds 1 values, shape [0, 2] takes 0"),
        (
            (2, 2),
            [[1, 2], [3]],
            "nested data must match shape [2, 2]: a list at depth 2 holds 1 items",
        ),
        (
            (2, 2),
            [[1, 2, 3, 4]],
            "nested data must match shape [2, 2]: a list at depth 1 holds 1 items",
        ),
        (
            (2, 2),
            [[1, 2], 3, 4],
            "nested data must match shape [2, 2]: a list at depth 1 holds 3 items",
        ),
        (
            (2, 2),
            [[1, 2], 3],
            "data must be flat, or nested exactly like shape [2, 2], not in part",
        ),
        (
            (2, 2, 1),
            [[1, 2], [3, 4]],
            "data must be flat, or nested exactly like shape [2, 2, 1], not in part",
        ),
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
def test_data_of_another_structure_is_refused(
    shape: tuple[int, ...], data: object, says: str
) -> None:
    assert says in refusal("INT64", data, *shape)
    assert type(data) is not list or in_bulk("INT64", json.dumps(data), *shape) is None


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
        ([ELEMENTS_MAX, 3], "shape [67108864, 3] holds more than 67108864 elements"),
    ],
)
def test_a_shape_that_does_not_fit_the_model_is_refused(shape: object, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_shape(spec("FP32", -1, 3), shape)

    assert says in str(refused.value)


def test_an_empty_dimension_does_not_hide_a_huge_one() -> None:
    with pytest.raises(InvalidRequest, match="holds more than 67108864 elements"):
        read_shape(spec("FP32", -1, -1, -1), [0, ELEMENTS_MAX, ELEMENTS_MAX])


@pytest.mark.parametrize("datatype", DATATYPES)
def test_nothing_is_allocated_for_a_declared_shape(datatype: str) -> None:
    shape = (ELEMENTS_MAX,)
    tracemalloc.start()
    assert "data holds 1 values" in refusal(datatype, [1], *shape)
    with pytest.raises(InvalidRequest):
        from_bytes(spec(datatype, *shape), shape, memoryview(bytes(400)))
    assert in_bulk(datatype, "[1]", *shape) is None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 100_000


# --- values


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_exact_up_to_their_limits_and_never_wrap(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype].str)
    low, high = int(limits.min), int(limits.max)

    for tensor in (read(datatype, [low, high], 2), in_bulk(datatype, f"[{low},{high}]", 2)):
        assert tensor is not None
        assert to_array(tensor).tolist() == tensor.values() == to_json(tensor)[0] == [low, high]
    assert f"value 1 of data is {high + 1}; {datatype} takes {low} to {high}" in refusal(
        datatype, [0, high + 1], 2
    )
    assert f"value 0 of data is {low - 1}; {datatype} takes {low} to {high}" in refusal(
        datatype, [low - 1, 0], 2
    )
    assert f"{datatype} takes {low} to {high}" in refusal(datatype, [10**4000], 1)
    assert f"{datatype} takes {low} to {high}" in refusal(datatype, [-(10**4000)], 1)
    for beyond in (low - 1, high + 1, 10**4000, -(10**4000)):
        assert in_bulk(datatype, f"[{beyond}]", 1) is None


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (1.0, "1.0"),
        (True, "true"),
        (None, "null"),
        ("1", "the string '1'"),
        ({}, "an object"),
        (math.nan, "nan"),
    ],
)
def test_integer_tensors_take_integers_only(datatype: str, value: object, named: str) -> None:
    assert f"value 1 of data is {named}; {datatype} takes integers" in refusal(
        datatype, [0, value], 2
    )
    assert in_bulk(datatype, json.dumps([0, value]), 2) is None


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", None])
def test_boolean_tensors_take_true_and_false_only(value: object) -> None:
    for tensor in (read("BOOL", [True, False], 2), in_bulk("BOOL", "[true, false]", 2)):
        assert tensor == Tensor("BOOL", (2,), b"\x01\x00")
    assert "BOOL takes true or false" in refusal("BOOL", [True, value], 2)
    assert in_bulk("BOOL", json.dumps([True, value]), 2) is None


@pytest.mark.parametrize("byte", range(2, 256))
def test_binary_booleans_take_0_and_1_only(byte: int) -> None:
    with pytest.raises(InvalidRequest, match="binary BOOL data must hold bytes 0 and 1 only"):
        from_bytes(spec("BOOL", 3), (3,), memoryview(bytes([1, 0, byte])))


@pytest.mark.parametrize("datatype", FLOATS)
def test_float_tensors_take_null_and_names_of_nan_and_infinity(datatype: str) -> None:
    tensor = read(datatype, [1, -0.5, None, "NaN", "Infinity", "-Infinity"], 6)

    assert to_json(tensor)[0] == [1, -0.5, "NaN", "NaN", "Infinity", "-Infinity"]
    assert np.isnan(numbers(tensor)).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize(
    "spelling", ["null", "NaN", "Infinity", "-Infinity", '"NaN"', '"Infinity"', "true", "false"]
)
def test_words_are_not_read_as_floats_in_bulk(datatype: str, spelling: str) -> None:
    assert in_bulk(datatype, f"[0, {spelling}]", 2) is None


@pytest.mark.parametrize("datatype", FLOATS)
def test_zeros_keep_their_sign(datatype: str) -> None:
    size = DATATYPES[datatype] or 0
    zeros = Tensor(datatype, (2,), bytes(size) + bytes(size - 1) + b"\x80")

    assert read(datatype, [0.0, -0.0], 2) == zeros
    assert in_bulk(datatype, "[0.0,-0.0]", 2) == zeros
    assert list(map(repr, to_json(zeros)[0])) == ["0.0", "-0.0"]
    assert read(datatype, [1e-400, -1e-400], 2) == zeros  # too small for any other float
    assert in_bulk(datatype, "[1e-400,-1e-400]", 2) == zeros


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("1.5", "the string '1.5'"),
        ("nan", "the string 'nan'"),
        ("inf", "the string 'inf'"),
        (True, "true"),
        ({}, "an"),
    ],
)
def test_float_tensors_take_no_other_strings_and_no_booleans(
    datatype: str, value: object, named: str
) -> None:
    assert f"value 2 of data is {named}" in refusal(datatype, [1.0, "NaN", value], 3)


@pytest.mark.parametrize(
    ("datatype", "largest", "rounded_to_it", "too_large"),
    [  # rounds down below half of the next step; BF16 is rounded from FP32
        ("FP16", 65504.0, "65519.999", "65520"),
        ("FP16", 65504.0, "65519.99999999999", "65520.0"),
        ("FP16", 65504.0, "65519", "1e39"),
        ("BF16", 3.3895313892515355e38, "3.3961773292304601e38", "3.3961775292304601e38"),
        ("BF16", 3.3895313892515355e38, "3.39e38", "1e39"),
        ("FP32", 3.4028234663852886e38, "3.4028235677973362e38", "3.4028235677973366e38"),
        ("FP32", 3.4028234663852886e38, "3.4028235e38", "1e39"),
        ("FP32", 3.4028234663852886e38, "3402823567797336" + "0" * 23,
         "340282356779733661637539395458142568448"),
        ("FP64", 1.7976931348623157e308, "1.7976931348623158e308", "1.7976931348623159e308"),
        ("FP64", 1.7976931348623157e308, "17976931348623158" + "0" * 292,
         "17976931348623159" + "0" * 292),
    ],
)  # fmt: skip
def test_a_finite_number_never_becomes_infinite(
    datatype: str, largest: float, rounded_to_it: str, too_large: str
) -> None:
    kept = Tensor(datatype, (2,), np.array([largest, -largest]).astype(FLOATS[datatype]).tobytes())
    text = f"[{rounded_to_it},-{rounded_to_it}]"

    assert kept.values() == to_json(kept)[0] == [largest, -largest]
    assert read(datatype, [largest, -largest], 2) == kept
    assert read(datatype, json.loads(text), 2) == kept
    assert in_bulk(datatype, text, 2) == kept
    for value in (too_large, "1e309", "1e400", "1e999", "1" + "0" * 400):
        for sign in ("", "-"):
            bad = f"[0,{sign}{value}]"
            assert f"a number beyond the range of {datatype}" in refusal(
                datatype, json.loads(bad), 2
            )
            assert f"a number beyond the range of {datatype}" in refusal(
                datatype, [*json.loads(bad), "Infinity"], 3
            )
            assert in_bulk(datatype, bad, 2) is None


LARGEST = 1.7976931348623157e308


@pytest.mark.parametrize(
    ("sent", "written"),
    [  # the sum may be finite, infinite or NaN regardless of the values
        ([LARGEST, LARGEST], [LARGEST, LARGEST]),
        ([-LARGEST, -LARGEST, 1.0], [-LARGEST, -LARGEST, 1.0]),
        ([LARGEST, LARGEST, -LARGEST, -LARGEST], [LARGEST, LARGEST, -LARGEST, -LARGEST]),
        ([LARGEST, LARGEST, -math.inf], [LARGEST, LARGEST, "-Infinity"]),
        ([math.inf, -math.inf], ["Infinity", "-Infinity"]),
        ([math.inf, -LARGEST, -LARGEST], ["Infinity", -LARGEST, -LARGEST]),
        ([0.0] * 99 + [math.nan] + [0.0] * 99, [0.0] * 99 + ["NaN"] + [0.0] * 99),
        ([math.nan, math.inf, math.nan], ["NaN", "Infinity", "NaN"]),
        ([math.inf], ["Infinity"]),
        ([-math.nan], ["NaN"]),
    ],
)
def test_only_nan_and_infinities_are_written_as_text(
    sent: list[float], written: list[object]
) -> None:
    assert to_json(to_tensor(np.array(sent))) == (written, False)


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("at", [0, 1, 4095, 8191])
@pytest.mark.parametrize(
    ("value", "name"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]
)
def test_one_nan_or_infinity_among_many_values_is_found(
    datatype: str, at: int, value: float, name: str
) -> None:
    largest = float(ml_dtypes.finfo(FLOATS[datatype]).max)
    array = np.where(np.arange(8192) % 2, largest, -largest).astype(FLOATS[datatype])
    array[at] = value
    values, _ = to_json(Tensor(datatype, (8192,), array.tobytes()))

    assert values[at] == name
    assert (
        values[:at] + values[at + 1 :]
        == ([-largest, largest] * 4096)[:at] + ([-largest, largest] * 4096)[at + 1 :]
    )


def test_strings_are_utf8_or_base64() -> None:
    assert read("BYTES", ["", "grün", "\0"], 3) == Tensor(
        "BYTES", (3,), [b"", "grün".encode(), b"\0"]
    )
    assert read("BYTES", ["", "/wA="], 2, base64=True) == Tensor("BYTES", (2,), [b"", b"\xff\0"])


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
def test_bytes_tensors_take_text_only(value: object, says: str) -> None:
    assert says in refusal("BYTES", [value], 1)


def test_one_element_without_utf8_makes_the_output_base64() -> None:
    assert to_json(Tensor("BYTES", (2,), [b"ab", b"\xff"])) == (["YWI=", "/w=="], True)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "says"),
    [
        ("FP32", (2,), bytes(7), "shape [2] of FP32 is 8 bytes of binary data, not 7"),
        ("BOOL", (2,), b"\x01\x02", "binary BOOL data must hold bytes 0 and 1 only"),
        (
            "BYTES",
            (2,),
            bytes(7),
            "binary data of 7 bytes cannot hold the lengths of 2 BYTES elements",
        ),
        (
            "BYTES",
            (2,),
            b"\x02\0\0\0abcd",
            "binary data ends within the length of BYTES element 1 of 2",
        ),
        ("BYTES", (1,), b"\x03\0\0\0ab", "BYTES element 0 claims 3 bytes, 2 are left"),
        ("BYTES", (1,), b"\xff\xff\xff\xff", "BYTES element 0 claims 4294967295 bytes, 0 are left"),
        ("BYTES", (1,), b"\x01\0\0\0ab", "binary data has 1 bytes after its 1 BYTES elements"),
        ("BYTES", (0,), b"a", "binary data has 1 bytes after its 0 BYTES elements"),
    ],
)
def test_binary_data_of_another_size_is_refused(
    datatype: str, shape: tuple[int, ...], raw: bytes, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_bytes(spec(datatype, *shape), shape, memoryview(raw))

    assert says in str(refused.value)
