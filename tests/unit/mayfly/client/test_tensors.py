"""Tensors to and from Python, with numpy and without."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mayfly.client.errors import InvalidInput, ServerError
from mayfly.client.tensors import codec, numpy_codec, plain_codec
from mayfly.client.tensors.datatypes import ALL, BY_NAME
from mayfly.client.tensors.signature import TensorSpec

Encode = Callable[[TensorSpec, Any], tuple[tuple[int, ...], Any]]
ENCODERS = [numpy_codec.encode, plain_codec.encode]
BOTH = pytest.mark.parametrize("encode", ENCODERS, ids=["numpy", "plain"])
# Values that each datatype holds exactly, at its limits.
EXACT: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP16": [65504.0, 2.0**-24, float("inf")],
    "BF16": [1.0, -2.5, float("-inf")],
    "FP32": [1.5, 2.0**-149, float("-inf")],
    "FP64": [0.1, 2.0**-1074, float("inf")],
    "BYTES": [b"\x00\xff", b""],
}


def spec(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec("x", datatype, shape or (-1,))


def decoded(plain: bool, datatype: str, shape: tuple[int, ...], content: bytes) -> Any:
    if plain:
        return plain_codec.decode(datatype, shape, memoryview(content))
    array = numpy_codec.decode(datatype, BY_NAME[datatype].dtype, shape, memoryview(content))
    return array.tolist()


def test_every_datatype_has_exact_values() -> None:
    assert set(EXACT) == {datatype.name for datatype in ALL}


@BOTH
@pytest.mark.parametrize("datatype", EXACT)
def test_values_survive_the_wire(encode: Encode, datatype: str) -> None:
    shape, content = encode(spec(datatype), EXACT[datatype])

    assert shape == (len(EXACT[datatype]),)
    for plain in (False, True):
        assert decoded(plain, datatype, shape, bytes(content)) == EXACT[datatype]


@pytest.mark.parametrize("datatype", EXACT)
def test_numpy_and_lists_write_the_same_bytes(datatype: str) -> None:
    values = [EXACT[datatype]] * 2
    with_numpy, plain = (encode(spec(datatype, -1, -1), values) for encode in ENCODERS)

    assert (with_numpy[0], bytes(with_numpy[1])) == (plain[0], bytes(plain[1]))


@BOTH
def test_bfloat16_is_rounded_to_nearest_even(encode: Encode) -> None:
    values = [1.0, 1.00390625, 1.01171875, 3.4e38, float("nan"), -1e-45]
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16)
    _, content = encode(spec("BF16"), values)

    assert np.frombuffer(content, np.uint16).tolist() == expected.view(np.uint16).tolist()


def test_bfloat16_arrays_of_ml_dtypes_are_accepted() -> None:
    array = np.array([1.0, -2.5], ml_dtypes.bfloat16)

    assert bytes(numpy_codec.encode(spec("BF16"), array)[1]) == array.tobytes()
    assert bytes(numpy_codec.encode(spec("FP32"), array)[1]) == array.astype("f4").tobytes()


@BOTH
@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [1, 2]),
        ("FP32", [0.1, 1e-60]),  # rounding of floats is no change
        ("FP32", [True, False]),
        ("INT64", [1.0, -2.0]),
        ("UINT8", [255.0]),
        ("BOOL", [1, 0]),
        ("FP16", [1, 2048]),
    ],
)
def test_a_safe_cast_is_made(encode: Encode, datatype: str, values: list[Any]) -> None:
    _, content = encode(spec(datatype), values)

    expected = np.array(values).astype(BY_NAME[datatype].dtype)
    assert bytes(content) == expected.tobytes()


@BOTH
@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", [1.0, 1e300]),
        ("FP16", [1e5]),
        ("BF16", [1e39]),
        ("FP32", [2**24 + 1]),
        ("FP64", [2**53 + 1]),
        ("INT64", [0.5]),
        ("INT64", [float("nan")]),
        ("INT64", [1e19]),
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("UINT64", [-1]),
        ("INT64", [2**64]),
        ("BOOL", [2]),
        ("FP32", ["1"]),
        ("FP32", [None]),
        ("BYTES", [1]),
        ("FP32", [[1.0], [1.0, 2.0]]),
        ("FP32", [1.0, [2.0]]),
    ],
)
def test_a_cast_that_changes_a_value_is_refused(
    encode: Encode, datatype: str, values: list[Any]
) -> None:
    with pytest.raises(InvalidInput, match="input 'x'") as caught:
        encode(spec(datatype), values)

    assert caught.value.input == "x"


@BOTH
def test_texts_are_sent_as_utf8(encode: Encode) -> None:
    shape, content = encode(spec("BYTES", -1, 2), [["é", b"a"]])

    assert shape == (1, 2)
    assert bytes(content) == b"\x02\x00\x00\x00\xc3\xa9\x01\x00\x00\x00a"


@BOTH
@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        ([1.0, 2.0, 3.0], (-1, 3), (1, 3)),
        (5.0, (-1, 1), (1, 1)),
        ([[0.0] * 4] * 4, (-1, 1, 4, 4), (1, 1, 4, 4)),
        ([], (-1,), (0,)),
    ],
)
def test_leading_dimensions_of_one_need_not_be_written(
    encode: Encode, value: Any, declared: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert encode(spec("FP32", *declared), value)[0] == expected


@BOTH
@pytest.mark.parametrize(
    ("value", "declared"),
    [([1.0, 2.0], (-1, 3)), ([[[1.0]]], (-1, 1)), ([[1.0, 2.0, 3.0]] * 2, (1, 3))],
)
def test_another_shape_is_refused(encode: Encode, value: Any, declared: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"does not fit \["):
        encode(spec("FP32", *declared), value)


def test_arrays_of_any_layout_and_byte_order_are_sent_in_order() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    expected = np.arange(6, dtype="<f4").tobytes()

    assert bytes(numpy_codec.encode(spec("FP32", 2, 3), array)[1]) == expected
    turned = np.asfortranarray(array)
    assert bytes(numpy_codec.encode(spec("FP32", 2, 3), turned)[1]) == expected


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES", "BOOL"])
def test_an_answer_is_an_array_that_can_be_changed(datatype: str) -> None:
    _, content = plain_codec.encode(spec(datatype), EXACT[datatype])
    answer = codec.decode(datatype, (len(EXACT[datatype]),), memoryview(bytes(content)))
    answer[0] = answer[1]

    assert answer[0] == answer[1]


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("FP32", (2,), b"1234"),
        ("BYTES", (1,), b"\x05\x00\x00\x00abc"),
        ("BYTES", (1,), b"\x01\x00\x00\x00ab"),
        ("BYTES", (2,), b"\x01\x00\x00\x00a"),
        ("FP8", (1,), b"a"),
    ],
)
def test_an_answer_of_another_size_is_an_error(
    datatype: str, shape: tuple[int, ...], content: bytes
) -> None:
    with pytest.raises(ServerError):
        codec.decode(datatype, shape, memoryview(content))


def test_without_numpy_answers_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "has_numpy", lambda: False)
    shape, content = codec.encode(spec("FP32", -1, 2), [[1, 2], [3, 4]])

    assert codec.decode("FP32", shape, memoryview(bytes(content))) == [[1.0, 2.0], [3.0, 4.0]]


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    program = (
        "import sys, mayfly; mayfly.Mayfly('http://127.0.0.1:1').model('m'); mayfly.errors\n"
        "print(sorted({'numpy', 'asyncio', 'boto3', 'click', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr
