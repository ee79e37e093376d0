"""Graphs are cleaned for every machine, sampled, and saved as one file."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")
onnx = pytest.importorskip("onnx")

from tests import networks
from training.errors import ExportFailed
from training.export import graph_editing, graphs, torch_exporter
from training.export.torch_exporter import torchscript

# The exporters' own warnings.
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_a_locale_that_slim_machines_lack_is_replaced() -> None:
    node = onnx.helper.make_node(
        "StringNormalizer", ["t"], ["y"], case_change_action="LOWER", locale="en_US"
    )
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["batch"])
        for name in "ty"
    )
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)

    assert graphs.load_problem(model) == "needs the locale en_US, which a slim machine lacks"
    assert graphs.load_problem(graph_editing.clean(model)) is None


def test_a_file_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    graph = torch_exporter.export(networks.spec("perceptron"), [torchscript])

    with pytest.raises(ExportFailed, match="one ONNX file holds"):
        graphs.save(graph, tmp_path / "model.onnx", limit_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_every_datatype() -> None:
    spec = networks.spec("recommender")
    graph = torch_exporter.export(spec, [torchscript])
    user, seen = (feed.numpy() for feed in spec.sample({"batch": 2}))

    (sample,) = graphs.samples(graph, [{"user": user, "seen": seen}])

    inputs = sample["request"]["inputs"]
    assert [tensor["datatype"] for tensor in inputs] == ["INT64", "BOOL"]
    assert inputs[1]["data"][:2] == seen.ravel()[:2].tolist()
    scores, items = sample["response"]["outputs"]
    assert (scores["datatype"], items["datatype"], items["shape"]) == ("FP32", "INT64", [2, 5])
    assert sorted(items["data"][:5]) == sorted(set(items["data"][:5]))
