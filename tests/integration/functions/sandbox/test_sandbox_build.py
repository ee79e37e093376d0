"""Build step of the sandbox: compilation, samples, load plans and variants."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidModel
from functions.core.protocol import tensors
from functions.core.protocol.infer_request import decode_infer
from functions.core.protocol.signature import DATATYPES, Signature
from functions.core.protocol.tensors import Tensor
from functions.core.registration.sandbox_protocol import Built
from functions.core.registry.load_plan import Plan
from functions.sandbox import evaluate
from functions.sandbox.comparison import Reference
from functions.sandbox.measure import Costs, measure
from functions.sandbox.plans import choose
from tests.arrays import DTYPES, to_array, to_tensor
from tests.models import make_model, outside_weights_model, scale_model

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
MB = 1024 * 1024


def value(name: str, kind: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int) -> Any:
    random = np.random.default_rng(sum(shape))
    return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 8, name)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def refusal(build_model: Callable[..., Built], model: Any, **brief: Any) -> tuple[str, str]:
    with pytest.raises(InvalidModel) as refused:
        build_model(model, **brief)
    assert len(str(refused.value)) <= 300
    return refused.value.instance_code, str(refused.value)


# --- models


def perceptron(width: int = 32) -> Any:
    return make_model(
        [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("MatMul", "r v")],
        [value("x", FLOAT, ["batch", width])],
        [value("y", FLOAT, ["batch", 4])],
        [weight("w", width, width), weight("b", width), weight("v", width, 4)],
    )


def convolution() -> Any:
    return make_model(
        [
            node("Conv", "x w", "c", kernel_shape=[3, 3], pads=[1] * 4),
            node("BatchNormalization", "c scale bias mean variance", "n"),
            node("Relu", "n", "r"),
            node("GlobalAveragePool", "r"),
        ],
        [value("x", FLOAT, ["batch", 3, "h", "w"])],
        [value("y", FLOAT, ["batch", 16, 1, 1])],
        [
            *(
                weight("w", 16, 3, 3, 3),
                weight("scale", 16),
                weight("bias", 16),
                weight("mean", 16),
            ),
            numpy_helper.from_array(np.full(16, 0.5, np.float32), "variance"),
        ],
    )


def gelu() -> Any:
    constants = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    return make_model(
        [
            node("LayerNormalization", "x scale bias", "n", axis=-1),
            node("Div", "n root", "d"),
            node("Erf", "d", "e"),
            node("Add", "e one", "a"),
            node("Mul", "n a", "m"),
            node("Mul", "m half"),
        ],
        [value("x", FLOAT, ["batch", "tokens", 16])],
        [value("y", FLOAT, ["batch", "tokens", 16])],
        [weight("scale", 16), weight("bias", 16)]
        + [numpy_helper.from_array(np.float32(number), name) for name, number in constants.items()],
    )


def branches() -> Any:
    def branch(kind: str) -> Any:
        return helper.make_graph(
            [node(kind, "x", f"{kind}_y")], kind, [], [value(f"{kind}_y", FLOAT, None)]
        )

    return make_model(
        [
            node("ReduceSum", "x", "s", keepdims=0),
            node("Greater", "s zero", "c"),
            node("If", "c", then_branch=branch("Exp"), else_branch=branch("Neg")),
        ],
        [value("x", FLOAT, ["n"])],
        [value("y", FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )


def loop() -> Any:
    body = helper.make_graph(
        [node("Add", "state step", "next"), node("Identity", "go", "on")],
        "body",
        [value("i", INT64, []), value("go", TensorProto.BOOL, []), value("state", FLOAT, ["n"])],
        [value("on", TensorProto.BOOL, []), value("next", FLOAT, ["n"])],
    )
    return make_model(
        [node("Loop", "times yes x", body=body)],
        [value("x", FLOAT, ["n"])],
        [value("y", FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.int64(5), "times"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.float32(0.1), "step"),
        ],
    )


def strings() -> Any:
    return make_model(
        [node("StringConcat", "x x")],
        [value("x", STRING, ["n"])],
        [value("y", STRING, ["n"])],
    )


def bfloats() -> Any:
    bf16 = TensorProto.BFLOAT16
    return make_model(
        [node("Cast", "x", "f", to=FLOAT), node("Sqrt", "f", "s"), node("Cast", "s", to=bf16)],
        [value("x", bf16, ["n"])],
        [value("y", bf16, ["n"])],
    )


def quantised() -> Any:
    constants = {
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "w8": np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
    }
    return make_model(
        [
            node("QuantizeLinear", "x scale zero", "q"),
            node("DequantizeLinear", "q scale zero", "d"),
            node("DequantizeLinear", "w8 scale zero", "w"),
            node("MatMul", "d w", "m"),
            node("QuantizeLinear", "m scale zero", "mq"),
            node("DequantizeLinear", "mq scale zero"),
        ],
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array(array), name) for name, array in constants.items()],
    )


def microsoft() -> Any:
    """Make a model of operators that onnx_limits.MICROSOFT allows."""
    return make_model(
        [
            node("FusedMatMul", "x w", "m", domain="com.microsoft", alpha=0.5),
            node("BiasGelu", "m b", "g", domain="com.microsoft"),
            node("QuickGelu", "g", domain="com.microsoft", alpha=1.7),
        ],
        [value("x", FLOAT, ["n", 16])],
        [value("y", FLOAT, ["n", 16])],
        [weight("w", 16, 16), weight("b", 16)],
    )


def scalar() -> Any:
    return make_model([node("Exp", "x")], [value("x", FLOAT, [])], [value("y", FLOAT, [])])


ZOO = {
    model.__name__: model
    for model in (
        perceptron,
        convolution,
        gelu,
        branches,
        loop,
        strings,
        bfloats,
        quantised,
        microsoft,
        scalar,
    )
}


def inputs_for(signature: Signature) -> dict[str, Tensor]:
    """Return values that no synthetic sample has."""
    random = np.random.default_rng(7)
    inputs = {}
    for spec in signature.inputs:
        shape = tuple(5 if size < 0 else size for size in spec.shape)
        if spec.datatype == "BYTES":
            inputs[spec.name] = to_tensor(np.array([b"abc"] * 5, object))
        elif spec.datatype == "BF16":
            inputs[spec.name] = to_tensor(np.full(shape, 0x4049, np.uint16), "BF16")
        else:
            inputs[spec.name] = to_tensor(
                np.asarray(random.standard_normal(shape), DTYPES[spec.datatype])
            )
    return inputs


# --- compilation


@pytest.mark.parametrize("name", ZOO)
def test_the_compiled_model_gives_the_same_bits_as_the_upload(
    build_model: Callable[..., Built], tmp_path: Path, name: str
) -> None:
    built = build_model(ZOO[name]())

    assert built.plan.optimised == "extended", built.notes
    uploaded = OnnxRuntime().compile(tmp_path / "uploaded.onnx", tmp_path / "unused.onnx", None)
    assert built.signature == uploaded.signature(tmp_path / "uploaded.onnx")
    served = OnnxRuntime().load(
        tmp_path / "serving" / built.files[0], replace(built.plan, prepacking=False, layout=False)
    )
    inputs = inputs_for(built.signature)
    assert served.run(inputs, ["y"], 30) == uploaded.run(inputs, ["y"], 30)


def test_large_weights_are_mapped_from_one_file_beside_the_graph(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    built = build_model(perceptron(1100))

    assert built.files == ("model.onnx", "weights.bin")
    assert (tmp_path / "serving" / "model.onnx").stat().st_size < 16 * 1024
    assert built.measured["size_bytes"] == sum(
        (tmp_path / "serving" / name).stat().st_size for name in built.files
    )
    _session = OnnxRuntime().load(
        tmp_path / "serving" / "model.onnx", replace(built.plan, prepacking=False)
    )
    assert "weights.bin" in Path("/proc/self/maps").read_text()


def test_a_small_model_is_one_file_without_its_manifest(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    built = build_model(scale_model(manifest={"schema": 1}))

    assert built.files == ("model.onnx",)
    assert b"manifest" not in (tmp_path / "serving" / "model.onnx").read_bytes()


def test_external_weights_become_part_of_the_compiled_model(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    model, weights = outside_weights_model(tmp_path / "source")

    built = build_model(model, {"model.onnx.data": weights})

    assert built.files == ("model.onnx",)
    [spec] = built.signature.inputs
    session = OnnxRuntime().load(tmp_path / "serving" / "model.onnx", built.plan)
    zeros = to_tensor(np.zeros((1, 3), np.float32))
    assert session.run({spec.name: zeros}, ["y"], 30)["y"].values() == [0, 1, 2]


def test_a_model_with_random_answers_is_served_as_uploaded(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    model = make_model(
        [node("RandomUniformLike", "x")],
        [value("x", FLOAT, ["n", 64])],
        [value("y", FLOAT, ["n", 64])],
    )

    built = build_model(model)

    assert built.plan.optimised == "none"
    assert "answers are not ONNX Runtime's default ones: " in built.notes[0]
    assert (tmp_path / "serving" / "model.onnx").read_bytes() == (
        tmp_path / "uploaded.onnx"
    ).read_bytes()


def test_a_model_that_cannot_be_compiled_is_served_as_uploaded(
    build_model: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(self: OnnxRuntime, path: Path, target: Path, *_: Any, **__: Any) -> Any:
        target.write_bytes(b"half")
        raise InvalidModel("no kernel for it", code="NOT_LOADABLE")

    monkeypatch.setattr(OnnxRuntime, "compile", compile_)
    (tmp_path / "source").mkdir()
    model, weights = outside_weights_model(tmp_path / "source")

    built = build_model(model, {"model.onnx.data": weights})

    assert built.files == ("model.onnx", "model.onnx.data")
    assert built.plan.optimised == "none"
    assert built.notes[0].endswith("was not used: no kernel for it.")


def test_a_graph_that_compiling_would_inflate_is_served_as_uploaded(
    build_model: Callable[..., Built],
) -> None:
    size = numpy_helper.from_array(np.array([8 * MB], np.int64), "size")
    model = make_model(
        [node("ConstantOfShape", "size", "zeros"), node("Add", "x zeros")],
        [value("x", FLOAT, [8 * MB])],
        [value("y", FLOAT, [8 * MB])],
        [size],
    )

    built = build_model(model)

    assert built.plan.optimised == "none"
    assert "would grow from" in built.notes[0]


def test_a_model_that_cannot_be_loaded_is_refused(build_model: Callable[..., Built]) -> None:
    model = make_model(
        [node("NoSuchThing", "x")], [value("x", FLOAT, [1])], [value("y", FLOAT, [1])]
    )

    assert refusal(build_model, model)[0] == "NOT_LOADABLE"


# --- samples


def sample(
    data: list[float], expected: list[Any], shape: list[int] | None = None
) -> dict[str, Any]:
    shape = shape or [1, 3]
    return {
        "request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]},
        "response": {
            "outputs": [{"name": "y", "datatype": "FP32", "shape": shape, "data": expected}]
        },
    }


def test_samples_with_the_expected_answers_are_stored(build_model: Callable[..., Built]) -> None:
    first = sample([1, 2, 3], [2, 4, 6.00001])

    built = build_model(
        scale_model(2.0), samples=(first, sample([0, "NaN", "Infinity"], [0, "NaN", "Infinity"]))
    )

    assert built.sample == {**first, "synthetic": False}
    assert built.measured["samples_checked"] == 2
    assert built.plan.warmup


def test_the_first_row_of_a_large_sample_is_stored(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    many = 9000
    rows = [[1.0, 2.0, 3.0], *[[4.0, 5.0, 6.0]] * (many - 1)]
    data = [value for row in rows for value in row]

    built = build_model(
        scale_model(2.0), samples=(sample(data, [2 * value for value in data], [many, 3]),)
    )

    assert built.sample is not None
    assert built.sample["synthetic"] is False
    assert built.sample["request"]["inputs"][0] == {
        "name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0],
    }  # fmt: skip
    assert built.sample["response"]["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    assert built.plan.warmup
    assert any("first row" in note for note in built.notes)


def test_a_row_that_is_too_large_is_not_stored(build_model: Callable[..., Built]) -> None:
    width = 50_000
    model = make_model(
        [node("Neg", "x")], [value("x", FLOAT, ["n", width])], [value("y", FLOAT, ["n", width])]
    )

    built = build_model(model)

    assert built.sample is None
    assert not built.plan.warmup
    assert any("too large to be stored" in note for note in built.notes)


@pytest.mark.parametrize("at", [0, 1])
def test_a_mismatch_names_output_element_and_difference(
    build_model: Callable[..., Built], at: int
) -> None:
    good = sample([1, 2, 3], [2, 4, 6])
    wrong = sample([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10.001, 12.5], [2, 3])

    code, message = refusal(
        build_model, scale_model(2.0), samples=(wrong,) if not at else (good, wrong)
    )

    assert code == "SAMPLE_MISMATCH"
    assert message == (
        f"sample {at}: output 'y'[1, 2] is 12, expected 12.5: off by 0.5, "
        "allowed 0.0125 (rtol 0.001, atol 1e-05); 1 of 6 elements differ"
    )


@pytest.mark.parametrize(
    ("expected", "detail"),
    [
        ([2, "NaN", 6], "[0, 1] is 4, expected nan"),
        ([2, 4, "Infinity"], "[0, 2] is 6, expected inf"),
    ],
    ids=str,
)
def test_nan_and_infinity_have_to_match(
    build_model: Callable[..., Built], expected: list[Any], detail: str
) -> None:
    assert (
        detail in refusal(build_model, scale_model(2.0), samples=(sample([1, 2, 3], expected),))[1]
    )


def test_a_plan_under_which_samples_fail_is_dropped(
    build_model: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_inexactly(load: Any, plan: Plan, *args: Any) -> Any:
        costs, session = measure(load, plan, *args)
        outputs = {
            "y": to_tensor(
                to_array(costs.outputs["y"]) + np.float32(0 if plan.prepacking else 0.01)
            )
        }
        return replace(costs, outputs=outputs, load_ms=500.0 if plan.prepacking else 1.0), session

    monkeypatch.setattr(evaluate, "measure", measure_inexactly)
    monkeypatch.setattr(Reference, "difference", lambda *_: None)

    assert build_model(scale_model(2.0), samples=(sample([1, 2, 3], [2, 4, 6]),)).plan.prepacking


def test_a_shape_that_differs_is_a_mismatch(build_model: Callable[..., Built]) -> None:
    origin = sample([1, 2, 3], [2, 4, 6])
    origin["response"]["outputs"][0]["shape"] = [3]

    assert refusal(build_model, scale_model(2.0), samples=(origin,)) == (
        "SAMPLE_MISMATCH",
        "sample 0: output 'y' has shape [1, 3], expected [3]",
    )


@pytest.mark.parametrize(
    ("kind", "datatype", "data", "expected", "detail"),
    [
        (INT64, "INT64", [1, 2], [1, 3], "'y'[1] is 2, expected 3; 1 of 2 elements differ"),
        (
            STRING,
            "BYTES",
            ["a", "b"],
            ["a", "c"],
            "'y'[1] is 'b', expected 'c'; 1 of 2 elements differ",
        ),
        (
            TensorProto.BOOL,
            "BOOL",
            [True, False],
            [False, False],
            "'y'[0] is 'True', expected 'False'",
        ),
        (TensorProto.BFLOAT16, "BF16", [1, 2], [1, 3], "'y'[1] is 2, expected 3: off by 1"),
    ],
    ids=str,
)
def test_values_other_than_floats_have_to_be_equal(
    build_model: Callable[..., Built],
    kind: int,
    datatype: str,
    data: list[Any],
    expected: list[Any],
    detail: str,
) -> None:
    model = make_model(
        [node("Identity", "x")], [value("x", kind, ["n"])], [value("y", kind, ["n"])]
    )
    origin = sample(data, expected, [2])
    for tensor in (origin["request"]["inputs"][0], origin["response"]["outputs"][0]):
        tensor["datatype"] = datatype

    code, message = refusal(build_model, model, samples=(origin,))

    assert (code, detail in message.replace("'2'", "2").replace("'3'", "3")) == (
        "SAMPLE_MISMATCH",
        True,
    ), message


def changed(path: str, new: object) -> dict[str, Any]:
    document = sample([1, 2, 3], [2, 4, 6])
    *way, last = path.split(".")
    at: Any = document
    for step in way:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = new
    return document


@pytest.mark.parametrize(
    ("origin", "detail"),
    [
        (
            changed("request.inputs.0.shape", [1, 4]),
            "sample 0: its request: input 'x': shape [1, 4] does not fit",
        ),
        (
            changed("request", []),
            "sample 0: its request: the body must be a JSON object, not a list",
        ),
        ({"response": {}}, "sample 0 needs a request"),
        (changed("response", {}), "sample 0 needs a response with at least one"),
        (changed("response.outputs", "y"), "sample 0 needs a response with at least one"),
        (
            changed("response.outputs.0.name", "z"),
            "its response has the output 'z', and the model has 'y'",
        ),
        (
            changed("response.outputs.0.datatype", "FP64"),
            "its output 'y' is 'FP64', the model's is FP32",
        ),
        (
            changed("response.outputs.0.shape", "3"),
            "its response: output 'y': shape must be a list",
        ),
        (
            changed("response.outputs.0.data", [1]),
            "output 'y': data holds 1 values, shape [1, 3] takes 3",
        ),
        (changed("response.outputs.0.data", None), "its response: output 'y': data must be a list"),
        (
            changed("request.outputs", [{"name": "y", "parameters": {"classification": 1}}]),
            "asks for classes",
        ),
    ],
    ids=lambda origin: "" if isinstance(origin, dict) else origin[-24:],
)
def test_a_malformed_sample_is_rejected_with_what_to_change(
    build_model: Callable[..., Built], origin: Any, detail: str
) -> None:
    code, message = refusal(build_model, scale_model(), samples=(origin,))

    assert code == "BAD_SAMPLE"
    assert detail in message


def test_a_sample_that_the_model_refuses_rejects_it(build_model: Callable[..., Built]) -> None:
    model = make_model(
        [node("Gather", "table i")],
        [value("i", INT64, ["n"])],
        [value("y", FLOAT, ["n", 2])],
        [weight("table", 4, 2)],
    )
    origin = {
        "request": {"inputs": [{"name": "i", "datatype": "INT64", "shape": [1], "data": [9]}]},
        "response": {
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]
        },
    }

    code, message = refusal(build_model, model, samples=(origin,))

    assert code == "SAMPLE_FAILED"
    assert message.startswith("sample 0: the model failed on these values")


# --- synthetic samples

KINDS = {
    "BYTES": STRING,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": FLOAT,
    "FP64": TensorProto.DOUBLE,
    **{
        name: getattr(TensorProto, name)
        for name in DATATYPES
        if name == "BOOL" or name.lstrip("U").startswith("INT")
    },
}


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [*((datatype, shape) for datatype in KINDS for shape in ([], ["n", 3])),
     *(("FP32", shape) for shape in (["n"], [2, "n"], [0, 2], [3]))],
    ids=str,
)  # fmt: skip
def test_synthetic_samples_have_any_datatype_and_shape(
    build_model: Callable[..., Built], tmp_path: Path, datatype: str, shape: list[Any]
) -> None:
    kind = KINDS[datatype]
    built = build_model(
        make_model([node("Identity", "x")], [value("x", kind, shape)], [value("y", kind, shape)])
    )

    assert built.sample is not None
    assert built.sample["synthetic"] is True
    assert built.measured["samples_checked"] == 0
    request = decode_infer(json.dumps(built.sample["request"]).encode(), None, built.signature)
    answer = (
        OnnxRuntime()
        .load(tmp_path / "serving" / built.files[0], built.plan)
        .run(request.inputs, ["y"], 30)
    )
    [output] = built.sample["response"]["outputs"]
    assert output["shape"] == list(answer["y"].shape)
    assert (
        output["data"]
        == tensors.to_json(answer["y"])[0]
        == built.sample["request"]["inputs"][0]["data"]
    )


def test_indices_and_sizes_vary_until_the_model_answers(build_model: Callable[..., Built]) -> None:
    model = make_model(
        [
            node("Gather", "table i", "g"),
            node("Conv", "x w", "c"),
            node("ReduceMean", "c", "m", keepdims=0),
            node("Mul", "g m"),
        ],
        [value("i", INT64, ["n"]), value("x", FLOAT, ["n", 1, "h", "w"])],
        [value("y", FLOAT, ["n", 2])],
        [weight("table", 1, 2), weight("w", 1, 1, 7, 7)],
    )  # fmt: skip

    built = build_model(model)

    assert built.sample is not None
    index, image = built.sample["request"]["inputs"]
    assert index["data"] == [0]
    assert image["shape"] == [1, 1, 8, 8]


def test_a_model_that_refuses_all_synthetic_requests_is_served(
    build_model: Callable[..., Built],
) -> None:
    model = make_model(
        [node("Reshape", "x to")],
        [value("x", FLOAT, ["n"])],
        [value("y", FLOAT, [5, 7])],
        [numpy_helper.from_array(np.array([5, 7], np.int64), "to")],
    )

    built = build_model(model)

    assert built.sample is None
    assert not built.plan.warmup
    assert any("never run" in note for note in built.notes)
    assert built.measured["load_ms"] > 0
    assert "first_run_ms" not in built.measured


def test_a_large_sample_is_not_stored(build_model: Callable[..., Built]) -> None:
    shape = [1, 3, 128, 128]

    built = build_model(
        make_model([node("Relu", "x")], [value("x", FLOAT, shape)], [value("y", FLOAT, shape)])
    )

    assert built.sample is None
    assert not built.plan.warmup
    assert built.measured["first_run_ms"] > 0


# --- plans and sizes

QUICK = Plan("extended", prepacking=False)
PACKED = Plan("extended")


@pytest.mark.parametrize(
    ("quick", "packed", "expected"),
    [
        (
            (10, 20, 15.0, None),
            (300, 15, 10.0, None),
            QUICK,
        ),  # a start of 30 ms is worth requests of 15 ms
        ((10, 20, 18.0, None), (300, 15, 10.0, None), PACKED),  # but not requests of 18 ms
        ((10, 20, 10.0, 24.0), (300, 15, 10.0, 10.0), QUICK),
        ((10, 20, 10.0, 26.0), (300, 15, 10.0, 10.0), PACKED),
        (
            (1.0, 0.5, 0.5, 1.0),
            (2.0, 0.5, 0.3, 0.5),
            PACKED,
        ),  # similar starts: the faster requests win
        (
            (1.0, 0.5, 0.31, 0.5),
            (1.5, 0.5, 0.3, 0.5),
            QUICK,
        ),  # similar starts and requests: the first wins
        ((10, 20, None, None), (300, 15, None, None), QUICK),
    ],
)
def test_the_fastest_start_wins_while_requests_stay_within_bounds(
    quick: tuple[Any, ...], packed: tuple[Any, ...], expected: Plan
) -> None:
    assert choose([Costs(QUICK, *quick), Costs(PACKED, *packed)]).plan == expected


def test_without_a_plan_within_bounds_the_least_slow_wins() -> None:
    many, few = Costs(QUICK, 1, 1, 10.0, 10.0), Costs(PACKED, 1, 1, 1.0, 100.0)

    assert choose([many, few]).plan == PACKED


@pytest.mark.parametrize(
    ("row_ms", "rows_ms", "threads"), [(0.1, None, 1), (0.1, 0.2, 1), (0.1, 0.6, 2), (0.4, 0.6, 2)]
)
def test_short_runs_get_one_thread_even_if_two_look_faster(
    row_ms: float, rows_ms: float | None, threads: int
) -> None:
    alone = Costs(Plan(threads=1), 1, 1, row_ms, rows_ms)
    halved = rows_ms and rows_ms / 2
    together = Costs(Plan(threads=2), 1, 1, row_ms / 2, halved)

    assert choose([together, alone]).plan.threads == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_waiting_for_other_work_does_not_count(tmp_path: Path, threads: int) -> None:
    (tmp_path / "model.onnx").write_bytes(scale_model())
    plan = Plan(threads=threads)

    def load() -> Any:
        time.sleep(0.5)  # no CPU time
        return OnnxRuntime(threads).load(tmp_path / "model.onnx", plan)

    costs, _ = measure(load, plan, None, Signature((), ()), 0)

    assert costs.load_ms < 500


def test_a_plan_with_other_answers_is_dropped(
    build_model: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_wrongly(load: Any, plan: Plan, *args: Any) -> Any:
        costs, session = measure(load, plan, *args)
        right = costs.outputs and to_array(costs.outputs["y"])
        wrong = {"y": to_tensor(right + np.float32(plan.prepacking))} if costs.outputs else None
        return replace(
            costs, outputs=wrong, load_ms=costs.load_ms / (100 if plan.prepacking else 1)
        ), session

    monkeypatch.setattr(evaluate, "measure", measure_wrongly)

    built = build_model(perceptron())

    assert built.plan.prepacking is False
    assert not any(note.startswith("Load plan: ") for note in built.notes)


def test_the_record_has_sizes_times_and_memory(build_model: Callable[..., Built]) -> None:
    built = build_model(perceptron(1100))

    assert built.measured.keys() == {
        "load_ms",
        "raw_load_ms",
        "compile_ms",
        "first_run_ms",
        "latency_ms_batch_1",
        "latency_ms_batch_8",
        "resident_mb",
        "peak_memory_mb",
        "size_bytes",
        "raw_size_bytes",
        "samples_checked",
    }
    assert (
        built.measured["size_bytes"] / MB
        <= built.measured["resident_mb"]
        <= built.measured["peak_memory_mb"]
        < 40
    )
    assert 100 < built.memory_mb < 270
    assert built.notes[0].startswith(
        "Optimised ahead of time, with its weights in a file that is mapped"
    )
    assert any(f"fits a function of {built.memory_mb} MB" in note for note in built.notes)
    assert any(note.startswith("Load plan: ") and ", not " in note for note in built.notes)


@pytest.mark.parametrize("width", [300, 2200])
def test_a_model_too_large_for_memory_is_refused_with_both_numbers(
    build_model: Callable[..., Built], width: int
) -> None:
    code, message = refusal(build_model, perceptron(width), memory_mb=97)

    assert code == "TOO_LARGE_FOR_MEMORY"
    assert "and the one that serves has 97 MB: raise the parameter InferMemory" in message


@pytest.mark.parametrize(("short_ms", "tried"), [(0.0, {2}), (1e9, {1, 2})])
def test_plans_use_the_serving_functions_threads_and_one_for_short_runs(
    build_model: Callable[..., Built],
    monkeypatch: pytest.MonkeyPatch,
    short_ms: float,
    tried: set[int],
) -> None:
    seen: set[int] = set()

    def listen(load: Any, plan: Plan, *args: Any) -> Any:
        seen.add(plan.threads)
        return measure(load, plan, *args)

    monkeypatch.setattr(evaluate, "measure", listen)
    monkeypatch.setattr(evaluate, "SINGLE_THREAD_MS", short_ms)

    built = build_model(perceptron(), threads=2)

    assert seen == tried
    assert built.plan.threads in tried
    assert any(" thread" in note for note in built.notes) == (len(tried) > 1)


def test_after_the_time_limit_the_first_plan_stands(
    build_model: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PLANS_S", 0.0)
    monkeypatch.setattr(evaluate, "SAMPLES_S", 0.0)

    built = build_model(
        scale_model(2.0), samples=(sample([1, 2, 3], [2, 4, 6]), sample([1, 2, 3], [9, 9, 9]))
    )

    assert built.plan == replace(PACKED, warmup=True)
    assert (
        "Load plan not used: weights used in place, 1 thread: it was not measured, because the "
        "build had used 0 s of processor time." in built.notes
    )
    assert "Only the first 1 of 2 samples were checked: each takes long." in built.notes


# --- variants


def proven(model: Any, width: int, tmp_path: Path, rtol: float = 1e-3) -> dict[str, Any]:
    """Return a sample with the answer of `model`, and a tolerance."""
    path = tmp_path / "proven.onnx"
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(3).random((2, width)).astype(np.float32)
    y = to_array(OnnxRuntime().load(path).run({"x": to_tensor(x)}, ["y"], 30)["y"])
    origin = sample(x.ravel().tolist(), y.ravel().tolist(), [2, width])
    origin["response"]["outputs"][0]["shape"] = list(y.shape)
    return {"samples": (origin,), "rtol": rtol, "atol": rtol}


def test_a_smaller_variant_within_the_tolerance_is_served(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    model = perceptron(600)

    built = build_model(model, variants=("int8",), **proven(model, 600, tmp_path, rtol=0.2))

    assert built.measured["size_bytes"] < 0.3 * built.measured["raw_size_bytes"], built.notes
    assert any(note.startswith("The int8 variant was used: from 1.") for note in built.notes), (
        built.notes
    )
    served = (tmp_path / "serving" / built.files[0]).read_bytes()
    assert b"MatMulInteger" in served or b"DynamicQuantizeMatMul" in served


def test_a_variant_outside_the_tolerance_is_not_served(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    model = perceptron(600)

    built = build_model(
        model, variants=("int8", "fp16", "int3"), **proven(model, 600, tmp_path, rtol=1e-5)
    )

    assert built.measured["size_bytes"] == pytest.approx(built.measured["raw_size_bytes"], rel=0.01)
    assert (
        sum(
            note.startswith("The int8 variant was not used: sample 0: output 'y'[")
            for note in built.notes
        )
        == 1
    )
    assert sum(note.startswith("The fp16 variant was not used: ") for note in built.notes) == 1
    assert "No int3 variant: there is no variant 'int3', only int8 and fp16." in built.notes


def test_integer_convolutions_are_never_made(
    build_model: Callable[..., Built], tmp_path: Path
) -> None:
    origin = sample([0.5] * 192, [0.0] * 16, [1, 3, 8, 8])
    origin["response"]["outputs"][0]["shape"] = [1, 16, 1, 1]

    built = build_model(convolution(), variants=("int8",), samples=(origin,), atol=100.0)

    assert any(note.startswith("The int8 variant was not used: from ") for note in built.notes), (
        built.notes
    )
    assert b"Integer" not in (tmp_path / "serving" / built.files[0]).read_bytes()


def test_without_samples_no_variant_is_served(
    build_model: Callable[..., Built],
) -> None:
    assert (
        "No int8 variant: the package has no samples to judge it by."
        in build_model(perceptron(), variants=("int8",)).notes
    )


def test_without_the_package_onnx_there_is_no_variant(
    build_model: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = proven(perceptron(), 32, tmp_path)
    model = perceptron().SerializeToString()
    monkeypatch.setitem(sys.modules, "onnx", None)

    assert (
        "No fp16 variant: the package onnx is not installed here, which makes it."
        in build_model(model, variants=("fp16",), **origin).notes
    )


# --- sessions


@pytest.fixture
def options_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Plan | None], tuple[Any, str, int]]:
    """Function that loads a model and returns the options that the library got.

    Optimisation level, whether prepacking is off, and threads: a session does not tell them.
    """
    (tmp_path / "model.onnx").write_bytes(scale_model())
    runtime = OnnxRuntime(4)
    options: dict[str, Any] = {}

    def listen(name: str) -> None:
        real = getattr(runtime._library.api, name)

        def call(handle: int, *arguments: Any) -> None:
            options[name] = arguments[0]
            options[str(arguments[0])] = arguments[-1]
            real(handle, *arguments)

        monkeypatch.setattr(runtime._library.api, name, call)

    for name in (
        "SetSessionGraphOptimizationLevel",
        "AddSessionConfigEntry",
        "SetIntraOpNumThreads",
    ):
        listen(name)

    def load(plan: Plan | None) -> tuple[Any, str, int]:
        options.clear()
        runtime.load(tmp_path / "model.onnx", plan)
        level, threads = (
            options.get("SetSessionGraphOptimizationLevel"),
            options["SetIntraOpNumThreads"],
        )
        return level, options[str(b"session.disable_prepacking")].decode(), threads

    return load


def test_a_session_follows_its_plan(
    options_of: Callable[[Plan | None], tuple[Any, str, int]],
) -> None:
    levels = ort.GraphOptimizationLevel

    assert options_of(None) == (None, "0", 4)  # the library's default, for all CPUs
    assert options_of(Plan(threads=2)) == (None, "0", 2)
    assert options_of(Plan("extended", prepacking=False)) == (int(levels.ORT_DISABLE_ALL), "1", 1)
    assert options_of(Plan("extended", layout=True, threads=9)) == (
        int(levels.ORT_ENABLE_LAYOUT),
        "0",
        4,
    )
