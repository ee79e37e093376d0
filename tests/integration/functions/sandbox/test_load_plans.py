"""Tests that load plans reproduce the outputs of ONNX Runtime's default session."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.errors import InvalidModel
from functions.core.registration.sandbox_protocol import Built
from functions.core.registry.load_plan import Plan
from functions.core.watchdog import Watchdog
from functions.sandbox import comparison, evaluate
from functions.sandbox.measure import measure
from tests.arrays import to_array, to_tensor
from tests.models import make_model

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
BuildModel = Callable[..., Built]


def value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def int4_model(size: int = 512, layers: int = 3) -> Any:
    """Make a model of MatMulNBits layers: 4-bit weights in blocks of 32."""
    random = np.random.default_rng(1)
    nodes, weights, names = [], [], ["x", *(f"h{at}" for at in range(1, layers)), "y"]
    for at in range(layers):
        blocks = random.standard_normal((size, size // 32, 32)).astype(np.float32) / size**0.5
        scales = np.abs(blocks).max(axis=2) / 7
        codes = np.clip(np.rint(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        weights += [
            numpy_helper.from_array(packed, f"b{at}"),
            numpy_helper.from_array(scales.reshape(-1), f"s{at}"),
        ]
        nodes.append(
            helper.make_node(
                "MatMulNBits", [names[at], f"b{at}", f"s{at}"], [names[at + 1]],
                domain="com.microsoft", K=size, N=size, bits=4, block_size=32, accuracy_level=4,
            )
        )  # fmt: skip
    x, y = value("x", FLOAT, ["batch", size]), value("y", FLOAT, ["batch", size])
    return make_model(nodes, [x], [y], weights)


def speech_model(folder: Path) -> Any:
    """Make a speech-like model: convolutions and an LSTM, partly quantised dynamically."""
    random = np.random.default_rng(2)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(random.standard_normal(shape, np.float32) / 6, name)

    def axis(name: str, number: int) -> Any:
        return numpy_helper.from_array(np.array([number], np.int64), name)

    square: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["a"], name="float", **square),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "c2"], ["c"], **square),
        helper.make_node("ReduceMean", ["c", "last"], ["m"], keepdims=0),
        helper.make_node("Transpose", ["m"], ["t"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "w", "r"], ["l"], hidden_size=64),
        helper.make_node("Squeeze", ["l", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "d"], ["y"]),
    ]
    weights = [
        weight("c1", 64, 16, 3, 3), weight("c2", 64, 64, 3, 3), weight("w", 1, 256, 64),
        weight("r", 1, 256, 64), weight("d", 64, 40), axis("last", 3), axis("one", 1),
    ]  # fmt: skip
    x = value("x", FLOAT, ["batch", 16, "time", 8])
    onnx.save(
        make_model(nodes, [x], [value("y", FLOAT, ["time", "batch", 40])], weights),
        folder / "float.onnx",
    )
    quantize_dynamic(
        folder / "float.onnx",
        folder / "int8.onnx",
        op_types_to_quantize=["Conv", "LSTM", "MatMul"],
        weight_type=QuantType.QUInt8,
        nodes_to_exclude=["float"],
    )
    return onnx.load(folder / "int8.onnx")


def default_answer(path: Path, x: np.ndarray) -> np.ndarray:
    """Return an ONNX file's output under ONNX Runtime's default session options."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def served_answer(tmp_path: Path, built: Built, x: np.ndarray) -> np.ndarray:
    session = OnnxRuntime(built.plan.threads).load(
        tmp_path / "serving" / built.files[0], built.plan
    )
    return to_array(session.run({"x": to_tensor(x)}, ["y"], 30)["y"])


def notes_on_dropped(built: Built) -> list[str]:
    return [note for note in built.notes if note.startswith("Load plan not used: ")]


@pytest.mark.parametrize("threads", [1, 2])
def test_int4_weights_are_packed_and_answer_as_by_default(
    build_model: BuildModel, tmp_path: Path, threads: int
) -> None:
    built = build_model(int4_model(), threads=threads)

    assert built.plan.prepacking
    [note] = {note.partition(", ")[0] for note in notes_on_dropped(built)}
    assert note == "Load plan not used: weights used in place"
    assert "default ones: the generated request: output 'y'[0, " in notes_on_dropped(built)[0]
    assert "off by" in notes_on_dropped(built)[0]
    for count in (1, 2, 5):
        x = np.random.default_rng(count).standard_normal((count, 512)).astype(np.float32)
        expected = default_answer(tmp_path / "uploaded.onnx", x)
        assert np.array_equal(served_answer(tmp_path, built, x), expected)


def test_dynamically_quantised_models_answer_as_by_default(
    build_model: BuildModel, tmp_path: Path
) -> None:
    model = speech_model(tmp_path)
    kinds = {node.op_type for node in model.graph.node}
    assert kinds >= {"Conv", "ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger"}

    built = build_model(model)

    # A difference in the last bit, as between layouts of a convolution, becomes a whole step.
    [note] = [note for note in built.notes if note.startswith("Answers compared")]
    assert note.endswith(": the same in every bit.")
    for length in (1, 30, 100):
        x = np.random.default_rng(length).standard_normal((1, 16, length, 8)).astype(np.float32)
        expected = default_answer(tmp_path / "uploaded.onnx", x)
        assert np.array_equal(served_answer(tmp_path, built, x), expected)


def test_the_stored_answer_is_that_of_the_default_session(
    build_model: BuildModel, tmp_path: Path
) -> None:
    built = build_model(int4_model(size=64))

    assert built.sample is not None
    [x], [y] = built.sample["request"]["inputs"], built.sample["response"]["outputs"]
    array = np.array(x["data"], np.float32).reshape(x["shape"])
    expected = default_answer(tmp_path / "uploaded.onnx", array)
    assert np.array_equal(np.array(y["data"], np.float32), expected.ravel())


def layer() -> Any:
    weight = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", FLOAT, ["batch", 64])],
        [value("y", FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weight, "w")],
    )


def test_the_note_names_the_requests_that_were_compared(build_model: BuildModel) -> None:
    [note] = [note for note in build_model(layer()).notes if note.startswith("Answers compared")]

    assert "(the generated request, 3 rows of it, 8 rows of it): " in note
    assert note.endswith((": the same in every bit.", " off."))


def wrong_under(monkeypatch: pytest.MonkeyPatch, is_wrong: Callable[[Plan], bool]) -> None:
    """Patch measurement to add 1 to the outputs of some load plans."""

    def measure_wrongly(load: Any, plan: Plan, *args: Any) -> Any:
        costs, session = measure(load, plan, *args)
        right = to_array(costs.outputs["y"])
        return replace(costs, outputs={"y": to_tensor(right + np.float32(is_wrong(plan)))}), session

    monkeypatch.setattr(evaluate, "measure", measure_wrongly)


@pytest.mark.parametrize("prepacking", [False, True])
def test_a_plan_that_differs_from_the_default_is_dropped_with_numbers(
    build_model: BuildModel, monkeypatch: pytest.MonkeyPatch, prepacking: bool
) -> None:
    wrong_under(monkeypatch, lambda plan: plan.prepacking is prepacking)

    built = build_model(layer())

    assert (built.plan.optimised, built.plan.prepacking) == ("extended", not prepacking)
    [note] = notes_on_dropped(built)
    way = "packed at load" if prepacking else "used in place"
    assert note.startswith(f"Load plan not used: weights {way}, 1 thread: its answers are not ONNX")
    assert "off by 1, allowed " in note
    assert "ONNX Runtime's default for the upload (the generated request" in " ".join(built.notes)


def test_if_no_compiled_plan_answers_as_by_default_the_upload_is_served(
    build_model: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_under(monkeypatch, lambda plan: plan.optimised != "none" or not plan.prepacking)

    built = build_model(layer())

    assert built.plan == Plan(warmup=True)
    assert any(note.startswith("Served as uploaded") and "off by 1" in note for note in built.notes)
    served = tmp_path / "serving" / built.files[0]
    assert served.read_bytes() == (tmp_path / "uploaded.onnx").read_bytes()


def test_without_memory_for_packed_weights_they_are_used_in_place(
    build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, compile_ = OnnxRuntime.load, OnnxRuntime.compile

    def load_in_place(self: OnnxRuntime, path: Path, plan: Plan | None = None) -> Any:
        if plan is None or plan.prepacking:
            raise MemoryError
        return load(self, path, plan)

    def compile_in_place(self: Any, *args: Any, prepacking: bool = False) -> Any:
        if prepacking:
            raise MemoryError
        return compile_(self, *args)

    monkeypatch.setattr(OnnxRuntime, "load", load_in_place)
    monkeypatch.setattr(OnnxRuntime, "compile", compile_in_place)
    monkeypatch.setattr(evaluate, "PLANS_S", 1e9)

    built = build_model(int4_model(64), rtol=1.0, atol=1.0)

    assert not built.plan.prepacking
    assert "it does not fit into the memory" in notes_on_dropped(built)[0]


# --- models that never answer


def endless(*inputs: Any) -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("v", FLOAT, ["n"])],
        [value("on", BOOL, []), value("w", FLOAT, ["n"])],
    )
    return make_model(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        inputs,
        [value("y", FLOAT, ["n"])],
        [numpy_helper.from_array(np.array(True), "yes")]
        + ([] if inputs else [numpy_helper.from_array(np.ones(2, np.float32), "x")]),
    )


def refusal(build_model: BuildModel, model: Any, **brief: Any) -> tuple[str, str]:
    with pytest.raises(InvalidModel) as refused:
        build_model(model, **brief)
    return refused.value.instance_code, str(refused.value)


def test_a_model_that_never_ends_is_rejected(
    build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "RUN_S", 0.2)

    code, message = refusal(build_model, endless(value("x", FLOAT, ["n"])))

    assert code == "NO_ANSWER"
    assert message.endswith("if it answers others, add a sample to its manifest")


def test_a_model_that_does_not_end_on_its_sample_is_rejected(
    build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "RUN_S", 0.2)
    tensor = {"datatype": "FP32", "shape": [1], "data": [1.0]}
    sample = {
        "request": {"inputs": [{"name": "x", **tensor}]},
        "response": {"outputs": [{"name": "y", **tensor}]},
    }

    code, message = refusal(build_model, endless(value("x", FLOAT, ["n"])), samples=(sample,))

    assert code == "SAMPLE_FAILED"
    assert message.startswith("sample 0: no answer within 30 s of processor time")


def test_a_model_without_inputs_that_fails_is_rejected(build_model: BuildModel) -> None:
    model = make_model(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [],
        [value("y", FLOAT, [])],
        [
            numpy_helper.from_array(np.ones(2, np.float32), "table"),
            numpy_helper.from_array(np.array(7), "index"),
        ],
    )

    code, message = refusal(build_model, model)

    assert code == "NO_ANSWER"
    assert "has no inputs, and fails whenever it runs" in message


def test_a_model_without_outputs_is_rejected(build_model: BuildModel) -> None:
    model = layer()
    del model.graph.output[:]

    assert refusal(build_model, model)[0] in ("NO_ANSWER", "NOT_LOADABLE")


class StoppedRun:
    """Fake model run that records its termination."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def terminate(self) -> None:
        self.stopped.set()


def test_a_run_is_not_stopped_while_its_clock_stands_still() -> None:
    now = [0.0]
    watchdog = Watchdog(lambda: now[0])
    run: Any = StoppedRun()
    watchdog.watch(run, 0.05)

    assert not run.stopped.wait(0.5)  # ten times as long by another clock
    now[0] = 0.06
    assert run.stopped.wait(60)


def test_the_clock_of_runs_counts_processor_time() -> None:
    began, waited_s = comparison.cpu_clock(2), 0.5
    time.sleep(waited_s)

    assert comparison.cpu_clock(2) - began < waited_s / 2
