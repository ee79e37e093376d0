"""Tests of ONNX external-data locations and their flat replacement names."""

import unicodedata
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from functions.core.errors import InvalidModel
from functions.core.names import is_file_name
from functions.core.package.onnx_reader import read_onnx
from functions.core.package.weight_files import flat_names, relocate, weight_path

PLAIN = {
    "model.onnx.data": "model.onnx.data",
    "./model.onnx.data": "model.onnx.data",
    "data/weights.bin": "data/weights.bin",
    "data//./weights.bin": "data/weights.bin",
    "data/../w.bin": "w.bin",
    "weights 1 (final).bin": "weights 1 (final).bin",
    "onnx::MatMul_123": "onnx::MatMul_123",
    ".hidden": ".hidden",
    unicodedata.normalize("NFD", "modèle.bin"): "modèle.bin",
}
OUTSIDE = ["", ".", "..", "../w.bin", "a/../../w.bin", "/etc/passwd", "//w.bin", "w\0bin", "w\n"]


@pytest.mark.parametrize("location", PLAIN, ids=ascii)
def test_a_location_becomes_a_plain_path(location: str) -> None:
    assert weight_path(location) == PLAIN[location]


@pytest.mark.parametrize("location", OUTSIDE, ids=ascii)
def test_a_location_outside_the_folder_is_refused(location: str) -> None:
    with pytest.raises(InvalidModel, match="path of a file in the model's folder") as caught:
        weight_path(location)
    assert caught.value.instance_code == "BAD_FILE_NAME"
    assert str(caught.value).isprintable()


def external_model(*locations: str) -> bytes:
    """Return a model with external data in each file, partly in subgraphs."""
    tensors = []
    for number, location in enumerate(locations):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[3])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensors.append(tensor)
    graph = helper.make_graph([], "g", [], [], tensors[::2])
    inner = helper.make_graph([], "inner", [], [], tensors[1::2])
    constant = helper.make_node("Constant", [], ["c"], value=tensors[0])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph.node.extend([constant, branch])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def locations_in(path: Path) -> set[str]:
    model = onnx.load(path, load_external_data=False)
    constant, branch = model.graph.node
    graphs: list[Any] = [model.graph, *(attribute.g for attribute in branch.attribute)]
    tensors = [constant.attribute[0].t, *(t for graph in graphs for t in graph.initializer)]
    return {entry.value for tensor in tensors for entry in tensor.external_data}


def rename(path: Path, *locations: str) -> dict[str, str]:
    path.write_bytes(external_model(*locations))
    names = flat_names(read_onnx(path).external, ["model.onnx", "manifest.json"])
    relocate(path, read_onnx(path).locations, names)
    return names


def test_every_constant_gets_the_name_of_its_file(tmp_path: Path) -> None:
    names = rename(tmp_path / "m", "data/w 1.bin", "modèle.bin", "w.bin", "./w.bin", "data_w_1.bin")

    assert names == {
        "data/w 1.bin": "data_w_1.bin",
        "modèle.bin": "mod__le.bin",
        "w.bin": "w.bin",
        "data_w_1.bin": "w0",
    }
    flat = {"data_w_1.bin", "mod__le.bin", "w.bin", "./w.bin", "./././././w0"}
    assert locations_in(tmp_path / "m") == flat


def test_plain_names_leave_the_file_as_it_is(tmp_path: Path) -> None:
    rename(tmp_path / "m", "w.bin", "./v.bin")

    assert (tmp_path / "m").read_bytes() == external_model("w.bin", "./v.bin")


SEGMENT = st.text(st.sampled_from("ab.é 日-"), min_size=1, max_size=4)
LOCATION = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(LOCATION, min_size=1, max_size=6))
def test_any_locations_get_distinct_names_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, locations: list[str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "m"
    try:
        names = rename(path, *locations)
    except InvalidModel as error:
        assert error.instance_code == "BAD_FILE_NAME"
        return

    assert all(is_file_name(name) for name in names.values())
    assert len(set(names.values())) == len(names)
    assert {weight_path(location) for location in locations_in(path)} == set(names.values())
