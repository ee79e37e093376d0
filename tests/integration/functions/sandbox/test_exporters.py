"""Tests that exported models serve the same outputs as plain ONNX Runtime."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.registration.registration import Registration
from functions.core.registration.sandbox_answers import read_built, read_unpacked
from functions.core.registration.sandbox_protocol import (
    Brief,
    Built,
    Unpacked,
    build_task,
    read_brief,
    report,
)
from functions.core.registry.registry import Registry
from functions.core.registry.version import State, Version
from functions.core.uploads import Form, Upload
from functions.register.manifest import read_manifest
from functions.sandbox.build import build
from functions.sandbox.unpack import unpack
from tests.arrays import to_array, to_tensor
from tests.fakes import MemoryBlobs, MemoryTable, MemoryUploads
from tests.models import IR

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
ML, MS = "ai.onnx.ml", "com.microsoft"
ROWS = np.array([[0.5, -2.0, 1.0], [3.0, 0.25, -1.0]], np.float32)

Arrays = Mapping[str, NDArray[Any]]


class InProcess:
    """Sandbox that runs in the test process and serialises results as JSON."""

    suspect = False

    def unpack(self, form: Form, directory: Path) -> Unpacked:
        return read_unpacked(json.loads(json.dumps(report(unpack(form, directory)))))

    def build(self, brief: Brief, directory: Path) -> Built:
        task = json.loads(json.dumps(build_task(brief, directory)))
        return read_built(json.loads(json.dumps(report(build(read_brief(task), directory)))))


class World:
    """Model registration with the real build step and in-memory storage."""

    def __init__(self, folder: Path) -> None:
        self.blobs = MemoryBlobs()
        self._folder = folder
        self._uploads = MemoryUploads()
        registry = Registry(MemoryTable(), lambda: "2026-11-22T08:00:00.000Z")
        self._registration = Registration(
            registry, self._uploads, self.blobs, InProcess(), read_manifest
        )

    def register(self, content: bytes) -> Version:
        pinned = self._uploads.put("up", "models/m/model.onnx", content)
        version = self._registration.register(Upload("up", "models/m/model.onnx", pinned))
        assert version is not None
        return version

    def answer(self, version: Version, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a registered version's stored model; return outputs by name."""
        assert version.state is State.READY, version.reason
        assert version.signature is not None
        for blob in version.files:
            self.blobs.fetch(blob, self._folder / blob.name)
        session = OnnxRuntime().load(self._folder / version.files[0].name)
        names = [spec.name for spec in version.signature.outputs]
        tensors = {name: to_tensor(array) for name, array in inputs.items()}
        return {name: to_array(t) for name, t in session.run(tensors, names, 30).items()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def plain(content: bytes, inputs: Arrays) -> dict[str, Any]:
    """Run an ONNX file directly in ONNX Runtime; return its outputs."""
    texts = {
        name: np.array([text.decode() for text in array.flat], object).reshape(array.shape)
        if array.dtype == object
        else array
        for name, array in inputs.items()
    }
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, texts), strict=True))


def check(world: World, content: bytes, inputs: Arrays) -> Version:
    """Register a model and compare its outputs with plain ONNX Runtime's."""
    expected = plain(content, inputs)
    version = world.register(content)
    answers = world.answer(version, inputs)
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        if answer.dtype == object:
            assert answer.tolist() == [text.encode() for text in expected[name]]
        else:
            np.testing.assert_allclose(answer, expected[name], rtol=1e-5, atol=1e-6)
            assert answer.dtype == expected[name].dtype
    return version


def exported(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    imports: Sequence[tuple[str, int]] = (("", 20),),
    constants: Sequence[Any] = (),
    ir: int = IR,
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, ir_version=ir)
    del model.opset_import[:]
    for domain, version in imports:
        model.opset_import.add(domain=domain, version=version)
    content: bytes = model.SerializeToString()
    return content


def value(name: str, kind: int = FLOAT, shape: Sequence[Any] | None = ("n", 3)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def maps(name: str, key: int) -> Any:
    inner = helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(inner))


def linear(labels: Sequence[str] | Sequence[int]) -> Any:
    """Make a LinearClassifier node, as exported from scikit-learn's logistic regression."""
    kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_ints"
    return helper.make_node(
        "LinearClassifier",
        ["X"],
        ["label", "probabilities"],
        domain=ML,
        coefficients=[0.5, -1.0, 0.25, -0.5, 1.0, 0.0, 0.1, 0.2, 0.3],
        intercepts=[0.1, 0.2, -0.3],
        post_transform="SOFTMAX",
        **{kind: labels},
    )


# --- imports of operator domains


@pytest.mark.parametrize(
    "imports",
    [
        [(ML, 1), ("", 22), ("", 22)],  # skl2onnx 1.20 without ZipMap
        [("", 11), ("", 13)],
        [("", 13), ("", 11)],
        [("", 11), ("ai.onnx", 13)],
        [("ai.onnx", 13), ("", 11)],
        [("", 13), ("pkg.onnxscript.torch_lib", 1), ("no.node.uses.it", 2**40)],
        [(ML, 1)],
    ],
)
def test_imports_of_operators_count_as_in_onnx_runtime(
    world: World, imports: list[tuple[str, int]]
) -> None:
    # Before opset 13, Softmax took all dimensions after the first as one.
    content = exported(
        [helper.make_node("Softmax", ["x"], ["y"])],
        [value("x", shape=["n", 2, 2])],
        [value("y", shape=["n", 2, 2])],
        imports,
    )

    check(world, content, {"x": np.arange(8, dtype=np.float32).reshape(2, 2, 2)})


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_opsets_that_the_runtime_still_runs_are_served(world: World, opset: int) -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Exp", ["s"], ["y"])]
    if opset < 6:  # the runtime has no Sigmoid of these
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "w")]
    inputs = [value("x"), value("w", shape=[3, 3])]
    content = exported(nodes, inputs, [value("y")], [("", opset)], weights, ir=3)

    check(world, content, {"x": ROWS})


@pytest.mark.parametrize("ir", [1, 2, 3, 13])
def test_ir_versions_that_the_runtime_reads_are_served(world: World, ir: int) -> None:
    content = exported([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")], ir=ir)

    check(world, content, {"x": ROWS})


def test_an_operator_that_the_runtime_lacks_at_an_old_opset_is_named(world: World) -> None:
    content = exported(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")], [("", 1)]
    )

    version = world.register(content)

    assert version.reason is not None
    assert version.reason.code == "NOT_LOADABLE"
    assert "Relu(1)" in version.reason.message


def test_a_dimension_may_have_a_name_of_any_length(world: World) -> None:
    long = "floor(" * 200 + "s77\n" + ")" * 200
    content = exported(
        [
            helper.make_node("Relu", ["x"], ["y" * 2000], "n" * 2000),
            helper.make_node("Neg", ["y" * 2000], ["y"]),
        ],
        [value("x", shape=[long, 3])],
        [value("y", shape=[long, 3])],
    )

    version = check(world, content, {"x": ROWS})

    assert version.signature is not None
    assert version.signature.inputs[0].shape == (-1, 3)


def test_a_graph_may_have_an_input_for_each_of_many_columns(world: World) -> None:
    names = [f"x{at}" for at in range(400)]
    content = exported(
        [helper.make_node("Concat", names, ["y"], axis=1)],
        [value(name, shape=["n", 1]) for name in names],
        [value("y", shape=["n", 400])],
    )

    check(world, content, {name: np.full((2, 1), at, np.float32) for at, name in enumerate(names)})


def test_training_information_is_left_out_and_noted(world: World) -> None:
    content = exported([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")])
    algorithm = helper.make_graph(
        [helper.make_node("Adam", ["x"], ["u"], domain="ai.onnx.preview.training")], "a", [], []
    )
    training = b"\x12" + bytes([algorithm.ByteSize()]) + algorithm.SerializeToString()
    content += b"\xa2\x01" + bytes([len(training)]) + training

    version = check(world, content, {"x": ROWS})

    assert any("training information" in note for note in version.notes)


# --- ZipMap


@pytest.mark.parametrize("labels", [(0, 1, 2), (-5, 7, 10**12), ("cat", "Möwe", "owl")])
def test_zipmap_becomes_the_probabilities_with_the_class_labels(
    world: World, labels: Sequence[Any]
) -> None:
    key = STRING if isinstance(labels[0], str) else INT64
    kind = "classlabels_strings" if key == STRING else "classlabels_int64s"
    zipmap = helper.make_node(
        "ZipMap", ["probabilities"], ["output_probability"], domain=ML, **{kind: labels}
    )
    content = exported(
        [linear(labels), zipmap],
        [value("X")],
        [value("label", key, ["n"]), maps("output_probability", key)],
        [(ML, 1)],  # CatBoost imports only these
    )
    expected = plain(content, {"X": ROWS})

    version = world.register(content)

    answers = world.answer(version, {"X": ROWS})
    assert list(answers) == ["label", "output_probability"]
    rows = [[row[label] for label in labels] for row in expected["output_probability"]]
    np.testing.assert_array_equal(answers["output_probability"], np.array(rows, np.float32))
    assert version.signature is not None
    output = version.signature.outputs[1]
    assert (output.datatype, output.shape) == ("FP32", (-1, 3))
    assert output.labels == tuple(map(str, labels))
    assert version.signature.batches
    assert "ZipMap" in version.notes[0]
    assert "'output_probability'" in version.notes[0]


def test_zipmap_of_float64_probabilities_becomes_float32(world: World) -> None:
    cast = helper.make_node("Cast", ["x"], ["p"], to=TensorProto.DOUBLE)
    zipmap = helper.make_node("ZipMap", ["p"], ["z"], domain=ML, classlabels_int64s=[7, 8, 9])
    content = exported([cast, zipmap], [value("x")], [maps("z", INT64)], [("", 22), (ML, 1)])

    version = world.register(content)

    np.testing.assert_array_equal(world.answer(version, {"x": ROWS})["z"], ROWS)


def test_labels_of_the_manifest_take_the_place_of_the_models(world: World) -> None:
    zipmap = helper.make_node(
        "ZipMap", ["probabilities"], ["p"], domain=ML, classlabels_int64s=[0, 1, 2]
    )
    graph = helper.make_graph(
        [linear([0, 1, 2]), zipmap],
        "g",
        [value("X")],
        [value("label", INT64, ["n"]), maps("p", INT64)],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(ML, 1)], ir_version=8
    )
    manifest = {"schema": 1, "outputs": [{"name": "p", "labels": ["cat", "dog", "owl"]}]}
    model.metadata_props.add(key="mayfly.manifest", value=json.dumps(manifest))

    version = world.register(model.SerializeToString())

    assert version.signature is not None
    assert version.signature.outputs[1].labels == ("cat", "dog", "owl")


def test_another_sequence_is_refused_with_its_name_type_and_next_step(world: World) -> None:
    content = exported(  # as skl2onnx writes MultiOutputClassifier
        [helper.make_node("SequenceConstruct", ["x", "x"], ["probabilities"])],
        [value("x")],
        [helper.make_tensor_sequence_value_info("probabilities", FLOAT, None)],
    )

    version = world.register(content)

    assert version.reason is not None
    assert version.reason.code == "UNSUPPORTED_TYPE"
    for part in ("'probabilities'", "seq(tensor(float))", "ConcatFromSequence"):
        assert part in version.reason.message


# --- text


@pytest.mark.parametrize("locale", [None, "en_US", "de_DE.UTF-8", ""])
@pytest.mark.parametrize("action", ["LOWER", "UPPER"])
def test_text_changes_case_as_python_changes_it(
    world: World, locale: str | None, action: str
) -> None:
    given = {} if locale is None else {"locale": locale}
    content = exported(
        [helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action=action, **given)],
        [value("x", STRING, ["n"])],
        [value("y", STRING, ["n"])],
    )
    texts = ["The CAT", "ÄÖÜ é", "Ждёт", "ΣΑ", "日本"]

    version = world.register(content)

    answers = world.answer(version, {"x": np.array([text.encode() for text in texts], object)})
    changed = [text.lower() if action == "LOWER" else text.upper() for text in texts]
    assert [text.decode() for text in answers["y"]] == changed
    assert "C.UTF-8" in version.notes[0]


def test_a_locale_whose_case_differs_is_refused_with_the_cure(world: World) -> None:
    content = exported(
        [
            helper.make_node(
                "StringNormalizer", ["x"], ["y"], "fold", case_change_action="LOWER", locale="tr_TR"
            )
        ],
        [value("x", STRING, ["n"])],
        [value("y", STRING, ["n"])],
    )

    version = world.register(content)

    assert version.reason is not None
    assert version.reason.code == "LOCALE"
    assert "'fold'" in version.reason.message
    assert "'tr_TR'" in version.reason.message


# --- operators of com.microsoft

INTEGERS = np.array([[3, 1, 2], [0, 2, 1]], np.int64)
CONTRIB: dict[str, tuple[Any, dict[str, NDArray[Any]], Sequence[Any]]] = {
    "CDist": (
        {"metric": "euclidean"},
        {"a": ROWS, "b": ROWS[:1] + 1},
        [value("y", shape=["n", "m"])],
    ),
    "ExpandDims": ({}, {"a": ROWS, "b": np.array(1, np.int32)}, [value("y", shape=["n", 1, 3])]),
    "GatherND": (
        {},
        {"a": ROWS, "b": np.array([[1, 2], [0, 0]], np.int64)},
        [value("y", shape=["n"])],
    ),
    "MurmurHash3": (
        {"seed": 3, "positive": 1},
        {"a": np.array([b"the", b"", "é".encode()], object)},
        [value("y", TensorProto.UINT32, ["n"])],
    ),
    "Range": (
        {},
        {"a": np.array(1, np.float32), "b": np.array(3, np.float32)},
        [value("y", shape=["n"])],
    ),
    "TransposeMatMul": ({"transB": 1, "alpha": 0.5}, {"a": ROWS, "b": ROWS}, [value("y")]),
    "Unique": (
        {},
        {"a": np.array([2, 1, 2], np.float32)},
        [value("y", shape=["m"]), value("i", INT64, ["n"]), value("c", INT64, ["m"])],
    ),
}


@pytest.mark.parametrize("operator", CONTRIB)
def test_an_operator_of_microsoft_is_served(world: World, operator: str) -> None:
    attributes, inputs, outputs = CONTRIB[operator]
    outputs = [*outputs]
    if operator == "TransposeMatMul":
        outputs = [value("y", shape=["n", "m"])]
    kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in inputs.items()}
    content = exported(
        [
            helper.make_node(
                operator, list(inputs), [item.name for item in outputs], domain=MS, **attributes
            )
        ],
        [value(name, kinds[name], [None] * array.ndim) for name, array in inputs.items()],
        outputs,
        [("", 20), (MS, 1)],
    )

    check(world, content, inputs)
