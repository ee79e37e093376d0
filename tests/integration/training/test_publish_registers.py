"""Publish and registration accept the same files of exporters."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from training import manifest
from training.publish import main

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]
X = np.random.default_rng(0).random((60, 4), dtype=np.float32)
Y = np.array(["cat", "cow", "dog"])[np.arange(60) % 3]
ML: Any = {"domain": "ai.onnx.ml"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    sandbox = ProcessSandbox()
    yield Platform(tmp_path_factory.mktemp("models"), sandbox)
    sandbox.close()


def tensor(name: str, kind: int, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Any:
    constants = [numpy_helper.from_array(value, name) for name, value in more.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def trees() -> list[Any]:
    """Return nodes of a linear classifier with label and probabilities."""
    coefficients = [0.5, -0.5, 1.0, 0.25, -1.0, 0.125]
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "probabilities"], **ML,
        coefficients=coefficients, intercepts=[0.0, 0.25, 0.5], classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    )  # fmt: skip
    return [node]


def xgboost() -> Any:
    """Make a model as onnxmltools writes xgboost classifiers: the label comes first."""
    outputs = [tensor("label", TensorProto.INT64, None)]
    outputs += [tensor("probabilities", TensorProto.FLOAT, None, 3)]
    model = make_model(trees(), [tensor("x", TensorProto.FLOAT, None, 2)], outputs)
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    return model


def catboost() -> Any:
    """Make a model as CatBoost writes classifiers: it imports no standard operators."""
    zipmap = helper.make_node(
        "ZipMap", ["probability_tensor"], ["probabilities"], **ML, classlabels_int64s=[0, 1, 2]
    )
    nodes = [*trees(), zipmap]
    nodes[0].output[1] = "probability_tensor"
    model = make_model(
        nodes,
        [tensor("x", TensorProto.FLOAT, "N", 2)],
        [tensor("label", TensorProto.INT64, "N")],
    )
    entry = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.output.append(
        helper.make_value_info("probabilities", helper.make_sequence_type_proto(entry))
    )
    del model.opset_import[:]
    model.opset_import.add(domain="ai.onnx.ml", version=2)
    return model


def decoder() -> Any:
    """Make a decoder with the inputs and outputs of Optimum's text-generation-with-past."""
    past, both = "past_sequence_length", "past_sequence_length + sequence_length"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Reshape", ["rows", "by_head"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["key"], perm=[0, 2, 1, 3]),
        helper.make_node(
            "Concat", ["past_key_values.0.key", "key"], ["present.0.key"], axis=2
        ),
        helper.make_node("ReduceSum", ["present.0.key", "inner"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "last"], ["total"], keepdims=1),
        helper.make_node("Unsqueeze", ["total", "last"], ["totals"]),
        helper.make_node("Add", ["rows", "totals"], ["logits"]),
    ]  # fmt: skip
    inputs = [
        tensor("input_ids", TensorProto.INT64, "batch_size", "sequence_length"),
        tensor("attention_mask", TensorProto.INT64, "batch_size", both),
        tensor("past_key_values.0.key", TensorProto.FLOAT, "batch_size", 2, past, 4),
    ]
    outputs = [
        tensor("present.0.key", TensorProto.FLOAT, "batch_size", 2, both, 4),
        tensor("logits", TensorProto.FLOAT, "batch_size", "sequence_length", 8),
    ]
    return make_model(
        nodes, inputs, outputs,
        table=np.random.default_rng(0).random((9, 8), dtype=np.float32) - 0.5,
        by_head=np.array([0, 0, 2, 4]), inner=np.array([1, 3]), last=np.array([1]),
    )  # fmt: skip


def with_functions() -> Any:
    """Make a model with a function of its own, as onnxscript writes them."""
    own = "own"
    opset = [helper.make_opsetid("", 20)]
    double = helper.make_function(
        own, "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset
    )
    nodes = [helper.make_node("Double", ["x"], ["y"], domain=own)]
    x, y = (tensor(name, TensorProto.FLOAT, "n", 2) for name in "xy")
    model = make_model(nodes, [x], [y])
    model.opset_import.add(domain=own, version=1)
    model.functions.append(double)
    return model


def refuses_everything() -> Any:
    """Make a model that looks up a row of a table without rows."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    x, y = tensor("x", TensorProto.INT64, "n"), tensor("y", TensorProto.FLOAT, "n", 2)
    return make_model([node], [x], [y], table=np.zeros((0, 2), np.float32))


def network(*layers: Any) -> Callable[[Path], None]:
    """Return a function that writes a network by torch's default export, with external data."""

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), *layers).eval()
        sizes = ({0: torch.export.Dim("batch")},)
        inputs = (torch.from_numpy(X[:2]),)
        path = folder / "model.onnx"
        torch.onnx.export(model, inputs, path, dynamic_shapes=sizes, verbose=False)

    return write


def estimator(kind: Any, **options: Any) -> Any:
    return to_onnx(kind().fit(X, Y), X[:1], options=options or None)


EXPORTS: Mapping[str, tuple[Callable[..., Any], str, dict[str, str]]] = {
    "skl2onnx": (lambda: estimator(LogisticRegression), "classification",
                 {"output_label": "label", "output_probability": "probabilities"}),
    "skl2onnx, arrays": (lambda: estimator(LogisticRegression, zipmap=False), "classification",
                         {"label": "label", "probabilities": "probabilities"}),
    "skl2onnx, distances": (lambda: estimator(LinearSVC), "classification",
                            {"label": "label", "probabilities": "logits"}),
    "xgboost": (xgboost, "classification", {"label": "label", "probabilities": "probabilities"}),
    "catboost": (catboost, "classification", {"label": "label", "probabilities": "probabilities"}),
    "decoder with past": (decoder, "generation",
                          {"present.0.key": "tensor", "logits": "logits"}),
    "functions": (with_functions, "regression", {"y": "value"}),
    "refuses everything": (refuses_everything, "regression", {"y": "tensor"}),
    "torch, logits": (network(torch.nn.Linear(8, 3)), "classification", {"linear_1": "logits"}),
    "torch, softmax": (network(torch.nn.Linear(8, 3), torch.nn.Softmax(-1)), "classification",
                       {"softmax": "probabilities"}),
    "torch, sigmoid": (network(torch.nn.Linear(8, 1), torch.nn.Sigmoid()), "classification",
                       {"sigmoid": "probabilities"}),
    "torch, one logit": (network(torch.nn.Linear(8, 1)), "classification", {"linear_1": "logits"}),
}  # fmt: skip
REWRITTEN = {"functions"}  # published with a change that a registration does not make


@pytest.mark.parametrize("kind", EXPORTS)
def test_publish_and_registration_accept_the_same_models(
    kind: str, platform: Platform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, task, kinds = EXPORTS[kind]
    path, copy = tmp_path / "model.onnx", tmp_path / "copy" / "model.onnx"
    model = make(tmp_path) if kind.startswith("torch") else make()
    if model is not None:
        path.write_bytes(model.SerializeToString())
        assert (platform.upload(path.read_bytes()).state is State.READY) is (kind not in REWRITTEN)

    assert main([str(path), "--model", "demo", "--task", task, "--output", str(copy)], {}) == 0

    version = platform.upload(copy.read_bytes())
    assert version.state is State.READY, version.reason
    [text] = [prop.value for prop in onnx.load(copy).metadata_props if prop.key == manifest.KEY]
    card = json.loads(text)
    assert list({output["name"]: output["kind"] for output in card["outputs"]}.values()) == list(
        kinds.values()
    )
    assert bool(card["samples"]) is (kind != "refuses everything")
    assert ("no sample inside" in capsys.readouterr().out) is (kind == "refuses everything")


def test_labels_go_to_the_probabilities_and_columns_to_the_metadata(
    platform: Platform, tmp_path: Path
) -> None:
    columns = {"inputs": [{"name": "x", "columns": ["age", "fee"]}]}
    (tmp_path / "manifest.json").write_text(json.dumps(columns))
    path, copy = tmp_path / "model.onnx", tmp_path / "copy" / "model.onnx"
    path.write_bytes(xgboost().SerializeToString())
    labels = [word for label in ("a", "b", "c") for word in ("--label", label)]
    arguments = [str(path), "--model", "demo", "--task", "classification", *labels]
    arguments += ["--manifest", str(tmp_path / "manifest.json")]

    assert main([*arguments, "--output", str(copy)], {}) == 0

    [text] = [prop.value for prop in onnx.load(copy).metadata_props if prop.key == manifest.KEY]
    label, probabilities = json.loads(text)["outputs"]
    assert "labels" not in label
    assert probabilities["labels"] == ["a", "b", "c"]
    version = platform.upload(copy.read_bytes())
    metadata = platform.client.get(f"/v2/models/demo/versions/{version.number}").json
    assert metadata["properties"]["labels.probabilities"] == '["a", "b", "c"]'
    assert metadata["properties"]["columns.x"] == '["age", "fee"]'
