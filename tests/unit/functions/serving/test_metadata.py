"""JSON documents of the protocol: model metadata and configuration."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.serving.metadata import MAX_BATCH, VERSION, model_config, model_metadata
from tests.data_plane import PLAN, DataPlane


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(tmp_path)


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def test_the_server_version_is_that_of_the_project() -> None:
    assert tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"] == VERSION


def test_metadata_has_tensors_versions_and_properties_as_strings(plane: DataPlane) -> None:
    card = {"task": "classification", "metrics": {"accuracy": 0.99}}
    version = plane.register("m", card=card, graph={"opset": 20})
    plane.reject("m")
    plane.register("m")

    document = model_metadata(version, plane.registry.versions("m"), plane.registry.aliases("m"))

    assert document["versions"] == ["1", "3"]
    assert document["platform"] == "onnxruntime_onnx"
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    properties = document["properties"]
    assert all(type(value) is str for value in properties.values())
    assert (properties["task"], properties["opset"], properties["aliases"]) == (
        "classification",
        "20",
        "prod",
    )
    assert properties["sha256"] == version.digest
    assert "load_plan" not in properties


def test_metadata_has_the_load_plan_and_the_checked_samples(plane: DataPlane) -> None:
    version = plane.register("m", plan=PLAN, memory_mb=395, measured={"samples_checked": 2.0})

    properties = model_metadata(version, [version], {})["properties"]

    assert properties["load_plan"] == "optimised: extended, prepacking: no, threads: 1"
    assert (properties["memory_mb"], properties["samples_checked"]) == ("395", "2")


def test_metadata_names_columns_and_classes(plane: DataPlane) -> None:
    card = {"inputs": [{"name": "x", "columns": ["age", "größe", "fee"]}, {"name": "z"}]}
    version = plane.register("m", card=card)
    assert version.signature is not None
    [output] = version.signature.outputs
    labelled = replace(version.signature, outputs=(replace(output, labels=("no", "yes")),))

    properties = model_metadata(replace(version, signature=labelled), [version], {})["properties"]

    assert properties["columns.x"] == '["age", "größe", "fee"]'
    assert properties[f"labels.{output.name}"] == '["no", "yes"]'
    assert "columns.z" not in properties


def read_as_pytriton(config: dict[str, Any]) -> dict[str, Any]:
    """Parse a configuration as pytriton's ModelConfigParser does; it refuses empty dims."""
    assert config["name"]
    tensors = {}
    for kind in ("input", "output"):
        for item in config[kind]:
            assert item["data_type"].startswith("TYPE_")
            assert item["dims"], f"{item['name']}: dims are not defined"
            tensors[item["name"]] = (item["data_type"].removeprefix("TYPE_"), tuple(item["dims"]))
    return {"batching": config["max_batch_size"] > 0, "tensors": tensors}


@pytest.mark.parametrize(
    ("inputs", "outputs", "batching", "tensors"),
    [
        (
            [spec("x", "FP32", -1, 1, 28, 28)],
            [spec("y", "FP32", -1, 10)],
            True,
            {"x": ("FP32", (1, 28, 28)), "y": ("FP32", (10,))},
        ),
        (
            [spec("text", "BYTES", -1, 1)],
            [spec("y", "BF16", -1, -1)],
            True,
            {"text": ("STRING", (1,)), "y": ("BF16", (-1,))},
        ),
        (
            [spec("x", "INT64", 1, 3)],
            [spec("y", "BOOL", -1, 3)],
            False,
            {"x": ("INT64", (1, 3)), "y": ("BOOL", (-1, 3))},
        ),
        (
            [spec("x", "FP64", -1, 3)],
            [spec("y", "INT64", -1)],
            False,
            {"x": ("FP64", (-1, 3)), "y": ("INT64", (-1,))},
        ),
    ],
    ids=["batches", "strings", "fixed batch", "a tensor of nothing but its batch"],
)
def test_a_configuration_has_batches_only_if_every_tensor_does(
    plane: DataPlane,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    batching: bool,
    tensors: dict[str, Any],
) -> None:
    version = plane.register("m", signature=Signature(tuple(inputs), tuple(outputs)))

    config = model_config(version)

    assert read_as_pytriton(config) == {"batching": batching, "tensors": tensors}
    assert config["max_batch_size"] in (0, MAX_BATCH)
