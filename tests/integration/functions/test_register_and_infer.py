"""Path of a model from upload to reply: real sandbox, real runtime, real handlers."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.http import InferResult

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from functions.core.serving.model_cache import MB, footprint_bytes
from tests.data_plane import rows
from tests.models import make_model, scale_model
from tests.platform import Platform


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path, sandbox)
    sandbox.close()


def manifest(*expected: float) -> dict[str, Any]:
    response = {
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": list(expected)}]
    }
    return {"schema": 1, "samples": [{"request": rows([1.0, 2.0, 3.0]), "response": response}]}


def test_a_registered_model_replies_as_its_samples_say(platform: Platform) -> None:
    version = platform.upload(scale_model(3.0, manifest(3.0, 6.0, 9.0)))

    assert version.state is State.READY, version.reason
    assert version.plan["optimised"] == "extended"
    assert version.measured["samples_checked"] == 1
    assert footprint_bytes(version) < 8 * MB
    assert version.sample is not None
    assert json.loads(platform.blobs.content[version.sample.key])["synthetic"] is False
    assert platform.client.post("/v2/repository/models/demo/load").status == 200
    reply = platform.client.post("/v2/models/demo/infer", rows([2.0, 4.0, 6.0]))
    assert reply.json["outputs"][0]["data"] == [6.0, 12.0, 18.0]
    properties = platform.client.get("/v2/models/demo").json["properties"]
    assert properties["load_plan"].startswith("optimised: extended, prepacking: ")
    assert (properties["samples_checked"], properties["memory_mb"]) == ("1", str(version.memory_mb))


def test_a_model_that_contradicts_its_samples_is_never_served(platform: Platform) -> None:
    version = platform.upload(scale_model(3.0, manifest(3.0, 6.0, 9.5)))

    assert version.state is State.REJECTED
    assert version.reason is not None
    assert version.reason.code == "SAMPLE_MISMATCH"
    assert version.reason.message.startswith(
        "sample 0: output 'y'[0, 2] is 9, expected 9.5: off by 0.5"
    )
    assert platform.client.post("/v2/models/demo/infer", rows([2.0, 4.0, 6.0])).status == 409


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_an_empty_input_that_crashes_the_runtime_is_refused(
    platform: Platform, operator: str, gates: int
) -> None:
    """Check that empty batches get 400 where LSTM or GRU would abort.

    That is onnxruntime 1.31.1 without an input check. An RNN returns an empty output.
    """
    version = platform.upload(recurrent_model(operator, gates))
    assert version.state is State.READY, version.reason

    empty = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 3, 2], "data": []}]}
    reply = platform.client.post("/v2/models/demo/infer", empty)

    if operator == "RNN":
        assert (reply.status, reply.json["outputs"][0]["data"]) == (200, [])
    else:
        assert reply.status == 400
        assert reply.json["error"].startswith("input 'x' is empty, and the model refuses that: ")
        assert reply.json["error"].endswith(f"{operator}: steps must not be empty")


def test_an_empty_input_that_the_model_refuses_is_400(platform: Platform) -> None:
    assert platform.upload(first_row_model()).state is State.READY

    reply = platform.client.post(
        "/v2/models/demo/infer",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 3], "data": []}]},
    )

    assert reply.status == 400
    assert reply.json["error"].startswith("input 'x' is empty, and the model refuses that: ")


NOT_UTF8 = [b"\xff\xfe", b"ok", b"\xed\xa0\x80"]


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_bytes_that_are_not_utf8_pass_through_a_model(platform: Platform, is_binary: bool) -> None:
    assert platform.upload(text_model("Identity")).state is State.READY
    body, headers = bytes_request(NOT_UTF8, binary_data_output=is_binary)
    reply = platform.client.post("/v2/models/demo/infer", body, headers=headers)

    assert reply.status == 200, reply.body
    if is_binary:
        length = int(reply.headers["inference-header-content-length"])
        result = InferResult.from_response_body(reply.body, header_length=length)
        assert result.as_numpy("y").tolist() == NOT_UTF8
    else:
        [output] = reply.json["outputs"]
        assert output["parameters"] == {"content_type": "base64"}
        assert list(map(base64.b64decode, output["data"])) == NOT_UTF8


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("StringNormalizer", {"stopwords": ["no"], "is_case_sensitive": 1}),
        ("Tokenizer", {"domain": "com.microsoft", "mark": 0, "mincharnum": 1, "pad_value": "",
                       "separators": [""]}),
    ],
    ids=["StringNormalizer", "Tokenizer"],
)  # fmt: skip
def test_bytes_that_an_operator_cannot_read_as_text_are_400(
    platform: Platform, operator: str, attributes: dict[str, Any]
) -> None:
    version = platform.upload(text_model(operator, **attributes))
    assert version.state is State.READY, version.reason
    body, headers = bytes_request([b"a", b"b"])
    reply = platform.client.post("/v2/models/demo/infer", body, headers=headers)
    assert reply.status == 200, reply.body

    body, headers = bytes_request(NOT_UTF8)
    reply = platform.client.post("/v2/models/demo/infer", body, headers=headers)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith(
        f"input 'x' holds bytes that are not UTF-8, and the model refuses that: "
        f"the model failed on these values: {operator}: "
    )


def text_model(operator: str, **attributes: Any) -> bytes:
    """Return a one-operator model from strings x [n] to strings y."""
    string = TensorProto.STRING
    model = make_model(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        [helper.make_tensor_value_info("x", string, ["n"])],
        [helper.make_tensor_value_info("y", string, None)],
    )
    if "domain" in attributes:
        model.opset_import.append(helper.make_opsetid(attributes["domain"], 1))
    return model.SerializeToString()


def bytes_request(elements: list[bytes], **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Return a binary request with BYTES input `x`, and its headers."""
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    x = {
        "name": "x",
        "datatype": "BYTES",
        "shape": [len(elements)],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [x], "parameters": parameters}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


def recurrent_model(operator: str, gates: int) -> bytes:
    """Return a model of x [batch, time, 2] → last state y [1, batch, 4]."""
    weights = [
        numpy_helper.from_array(np.full((1, gates * 4, width), 0.1, np.float32), name)
        for name, width in (("w", 2), ("r", 4))
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(operator, ["steps", "w", "r"], ["", "y"], hidden_size=4),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "batch", 4])
    return make_model(nodes, [x], [y], weights).SerializeToString()


def first_row_model() -> bytes:
    """Return a model of x [batch, 3] → its first row y [3], which an empty batch lacks."""
    node = helper.make_node("Gather", ["x", "zero"], ["y"], axis=0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    return make_model(
        [node], [x], [y], [numpy_helper.from_array(np.int64(0), "zero")]
    ).SerializeToString()
