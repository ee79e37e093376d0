"""Infer bodies on which real servers disagree.

Comments name their behaviour: Triton 2.51, MLServer 1.7, KServe 0.21, OpenVINO Model Server (OVMS).
"""

import gzip
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferResult

from functions.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from functions.core.protocol.infer_reply import InferReply, encode_infer
from functions.core.protocol.infer_request import HEADER, InferRequest, decode_infer
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.serving.compression import compress, inflate
from tests.arrays import to_array, to_tensor

LIMIT = 1_000_000


def model(datatype: str = "FP32", size: int = 2) -> Signature:
    """Return a signature with input `a` and outputs `y` and `z` of one datatype.

    Each row has `size` values.
    """
    shape = (-1, size)
    return Signature(
        (TensorSpec("a", datatype, shape),),
        (TensorSpec("y", datatype, shape), TensorSpec("z", datatype, shape)),
    )


def body(
    *data: object, datatype: str = "FP32", shape: object = (1, 2), **more: object
) -> dict[str, Any]:
    return {
        "inputs": [{"name": "a", "datatype": datatype, "shape": shape, "data": list(data)}],
        **more,
    }


def binary_body(size: int, **more: object) -> dict[str, Any]:
    request = body(**more)
    request["inputs"][0] |= {"parameters": {"binary_data_size": size}}
    del request["inputs"][0]["data"]
    return request


def decode(request: object, raw: bytes | None = None, *, datatype: str = "FP32") -> InferRequest:
    head = json.dumps(request).encode()
    return decode_infer(
        head + (raw or b""), None if raw is None else str(len(head)), model(datatype)
    )


def reply(values: np.ndarray, *, datatype: str = "FP32", **options: object) -> InferReply:
    blank = "" if datatype == "BYTES" else 0
    request = decode(body(blank, blank, datatype=datatype, **options), datatype=datatype)
    return encode_infer(
        request, dict.fromkeys("yz", to_tensor(values, datatype)), model(datatype), "m", 1
    )


ROW = np.array([[1, 2]], np.float32)


# --- malformed: 400, where Triton sends 500, MLServer and KServe 422 or 500


@pytest.mark.parametrize(
    "text", [b"{", b"", b"[]", b'{"inputs": 1}', b'{"inputs": [{"name": "a"}]}', b"{}"]
)
def test_bad_json_or_a_missing_field_is_refused(
    text: bytes,
) -> None:  # Triton 500, MLServer and KServe 422, OVMS 412
    with pytest.raises(InvalidRequest):
        decode_infer(text, None, model())


@pytest.mark.parametrize("data", [[], [1], [1, 2, 3]])
def test_a_wrong_element_count_is_refused(data: list[int]) -> None:  # 500 everywhere but OVMS
    with pytest.raises(
        InvalidRequest, match=rf"input 'a': data holds {len(data)} values, shape \[1, 2\] takes 2"
    ):
        decode(body(*data))


@pytest.mark.parametrize("datatype", ["FP64", "INT32", "fp32", "TYPE_FP32", "STRING", ""])
def test_a_wrong_datatype_is_refused(datatype: str) -> None:  # MLServer and KServe accept it
    with pytest.raises(
        InvalidRequest,
        match=f"input 'a': datatype is the string '{datatype}', the model takes 'FP32'",
    ):
        decode(body(1, 2, datatype=datatype))


def test_an_unknown_or_extra_input_is_refused() -> None:  # MLServer and KServe accept it
    request = body(1, 2)
    request["inputs"].append({**request["inputs"][0], "name": "b"})

    with pytest.raises(InvalidRequest, match="unknown input 'b': the model has 'a'"):
        decode(request)


def test_an_unknown_requested_output_is_refused() -> None:  # MLServer ignores it
    with pytest.raises(InvalidRequest, match="unknown output 'x': the model has 'y', 'z'"):
        decode(body(1, 2, outputs=[{"name": "x"}]))


def test_a_duplicate_input_is_refused() -> None:  # MLServer and KServe accept it
    request = body(1, 2)
    request["inputs"] *= 2

    with pytest.raises(InvalidRequest, match="input 'a' is given twice"):
        decode(request)


def test_a_duplicate_output_is_refused() -> None:  # 200 in Triton 2.51, 400 in its next version
    with pytest.raises(InvalidRequest, match="output 'y' is given twice"):
        decode(body(1, 2, outputs=[{"name": "y"}, {"name": "y"}]))


# --- outputs


def test_an_empty_list_of_outputs_means_all() -> None:
    assert [output.name for output in decode(body(1, 2, outputs=[])).outputs] == ["y", "z"]


def test_outputs_come_in_the_order_of_the_model() -> None:  # KServe: of the request
    document = json.loads(reply(ROW, outputs=[{"name": "z"}, {"name": "y"}]).body)

    assert [output["name"] for output in document["outputs"]] == ["y", "z"]


def test_a_named_output_with_binary_data_output_only_is_json() -> (
    None
):  # as Triton and KServe; OVMS: binary
    answer = reply(ROW, outputs=[{"name": "y"}], parameters={"binary_data_output": True})

    assert answer.header_length is None
    assert json.loads(answer.body)["outputs"][0]["data"] == [1, 2]


# --- data


def test_nested_data_is_accepted() -> None:
    assert to_array(decode(body([1, 2], [3, 4], shape=[2, 2])).inputs["a"]).tolist() == [
        [1, 2],
        [3, 4],
    ]


@pytest.mark.parametrize(
    "data", [[[1, 2, 3], [4]], [[1], [2, 3, 4]], [[1, 2], 3, 4], [[[1, 2, 3, 4]]]]
)
def test_ragged_data_is_refused(
    data: list[Any],
) -> None:  # Triton counts only; MLServer and KServe 500
    with pytest.raises(InvalidRequest, match="input 'a': "):
        decode(body(*data, shape=[2, 2]))


@pytest.mark.parametrize("size", [-1, "1", 1.0, True, None])
def test_a_negative_string_or_float_in_a_shape_is_refused(
    size: object,
) -> None:  # Triton 500; others coerce
    with pytest.raises(
        InvalidRequest, match="input 'a': shape must hold non-negative integers, not "
    ):
        decode(body(1, 2, shape=[size, 2]))


@pytest.mark.parametrize("value", ["1", "1e0", "", True, False])
def test_numeric_strings_and_booleans_are_refused_as_floats(
    value: object,
) -> None:  # Triton 500; MLServer and KServe coerce
    with pytest.raises(
        InvalidRequest, match=r"input 'a': value 1 of data is .*; FP32 takes numbers"
    ):
        decode(body(1, value))


@pytest.mark.parametrize(
    ("datatype", "value"), [("BOOL", 1), ("BOOL", 0), ("INT32", 1.0), ("UINT8", 1e2)]
)
def test_numbers_are_refused_as_bool_and_floats_as_integers(
    datatype: str, value: float
) -> None:  # Triton 500
    with pytest.raises(
        InvalidRequest, match=f"input 'a': value 0 of data is {value}; {datatype} takes "
    ):
        decode(body(value, value, datatype=datatype), datatype=datatype)


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 300), ("UINT8", 256), ("UINT8", -1), ("INT64", 2**63)]
)
def test_integer_overflow_is_refused(
    datatype: str, value: int
) -> None:  # Triton wraps 300 to 44 and answers 200
    with pytest.raises(
        InvalidRequest, match=f"input 'a': value 1 of data is {value}; {datatype} takes "
    ):
        decode(body(0, value, datatype=datatype), datatype=datatype)


@pytest.mark.parametrize(
    ("datatype", "values"), [("UINT64", [2**64 - 1, 2**53 + 1]), ("INT64", [-(2**63), 2**63 - 1])]
)
def test_the_limits_of_64_bit_integers_are_exact(datatype: str, values: list[int]) -> None:
    request = decode(body(*values, datatype=datatype), datatype=datatype)
    outputs = {"y": request.inputs["a"], "z": request.inputs["a"]}
    answer = encode_infer(request, outputs, model(datatype), "m", 1)

    assert request.inputs["a"].values() == values
    assert json.loads(answer.body)["outputs"][0]["data"] == values


def test_nan_and_infinity_are_returned_as_strings() -> (
    None
):  # Triton: bare tokens, no JSON; MLServer and KServe: null
    answer = reply(np.array([[math.nan, math.inf], [-math.inf, 0]], np.float32))

    assert json.loads(answer.body)["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity", 0]
    np.testing.assert_array_equal(
        InferResult.from_response_body(answer.body).as_numpy("y"),
        [[math.nan, math.inf], [-math.inf, 0]],
    )


@pytest.mark.parametrize(
    ("spelling", "value"), [("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf)]
)
def test_bare_nan_and_infinity_are_accepted(spelling: str, value: float) -> None:  # MLServer 422
    text = json.dumps(body(0, "?")).replace('"?"', spelling).encode()

    np.testing.assert_array_equal(
        to_array(decode_infer(text, None, model()).inputs["a"]), [[0, value]]
    )


def test_bytes_that_are_not_utf8_are_returned_as_base64() -> (
    None
):  # Triton: broken JSON; KServe 500
    answer = reply(
        np.array([[b"\xff", b"ok"]], np.object_), datatype="BYTES", outputs=[{"name": "y"}]
    )

    assert json.loads(answer.body)["outputs"] == [
        {"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["/w==", "b2s="],
         "parameters": {"content_type": "base64"}}
    ]  # fmt: skip


# --- id


@pytest.mark.parametrize("value", [1, True, []])
def test_an_id_that_is_not_a_string_is_refused(
    value: object,
) -> None:  # Triton 500, MLServer and KServe 422
    with pytest.raises(InvalidRequest, match="id must be a string, not "):
        decode(body(1, 2, id=value))


def test_the_id_is_returned_only_if_one_was_sent() -> (
    None
):  # MLServer makes one up; KServe 500 without one
    assert "id" not in json.loads(reply(ROW).body)
    assert json.loads(reply(ROW, id="").body)["id"] == ""


# --- the binary tensor extension


def test_binary_tensors_are_accepted() -> None:  # not by MLServer
    assert to_array(decode(binary_body(8), raw=ROW.tobytes()).inputs["a"]).tolist() == [[1, 2]]


def test_binary_without_the_header_is_refused() -> None:
    head = json.dumps(binary_body(8)).encode()

    for text in (head, head + ROW.tobytes(), head + b"\xff" * 8):
        with pytest.raises(InvalidRequest, match=HEADER):
            decode_infer(text, None, model())


@pytest.mark.parametrize("header", ["100000", "-1", "x", "", "1.0"])
def test_a_header_too_large_negative_or_not_numeric_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest, match=f"header {HEADER} "):
        decode_infer(json.dumps(body(1, 2)).encode(), header, model())


def test_a_header_too_small_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON: "):
        decode_infer(json.dumps(body(1, 2)).encode(), "10", model())


@pytest.mark.parametrize("request_", [binary_body(8), body(1, 2)], ids=["binary", "JSON"])
def test_extra_bytes_after_the_tensors_are_refused(request_: object) -> None:  # KServe ignores them
    with pytest.raises(InvalidRequest, match=r"the body has .* bytes after the last tensor"):
        decode(request_, raw=ROW.tobytes() + b"\0")


def test_data_and_binary_data_size_together_are_refused() -> None:  # KServe: data wins
    request = body(1, 2)
    request["inputs"][0]["parameters"] = {"binary_data_size": 8}

    with pytest.raises(
        InvalidRequest, match=r"input 'a': send either data or .* binary_data_size, not both"
    ):
        decode(request, raw=ROW.tobytes())


def test_neither_data_nor_binary_data_size_is_refused() -> None:  # OVMS computes it from the shape
    request = body()
    del request["inputs"][0]["data"]

    with pytest.raises(
        InvalidRequest, match="input 'a': send either data or the parameter binary_data_size"
    ):
        decode(request, raw=ROW.tobytes())


def test_an_empty_binary_output_needs_no_header_and_is_json() -> None:  # as Triton
    request = decode(binary_body(0, shape=[0, 2], parameters={"binary_data_output": True}), raw=b"")
    empty = to_tensor(np.empty((0, 2), np.float32))
    answer = encode_infer(request, {"y": empty, "z": empty}, model(), "m", 1)

    assert request.inputs["a"].shape == (0, 2)
    assert answer.header_length is None
    assert json.loads(answer.body)["outputs"][0]["parameters"] == {"binary_data_size": 0}


# --- compression


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_request_counts_its_header_uncompressed(
    encoding: str, pack: Any
) -> None:  # KServe 400
    head = json.dumps(binary_body(8)).encode()
    plain = inflate(pack(head + ROW.tobytes()), encoding, LIMIT)

    assert to_array(decode_infer(plain, str(len(head)), model()).inputs["a"]).tolist() == [[1, 2]]


def test_raw_deflate_is_accepted() -> None:  # fails in Triton
    assert inflate(zlib.compress(b"{}" * 9, wbits=-15), "deflate", LIMIT) == b"{}" * 9


def test_an_unsupported_encoding_is_refused() -> None:  # Triton 501; MLServer and KServe ignore it
    with pytest.raises(UnsupportedEncoding):
        inflate(b"{}", "br", LIMIT)


def test_a_reply_is_compressed_only_as_the_client_accepts() -> None:
    assert compress(b"a" * 99, None) == (b"a" * 99, None)
    assert compress(b"a" * 99, "gzip;q=0.2, deflate;q=0.9")[1] == "deflate"


def test_a_body_over_the_limit_is_refused_compressed_or_not() -> None:  # Triton: 64 MiB
    with pytest.raises(PayloadTooLarge):
        inflate(bytes(LIMIT + 1), None, LIMIT)
    with pytest.raises(PayloadTooLarge):
        inflate(gzip.compress(bytes(LIMIT + 1)), "gzip", LIMIT)
