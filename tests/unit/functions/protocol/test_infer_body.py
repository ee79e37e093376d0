"""Infer requests and replies against tritonclient, and refusals of bad requests."""

import copy
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from functions.core.errors import InvalidRequest, PayloadTooLarge
from functions.core.protocol import infer_reply, tensors
from functions.core.protocol.fast_decoder import FastDecoder
from functions.core.protocol.infer_reply import REPLY_BYTES_MAX, InferReply, encode_infer
from functions.core.protocol.infer_request import (
    HEADER,
    InferRequest,
    RequestedOutput,
    RequestedOutputs,
    decode_infer,
)
from functions.core.protocol.signature import DATATYPES, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor, byte_size
from tests.arrays import DTYPES, to_array, to_tensor

few = settings(max_examples=25, deadline=None)

# Two inputs, two outputs: rows of three numbers and a name a row.
SIGNATURE = Signature(
    inputs=(TensorSpec("numbers", "FP32", (-1, 3)), TensorSpec("name", "BYTES", (-1,))),
    outputs=(
        TensorSpec("scores", "FP32", (-1, 2), labels=("cat", "dog")),
        TensorSpec("title", "BYTES", (-1,)),
    ),
)
OUTPUTS = {
    "scores": to_tensor(np.array([[0.25, 0.75]], np.float32)),
    "title": Tensor("BYTES", (1,), ["Mäuschen".encode()]),
}


def document(**changes: object) -> dict[str, Any]:
    """Return the smallest valid request in JSON, with other members."""
    inputs = [
        {"name": "numbers", "datatype": "FP32", "shape": [1, 3], "data": [1, 2.5, 3]},
        {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["Maus"]},
    ]
    return {"inputs": inputs, **changes}


def with_input(at: int = 0, drop: str = "", **changes: object) -> dict[str, Any]:
    """Return the smallest valid request with one of its inputs changed."""
    request = document()
    request["inputs"][at].update(changes)
    request["inputs"][at].pop(drop, None)
    return request


def binary_input(size: object, **changes: object) -> dict[str, Any]:
    return with_input(drop="data", parameters={"binary_data_size": size}, **changes)


def decode(
    request: object, raw: bytes | None = None, signature: Signature = SIGNATURE
) -> InferRequest:
    head = json.dumps(request).encode()
    return decode_infer(head + (raw or b""), None if raw is None else str(len(head)), signature)


def read(reply: InferReply) -> InferResult:
    return InferResult.from_response_body(reply.body, header_length=reply.header_length)


def triton_input(name: str, datatype: str, array: np.ndarray, *, binary: bool) -> InferInput:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(
        array.view(ml_dtypes.bfloat16) if datatype == "BF16" else array, binary_data=binary
    )
    return tensor


def triton_body(*inputs: InferInput, **more: object) -> tuple[bytes, str | None]:
    body, length = InferenceServerClient.generate_request_body(list(inputs), **more)
    return body, None if length is None else str(length)


def arrays(datatype: str, *, text: bool = False) -> st.SearchStrategy[np.ndarray]:
    """Draw any array of a datatype, empty and scalar ones too.

    With `text`, BYTES are UTF-8 only.
    """
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    if datatype == "BYTES":
        values = st.text(max_size=5).map(str.encode) if text else st.binary(max_size=9)
        return npst.arrays(np.object_, shapes, elements=values, fill=st.nothing())
    return npst.arrays(DTYPES[datatype], shapes)


def echo(datatype: str, rank: int) -> Signature:
    spec = TensorSpec("x", datatype, (-1,) * rank)
    return Signature((spec,), (spec,))


def assert_same(got: np.ndarray, sent: np.ndarray) -> None:
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    if sent.dtype == np.object_:
        assert got.tolist() == sent.tolist()
    else:
        np.testing.assert_array_equal(got, sent)  # NaN equals NaN
        if sent.dtype.kind == "f":
            number = ~np.isnan(sent)
            np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(sent)[number])


# --- tritonclient as client


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_tensors_of_tritonclient_arrive_bit_by_bit(datatype: str) -> None:
    @few
    @given(arrays(datatype))
    def check(array: np.ndarray) -> None:
        body, length = triton_body(triton_input("x", datatype, array, binary=True))
        request = decode_infer(body, length, echo(datatype, array.ndim))

        assert request.inputs["x"] == to_tensor(array, datatype)
        assert request.outputs == (RequestedOutput("x", binary=True, classes=0),)

    check()


@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype != "BF16"])
def test_json_tensors_of_tritonclient_arrive_exactly(datatype: str) -> None:
    @few
    @given(arrays(datatype, text=True))
    def check(array: np.ndarray) -> None:
        body, length = triton_body(triton_input("x", datatype, array, binary=False))
        request = decode_infer(body, length, echo(datatype, array.ndim))

        assert length is None
        assert request.inputs["x"].datatype == datatype
        assert_same(to_array(request.inputs["x"]), array)

    check()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_tritonclient_reads_the_reply(datatype: str, binary: bool) -> None:
    @few
    @given(arrays(datatype, text=True))
    def check(array: np.ndarray) -> None:
        if (
            datatype == "BF16" and not binary
        ):  # "NaN" and "Infinity" it reads for every float but this
            with np.errstate(invalid="ignore"):  # a NaN that signals
                array = np.where(
                    np.isfinite(array.view(ml_dtypes.bfloat16)), array, DTYPES["BF16"].type(0)
                )
        outputs = {"x": to_tensor(array, datatype)}
        reply = encode_infer(
            asking(RequestedOutput("x", binary, 0)), outputs, echo(datatype, array.ndim), "m", 7
        )
        got = read(reply).as_numpy("x")

        assert reply.header_length is None or binary
        if datatype == "BF16":
            array = array.view(ml_dtypes.bfloat16).astype(np.float32)
            got = got.astype(np.float32)
        if datatype == "BYTES" and not binary:
            got = np.array([text.encode() for text in got.ravel()] or [], np.object_).reshape(
                got.shape
            )
        assert_same(got, array)

    check()


@pytest.mark.parametrize(
    ("first", "second"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_binary_and_json_tensors_mix(first: bool, second: bool) -> None:
    numbers = np.array([[1, 2, 3]], np.float32)
    name = np.array([b"Maus"], np.object_)
    sent = [
        triton_input("numbers", "FP32", numbers, binary=first),
        triton_input("name", "BYTES", name, binary=second),
    ]
    for inputs in (sent, sent[::-1]):  # bytes follow in the order of the request
        request = decode_infer(*triton_body(*inputs), SIGNATURE)

        assert list(request.inputs) == ["numbers", "name"]  # the model's
        assert request.inputs["numbers"] == to_tensor(numbers)
        assert request.inputs["name"] == to_tensor(name)

    wanted = asking(RequestedOutput("scores", first, 0), RequestedOutput("title", second, 0))
    result = read(encode_infer(wanted, OUTPUTS, SIGNATURE, "m", 7))

    assert_same(result.as_numpy("scores"), to_array(OUTPUTS["scores"]))
    assert result.as_numpy("title").tolist() in ([b"M\xc3\xa4uschen"], ["Mäuschen"])


def test_options_of_tritonclient_are_decoded() -> None:
    body, length = triton_body(
        triton_input("numbers", "FP32", np.zeros((1, 3), np.float32), binary=True),
        triton_input("name", "BYTES", np.array([b"Maus"], np.object_), binary=True),
        outputs=[
            InferRequestedOutput("title"),
            InferRequestedOutput("scores", binary_data=False, class_count=2),
        ],
        request_id="grün",
        timeout=5_000,
        priority=3,
        sequence_id="a",
        sequence_start=True,
        parameters={"trace": 1.5},
    )
    request = decode_infer(body, length, SIGNATURE)

    assert request.id == "grün"
    assert request.outputs == (
        RequestedOutput("scores", False, 2),
        RequestedOutput("title", True, 0),
    )
    assert request.timeout_us == 5_000
    assert request.parameters == {
        "priority": 3,
        "sequence_id": "a",
        "sequence_start": True,
        "sequence_end": False,
        "trace": 1.5,
    }


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_tritonclient_reads_classes(binary: bool) -> None:
    wanted = asking(RequestedOutput("scores", binary, classes=1))
    result = read(encode_infer(wanted, OUTPUTS, SIGNATURE, "m", 7))

    assert result.get_output("scores")["datatype"] == "BYTES"
    assert result.as_numpy("scores").tolist() in ([[b"0.750000:1:dog"]], [["0.750000:1:dog"]])


# --- JSON


def test_a_request_in_json() -> None:
    request = decode(
        document(id="", model_name="m", comment=[1, {}])
    )  # KServe's client sends model_name in the body

    assert request.id == ""
    assert request.inputs["numbers"] == to_tensor(np.array([[1, 2.5, 3]], np.float32))
    assert request.inputs["name"] == Tensor("BYTES", (1,), [b"Maus"])
    assert request.outputs == (
        RequestedOutput("scores", False, 0),
        RequestedOutput("title", False, 0),
    )
    assert (request.timeout_us, request.parameters) == (None, {})


def test_a_reply_in_json() -> None:
    request = decode(document(id="7"))

    assert json.loads(encode_infer(request, OUTPUTS, SIGNATURE, "mouse", 12).body) == {
        "model_name": "mouse",
        "model_version": "12",
        "id": "7",
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]},
            {"name": "title", "datatype": "BYTES", "shape": [1], "data": ["Mäuschen"]},
        ],
    }


def test_base64_elements_of_a_bytes_input() -> None:
    request = decode(with_input(1, data=["/wA="], parameters={"content_type": "base64"}))

    assert request.inputs["name"].data == [b"\xff\0"]


def test_other_content_types_are_ignored() -> None:
    request = decode(with_input(1, data=["/wA="], parameters={"content_type": "str"}))

    assert request.inputs["name"].data == [b"/wA="]


def test_a_scalar() -> None:
    signature = echo("INT64", 0)
    request = decode(
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [], "data": [5]}]},
        signature=signature,
    )
    reply = encode_infer(request, {"x": to_tensor(5)}, signature, "m", 1)

    assert request.inputs["x"] == to_tensor(5)
    assert request.inputs["x"].shape == ()
    assert json.loads(reply.body)["outputs"] == [
        {"name": "x", "datatype": "INT64", "shape": [], "data": [5]}
    ]


def test_a_model_without_inputs() -> None:
    assert decode({"inputs": []}, signature=Signature((), SIGNATURE.outputs)).inputs == {}


def test_a_body_may_be_a_memoryview() -> None:
    assert decode_infer(memoryview(json.dumps(document()).encode()), None, SIGNATURE).id is None


def test_the_header_may_cover_the_whole_body() -> None:
    assert decode(document(), raw=b"").inputs["name"].data == [b"Maus"]


# --- requested outputs


def asking(*outputs: RequestedOutput) -> InferRequest:
    return InferRequest(id=None, inputs={}, outputs=outputs, timeout_us=None, parameters={})


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, [("scores", False, 0), ("title", False, 0)]),
        ({"outputs": []}, [("scores", False, 0), ("title", False, 0)]),
        ({"parameters": {"binary_data_output": True}}, [("scores", True, 0), ("title", True, 0)]),
        (
            {"outputs": [], "parameters": {"binary_data_output": True}},
            [("scores", True, 0), ("title", True, 0)],
        ),
        ({"outputs": [{"name": "title"}]}, [("title", False, 0)]),
        (
            {"outputs": [{"name": "title"}, {"name": "scores"}]},
            [("scores", False, 0), ("title", False, 0)],
        ),
        (
            {"outputs": [{"name": "title", "parameters": {"binary_data": True}}]},
            [("title", True, 0)],
        ),
        (
            {"outputs": [{"name": "scores", "parameters": {"classification": 3}}]},
            [("scores", False, 3)],
        ),
        (
            {"outputs": [{"name": "scores", "parameters": {"classification": 0}}]},
            [("scores", False, 0)],
        ),
    ],
)
def test_which_outputs_are_sent(
    members: dict[str, object], expected: list[tuple[str, bool, int]]
) -> None:
    assert decode(document(**members)).outputs == tuple(
        RequestedOutput(*output) for output in expected
    )


def test_a_reply_over_the_limit_is_refused_before_it_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for owner, name in [(tensors, "to_json"), (tensors, "to_bytes"), (infer_reply, "classify")]:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("encoded"))
    numbers = to_tensor(np.zeros(1000, np.float32))
    for tensor, wanted in [
        (numbers, RequestedOutput("x", binary=True, classes=0)),
        (numbers, RequestedOutput("x", binary=False, classes=0)),
        (numbers, RequestedOutput("x", binary=False, classes=1000)),
        (
            to_tensor(np.zeros(400, np.float32)),
            RequestedOutput("x", binary=False, classes=0),
        ),  # "0.0," each
        (Tensor("BYTES", (1000,), [b""] * 1000), RequestedOutput("x", binary=True, classes=0)),
        (Tensor("BYTES", (1000,), [b""] * 1000), RequestedOutput("x", binary=False, classes=0)),
        (Tensor("BYTES", (1,), [b"a" * 1500]), RequestedOutput("x", binary=True, classes=0)),
    ]:
        with pytest.raises(
            PayloadTooLarge, match="the reply takes more than 1500 bytes: send fewer rows"
        ):
            encode_infer(
                asking(wanted), {"x": tensor}, echo(tensor.datatype, 1), "m", 1, limit=1500
            )


def test_the_reply_limit_counts_every_byte() -> None:
    whole = encode_infer(decode(document()), OUTPUTS, SIGNATURE, "m", 1).body

    assert (
        encode_infer(decode(document()), OUTPUTS, SIGNATURE, "m", 1, limit=len(whole)).body == whole
    )
    with pytest.raises(PayloadTooLarge):
        encode_infer(decode(document()), OUTPUTS, SIGNATURE, "m", 1, limit=len(whole) - 1)


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BYTES"})),
    st.lists(st.integers(0, 3), max_size=3),
    st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))),
    st.data(),
)
def test_a_short_reply_is_written_as_any_other(
    datatype: str, shape: list[int], name: str | None, data: st.DataObject
) -> None:
    size = math.prod(shape) * (DATATYPES[datatype] or 0)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    outputs = RequestedOutputs([RequestedOutput('y"ü', binary=False, classes=0)])
    request = InferRequest(name, {}, outputs, None, {})
    tensor = {'y"ü': Tensor(datatype, tuple(shape), raw)}
    signature = Signature((), (TensorSpec('y"ü', datatype, (-1,) * len(shape)),))

    short = encode_infer(request, tensor, signature, "m", 7)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(infer_reply, "SHORT_REPLY_BYTES", REPLY_BYTES_MAX + 1)
        assert encode_infer(request, tensor, signature, "m", 7) == short


def test_an_output_of_an_undeclared_datatype_is_a_bug() -> None:
    with pytest.raises(TypeError, match="output scores is FP64, not FP32"):
        encode_infer(
            decode(document()),
            {**OUTPUTS, "scores": to_tensor(np.zeros((1, 2)))},
            SIGNATURE,
            "m",
            1,
        )


# --- raw binary: header 0


def raw(datatype: str, *shape: int, outputs: int = 1) -> Signature:
    return Signature(
        (TensorSpec("x", datatype, shape),), (TensorSpec("y", "FP32", (-1, 2)),) * outputs
    )


@pytest.mark.parametrize(
    ("signature", "body", "expected"),
    [
        (raw("INT16", -1, 2), b"\1\0\2\0", [[1, 2]]),
        (raw("INT16", -1, -1), b"\1\0\2\0\3\0", [[1, 2, 3]]),
        (raw("INT16", -1, -1, 2), b"\1\0\2\0\3\0\4\0", [[[1, 2], [3, 4]]]),
        (raw("INT16", -1, -1), b"", [[]]),
        (raw("INT16", -1), b"\1\0", [1]),
        (raw("BYTES", -1, 1), b"\5\0\0\0raw", [[b"\5\0\0\0raw"]]),
        (raw("BYTES", -1), b"", [b""]),
        (raw("BYTES", 1), b"raw", [b"raw"]),
        (
            Signature((TensorSpec("x", "INT16", (-1,)),), (TensorSpec("y", "FP32", (2,)),)),
            b"\1\0\2\0",
            [1, 2],
        ),
        (Signature((TensorSpec("x", "INT16", ()),), ()), b"\1\0", 1),
    ],
)
def test_a_raw_body_is_one_row_and_requests_binary(
    signature: Signature, body: bytes, expected: object
) -> None:
    request = decode_infer(body, "0", signature)

    assert to_array(request.inputs["x"]).tolist() == expected
    assert all(output.binary for output in request.outputs)
    assert len(request.outputs) == len(signature.outputs)


@pytest.mark.parametrize(
    ("signature", "body", "says"),
    [
        (
            SIGNATURE,
            b"",
            f"header {HEADER} is 0, which takes a model with one input: "
            "the model takes 'numbers', 'name'",
        ),
        (raw("INT16", -1, 2), b"\1\0", "shape [1, 2] of INT16 is 4 bytes of binary data, not 2"),
        (raw("INT16", -1), b"\1\0\2\0", "shape [1] of INT16 is 2 bytes of binary data, not 4"),
        (raw("INT16", -1, -1), b"\1\0\2", "shape [1, 1] of INT16 is 2 bytes of binary data, not 3"),
        (raw("INT16", -1, -1, -1), b"", "takes at most one variable dimension, not [1, -1, -1]"),
        (
            raw("INT16", -1, -1, 0),
            b"abc",
            "shape [1, 3, 0] of INT16 is 0 bytes of binary data, not 3",
        ),
        (raw("BYTES", -1, 2), b"raw", "takes a BYTES input of one element, not [1, 2]"),
        (raw("BOOL", -1, -1), b"\2", "binary BOOL data must hold bytes 0 and 1 only"),
    ],
)
def test_a_raw_body_that_does_not_fit_is_refused(
    signature: Signature, body: bytes, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_infer(body, "0", signature)

    assert says in str(refused.value)


# --- null and a byte order mark

NO_PARAMETERS = {"content_type": None, "headers": None}  # as MLServer's Parameters are written
NULLS: Mapping[str, dict[str, Any]] = {
    "id": document(id=None),
    "parameters": document(parameters=None),
    "outputs": document(outputs=None),
    "every optional field": document(id=None, parameters=None, outputs=None),
    "parameters of an input": with_input(parameters=None),
    "each parameter of an input": with_input(
        parameters={**NO_PARAMETERS, "binary_data_size": None}
    ),
    "content type of BYTES": with_input(at=1, parameters=NO_PARAMETERS),
    "each parameter of the request": document(
        parameters={**NO_PARAMETERS, "timeout": None, "binary_data_output": None, "triton_x": None}
    ),
}


@pytest.mark.parametrize("request_", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_null_is_an_absent_optional_field(request_: dict[str, Any], mark: bytes) -> None:
    expected = decode(document())
    body, decoder = mark + json.dumps(request_).encode(), FastDecoder(SIGNATURE)

    assert decode_infer(body, None, SIGNATURE) == expected
    assert [decoder.decode(body, None) for _ in range(2)] == [expected] * 2


def test_null_is_an_absent_field_of_an_output() -> None:
    names = [{"name": "title"}, {"name": "scores"}]
    absent = {"classification": None, "binary_data": None, "shared_memory_region": None}
    nulls = [{"name": "title", "parameters": None}, {"name": "scores", "parameters": absent}]

    assert decode(document(outputs=nulls)) == decode(document(outputs=names))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_data_may_be_null_beside_a_binary_tensor(mark: bytes) -> None:
    raw, decoder = struct.pack("<3f", 1, 2.5, 3), FastDecoder(SIGNATURE)
    head = mark + json.dumps(with_input(data=None, parameters={"binary_data_size": 12})).encode()

    expected = decode(binary_input(12), raw)
    assert decode_infer(head + raw, str(len(head)), SIGNATURE) == expected
    for _ in range(2):
        assert decoder.decode(head + raw, str(len(head))) == expected


# --- refusals

BAD: Mapping[str, tuple[object, str]] = {
    "a list": ([], "the body must be a JSON object, not a list"),
    "a string": ("x", "the body must be a JSON object, not the string 'x'"),
    "a constant": (math.nan, "the body must be a JSON object, not NaN"),
    "nothing": ({}, "missing input 'numbers': the model takes 'numbers', 'name'"),
    "another protocol's": (
        {"instances": [[1.0]]},
        "instances is a field of KServe's protocol 1 and TensorFlow Serving: "
        'send {"inputs": [{"name": "numbers", "datatype": "FP32", "shape": [',
    ),
    "MLflow's": ({"dataframe_split": {}}, "dataframe_split is a field of MLflow: send"),
    "integer id": (document(id=7), "id must be a string, not 7"),
    "null inputs": (document(inputs=None), "missing input 'numbers'"),
    "constant as id": (document(id=math.nan), "id must be a string, not NaN"),
    "surrogate in id": (document(id="\ud800"), "id holds a lone surrogate"),
    "inputs no list": (document(inputs={}), "inputs must be a list, not an object"),
    "input no object": (document(inputs=["x"]), "inputs[0] must be an object, not the string 'x'"),
    "input without name": (
        with_input(1, drop="name"),
        "inputs[1]: name must be a string, not null",
    ),
    "input named by number": (with_input(name=1), "inputs[0]: name must be a string, not 1"),
    "unknown input": (
        with_input(name="Numbers"),
        "unknown input 'Numbers': the model has 'numbers', 'name'",
    ),
    "long name": (
        with_input(name="a" * 999),
        f"unknown input '{'a' * 77}…: the model has 'numbers', 'name'",
    ),
    "control characters": (with_input(name="a\n\0\u202eb"), "unknown input 'a ??b': the model has"),
    "duplicate input": (
        document(inputs=document()["inputs"] * 2),
        "input 'numbers' is given twice",
    ),
    "missing input": (
        document(inputs=document()["inputs"][:1]),
        "missing input 'name': the model takes",
    ),
    "other datatype": (
        with_input(datatype="FP64"),
        "input 'numbers': datatype is the string 'FP64', the model takes",
    ),
    "no datatype": (
        with_input(drop="datatype"),
        "input 'numbers': datatype is null, the model takes 'FP32'",
    ),
    "datatype a list": (
        with_input(datatype=["FP32"]),
        "datatype is a list, the model takes 'FP32'",
    ),
    "no shape": (
        with_input(drop="shape"),
        "input 'numbers': shape must be a list of non-negative integers, not null",
    ),
    "other rank": (
        with_input(shape=[3]),
        "input 'numbers': shape has 1 dimensions, the model takes 2: [-1, 3]",
    ),
    "other size": (
        with_input(shape=[1, 4]),
        "input 'numbers': shape [1, 4] does not fit the model's [-1, 3]",
    ),
    "other count": (
        with_input(shape=[2, 3]),
        "input 'numbers': data holds 3 values, shape [2, 3] takes 6",
    ),
    "huge shape": (with_input(shape=[2**62, 3]), "a dimension may be at most 67108864"),
    "string value": (
        with_input(data=[1, "2", 3]),
        "input 'numbers': value 1 of data is the string '2'; FP32 takes",
    ),
    "overflow": (
        with_input(data=[1, 1e39, 3]),
        "input 'numbers': data holds a number beyond the range of FP32",
    ),
    "huge integer": (
        with_input(data=[1, 10**400, 3]),
        "data holds a number beyond the range of FP32",
    ),
    "constant as text": (
        with_input(1, data=[math.nan]),
        "input 'name': value 0 of data is NaN; BYTES takes strings",
    ),
    "surrogate": (
        with_input(1, data=["\ud800"]),
        "input 'name': data holds a lone surrogate, which is no text",
    ),
    "no data": (
        with_input(drop="data"),
        "input 'numbers': send either data or the parameter binary_data_size",
    ),
    "null data": (with_input(data=None), "input 'numbers': data must be a list, not null"),
    "input parameters a list": (
        with_input(parameters=[]),
        "input 'numbers': parameters must be an object, not a list",
    ),
    "input parameter a list": (
        with_input(parameters={"a": []}),
        "parameter 'a' must be a string, a number or a bool",
    ),
    "shared memory": (
        with_input(parameters={"shared_memory_region": "r"}),
        "shared memory is not offered",
    ),
    "binary without header": (
        binary_input(12),
        f"binary_data_size needs the header {HEADER}, the length of the JSON",
    ),
    "outputs no list": (document(outputs={}), "outputs must be a list, not an object"),
    "output no object": (
        document(outputs=["scores"]),
        "outputs[0] must be an object, not the string 'scores'",
    ),
    "output without name": (document(outputs=[{}]), "outputs[0]: name must be a string, not null"),
    "unknown output": (
        document(outputs=[{"name": "y"}]),
        "unknown output 'y': the model has 'scores', 'title'",
    ),
    "duplicate output": (
        document(outputs=[{"name": "title"}] * 2),
        "output 'title' is given twice",
    ),
    "parameters a list": (
        document(parameters=[]),
        "the request: parameters must be an object, not a list",
    ),
    "parameter an object": (
        document(parameters={"a": {}}),
        "parameter 'a' must be a string, a number or a boolean, not",
    ),
    "null data and no size": (
        with_input(data=None, parameters=None),
        "input 'numbers': data must be a list, not null",
    ),
    "parameter NaN": (
        document(parameters={"a": math.nan}),
        "must be a string, a number or a boolean, not NaN",
    ),
    "parameter surrogate": (
        document(parameters={"a": "\ud800"}),
        "parameter 'a' holds a lone surrogate",
    ),
    "parameter name surrogate": (
        document(parameters={"\ud800": 1}),
        "a parameter name holds a lone surrogate",
    ),
    "reserved": (document(parameters={"triton_x": 1}), "parameter 'triton_x' is reserved"),
    "timeout a float": (
        document(parameters={"timeout": 1.0}),
        "timeout must be microseconds, a non-negative integer",
    ),
    "timeout a bool": (document(parameters={"timeout": True}), "a non-negative integer, not true"),
    "timeout negative": (document(parameters={"timeout": -1}), "a non-negative integer, not -1"),
    "timeout huge": (
        document(parameters={"timeout": 2**64}),
        "a non-negative integer, not 18446744073709551616",
    ),
    "flag a number": (
        document(parameters={"binary_data_output": 1}),
        "binary_data_output must be true or false, not",
    ),
}


@pytest.mark.parametrize(("request_", "says"), BAD.values(), ids=BAD)
def test_the_error_of_a_bad_request_says_what_to_change(request_: object, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(request_)

    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"binary_data": 1}, "output 'scores': parameter binary_data must be true or false, not 1"),
        (
            {"binary_data": "true"},
            "parameter binary_data must be true or false, not the string 'true'",
        ),
        (
            {"classification": -1},
            "output 'scores': classification must be an integer from 0 to 1000000, not -1",
        ),
        ({"classification": 2.0}, "classification must be an integer from 0 to 1000000, not 2.0"),
        ({"classification": True}, "classification must be an integer from 0 to 1000000, not true"),
        (
            {"classification": 10**7},
            "classification must be an integer from 0 to 1000000, not 10000000",
        ),
        ({"shared_memory_region": "r"}, "output 'scores': shared memory is not offered"),
    ],
)
def test_the_error_of_a_bad_output_says_what_to_change(
    parameters: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(document(outputs=[{"name": "scores", "parameters": parameters}]))

    assert says in str(refused.value)


def test_only_numbers_can_be_classified() -> None:
    with pytest.raises(
        InvalidRequest,
        match="'title': classification takes an output of numbers, this one is BYTES",
    ):
        decode(document(outputs=[{"name": "title", "parameters": {"classification": 1}}]))


@pytest.mark.parametrize(
    ("size", "rest", "says"),
    [
        (8, bytes(8), "binary_data_size is 8, shape [1, 3] of FP32 takes 12"),
        (12, bytes(11), "binary_data_size is 12, the body has only 11 bytes left"),
        (12, bytes(13), "the body has 1 bytes after the last tensor"),
        (-1, bytes(12), "binary_data_size must be a non-negative integer, not -1"),
        (12.0, bytes(12), "binary_data_size must be a non-negative integer, not 12.0"),
        ("12", bytes(12), "binary_data_size must be a non-negative integer, not the string '12'"),
        (True, bytes(12), "binary_data_size must be a non-negative integer, not true"),
        (10**4000, bytes(12), "shape [1, 3] of FP32 takes 12"),
    ],
)
def test_binary_sizes_are_exact(size: object, rest: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(binary_input(size), raw=rest)

    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("999", "is 999, the body has only 4 bytes"),
        ("-1", "must be the length of the JSON part in bytes, not '-1'"),
        ("+1", "must be the length of the JSON part in bytes, not '+1'"),
        ("4.0", "must be the length of the JSON part in bytes, not '4.0'"),
        ("four", "must be the length of the JSON part in bytes, not 'four'"),
        ("٤", "must be the length of the JSON part in bytes, not '٤'"),
        ("", "must be the length of the JSON part in bytes, not ''"),
        ("4, 4", "must be the length of the JSON part in bytes, not '4, 4'"),
        ("9" * 5000, "must be the length of the JSON part in bytes, not '999"),
    ],
)
def test_the_header_is_a_length_within_the_body(header: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_infer(b"{  }", header, SIGNATURE)

    assert str(refused.value).startswith(f"header {HEADER} {says}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty; send a JSON object"),
        (b" \n", "the body is not JSON: Expecting value at character 2"),
        (b"\xef\xbb\xbf", "the body is not JSON: Expecting value at character 0"),
        (b"{", "the body is not JSON: Expecting property name"),
        (
            b"{}{}",
            "the body is not JSON: Extra data at character 2; "
            "when tensors follow the JSON as bytes, the header",
        ),
        (
            b"{}\0\0\x80\x3f",
            "the body is not JSON in UTF-8, from byte 4 on; when tensors follow the JSON as bytes",
        ),
        (b"{}\0\0\x80\x3f", f"the header {HEADER} must hold the length of the JSON"),
        (b"\xef\xbb\xbf" * 2 + b"{}", "the body is not JSON: Expecting value at character 0"),
        ('{"inputs":[]}'.encode("utf-16"), "the body begins as text in UTF-16; send UTF-8; when"),
        ('{"inputs":[]}'.encode("utf-32"), "the body begins as text in UTF-32; send UTF-8; when"),
        (b'{"inputs":' + b"[" * 100_000, "the body is JSON that is nested too deeply"),
        (b'{"a":' * 100_000, "the body is JSON that is nested too deeply"),
        (b'{"inputs":[' + b"1" * 4301 + b"]}", "the body is JSON with a number of too many digits"),
        (
            b'{"inputs":[],"inputs":[]}',
            "the body is JSON with the key 'inputs' twice in one object",
        ),
        (b'{"x":{"a":1,"b":2,"a":1}}', "the body is JSON with the key 'a' twice in one object"),
        (b"{'inputs':[]}", "the body is not JSON: Expecting property name"),
        (b'{"inputs":[nan]}', "the body is not JSON: Expecting value"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_body_that_is_not_json_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_infer(body, None, SIGNATURE)

    assert says in str(refused.value)


# --- any bytes


def answer(body: bytes, header: str | None, signature: Signature = SIGNATURE) -> None:
    """Check that a body is decoded and answered, or refused on one readable line."""
    try:
        request = decode_infer(body, header, signature)
    except InvalidRequest as error:
        assert_readable(str(error))
        return
    for spec in signature.inputs:
        tensor = request.inputs[spec.name]
        assert tensor.datatype == spec.datatype
        assert len(tensor.shape) == len(spec.shape)
        assert all(want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True))
        assert type(tensor.data) is (list if spec.datatype == "BYTES" else bytes)
        assert len(tensor.data) == (
            tensor.size if spec.datatype == "BYTES" else byte_size(spec, tensor.shape)
        )
    encode_infer(request, {**OUTPUTS, **request.inputs}, signature, "m", 1)


def assert_readable(message: str) -> None:
    assert message.isprintable()
    assert 0 < len(message) <= 300


GOOD = [
    (
        json.dumps(
            document(id="a", outputs=[{"name": "title"}], parameters={"timeout": 5})
        ).encode(),
        None,
    ),
    triton_body(
        triton_input("numbers", "FP32", np.ones((2, 3), np.float32), binary=True),
        triton_input("name", "BYTES", np.array([b"a", b"bc"], np.object_), binary=True),
    ),
]
REQUESTS = [
    document(
        id="a",
        parameters={"timeout": 5},
        outputs=[{"name": "scores", "parameters": {"classification": 1}}],
    ),
    binary_input(12, shape=[1, 3]),
    with_input(1, parameters={"content_type": "base64"}),
]
headers = st.none() | st.text(max_size=5) | st.integers(-9, 400).map(str)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), headers)
def test_any_bytes_are_answered(body: bytes, header: str | None) -> None:
    answer(body, header)
    answer(body, header, echo("BYTES", 1))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_damaged_body_is_answered(data: st.DataObject) -> None:
    body, header = data.draw(st.sampled_from(GOOD))
    begin = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(begin, min(begin + 8, len(body))))
    damaged = body[:begin] + data.draw(st.binary(max_size=8)) + body[end:]
    answer(damaged, data.draw(st.just(header) | headers))


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_any_value_anywhere_in_the_json_is_answered(data: st.DataObject) -> None:
    request = copy.deepcopy(data.draw(st.sampled_from(REQUESTS)))
    place, key = data.draw(st.sampled_from(list(places(request))))
    place[key] = data.draw(json_values)
    head = json.dumps(request).encode()
    rest = data.draw(st.none() | st.just(b"") | st.just(bytes(12)))
    answer(head + (rest or b""), None if rest is None else str(len(head)))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container and key in a JSON value where another value could be."""
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from places(value[key])
