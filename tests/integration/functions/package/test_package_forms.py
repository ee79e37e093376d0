"""Integration tests of model archives and separate files, from upload to inference."""

import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State, Version
from functions.core.uploads import Upload
from tests.data_plane import rows
from tests.hostile.cases import outside, tar
from tests.models import make_model, scale_model
from tests.platform import Platform

WEIGHTS = np.array([2, 3, 5], np.float32).tobytes()
LOCATIONS = [
    "model.onnx.data",
    "./model.onnx.data",
    "data/weights.bin",
    "a/b//c/./weights",
    "my weights (1).bin",
    "poids-modèle.bin",
    "重み.bin",
    "onnx::MatMul_12",
    ".weights",
    "w",
    "é",
    "w" * 200 + "/" + "x" * 200,
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    sandbox = ProcessSandbox(spare=True)
    yield sandbox
    sandbox.close()


@pytest.fixture
def platform(tmp_path: Path, sandbox: ProcessSandbox) -> Platform:
    sandbox.refill()
    (tmp_path / "served").mkdir()
    return Platform(tmp_path / "served", sandbox)


def register(platform: Platform, key: str, content: bytes, **parts: bytes) -> Version:
    """Upload files of model `demo`, `content` last, and register it."""
    for path, data in parts.items():
        platform.uploads.put("up", f"models/demo/{path}", data)
    key = f"models/demo/{key}"
    version = platform.registration.register(
        Upload("up", key, platform.uploads.put("up", key, content))
    )
    assert version is not None
    return version


def answer(platform: Platform, version: Version) -> list[float]:
    """Call the model with [1, 1, 1]; return its output values."""
    assert version.state is State.READY, version.reason
    reply = platform.client.post("/v2/models/demo/infer", rows([1.0, 1.0, 1.0]))
    assert reply.status == 200, reply.json
    values: list[float] = reply.json["outputs"][0]["data"]
    return values


def listing(files: Mapping[str, bytes]) -> bytes:
    listed = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in files.items()
    ]
    return json.dumps({"schema": 1, "files": listed}).encode()


def noisy_model(location: str) -> bytes:
    """Return a model with random output, which prevents optimisation at registration.

    It computes y = x * w, with w in the file at `location`.
    """
    weights = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    value = helper.make_tensor_value_info
    model = make_model(
        [
            helper.make_node("Mul", ["x", "w"], ["y"]),
            helper.make_node("RandomUniformLike", ["x"], ["noise"]),
        ],
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3]), value("noise", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    return model.SerializeToString()


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda location: ascii(location)[:30])
def test_external_weights_of_any_name_are_served(platform: Platform, location: str) -> None:
    archive = tar(
        ("./out/net.onnx", outside(location)),
        (f"./out/{location}", WEIGHTS),
        ("w.bin", b"decoy"),
        form=tarfile.PAX_FORMAT,
    )

    version = register(platform, "model.tar.gz", archive)

    assert answer(platform, version) == [2, 3, 5]
    assert version.ignored == ("w.bin",)


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda location: ascii(location)[:30])
def test_external_weights_of_any_name_are_served_as_uploaded(
    platform: Platform, location: str
) -> None:
    archive = tar(("net.onnx", noisy_model(location)), (location, WEIGHTS), form=tarfile.GNU_FORMAT)

    version = register(platform, "model.tar.gz", archive)

    assert answer(platform, version) == [2, 3, 5]
    assert version.plan["optimised"] == "none"
    assert len(version.files) == 2


@pytest.mark.parametrize("location", LOCATIONS[:-1], ids=lambda location: ascii(location)[:30])
def test_listed_files_of_any_name_are_served(platform: Platform, location: str) -> None:
    path = "parts/" + "/".join(part for part in location.split("/") if part not in ("", "."))
    files = {"parts/Net.ONNX": outside(location), path: WEIGHTS, "parts/notes é.txt": b"notes"}

    version = register(platform, "manifest.json", listing(files), **files)

    assert answer(platform, version) == [2, 3, 5]
    assert version.ignored == ("parts/notes é.txt",)


@pytest.mark.parametrize("location", LOCATIONS[:-1], ids=lambda location: ascii(location)[:30])
def test_weights_of_any_name_beside_the_model_are_served(platform: Platform, location: str) -> None:
    path = "/".join(part for part in location.split("/") if part not in ("", "."))

    version = register(platform, "1/Net.onnx", outside(location), **{f"1/{path}": WEIGHTS})

    assert answer(platform, version) == [2, 3, 5]
    assert version.notes[-1] == f"Weights: {path}, object version v1."


def test_one_file_in_two_spellings_is_taken_once(platform: Platform) -> None:
    value = helper.make_tensor_value_info
    weights = []
    for name, location in [("v", "d/w.bin"), ("w", "./d//w.bin")]:
        tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        weights.append(tensor)
    model = make_model(
        [helper.make_node("Mul", ["x", "v"], ["a"]), helper.make_node("Mul", ["a", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        weights,
    )

    version = register(
        platform,
        "model.tar.gz",
        tar(("m.onnx", model.SerializeToString()), ("d/w.bin", WEIGHTS)),
    )

    assert answer(platform, version) == [4, 9, 25]


def test_a_file_for_each_of_many_tensors_is_served(platform: Platform) -> None:
    count = 300  # more files than the process may have open
    value = helper.make_tensor_value_info
    tensors, members = [], []
    for number in range(count):
        tensor = numpy_helper.from_array(np.zeros(3, np.float32), f"w{number}")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"onnx::Add_{number}")
        tensors.append(tensor)
        members.append((f"onnx::Add_{number}", np.full(3, number, np.float32).tobytes()))
    nodes = [
        helper.make_node("Add", [f"a{number}", f"w{number}"], [f"a{number + 1}"])
        for number in range(count)
    ]
    model = make_model(
        nodes,
        [value("a0", TensorProto.FLOAT, ["n", 3])],
        [value(f"a{count}", TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    model.graph.node[0].input[0] = model.graph.input[0].name = "x"

    version = register(
        platform, "model.tar.gz", tar(("m.onnx", model.SerializeToString()), *members)
    )

    assert answer(platform, version) == [1 + sum(range(count))] * 3


def sagemaker_folder(root: Path) -> None:
    """Create a SageMaker model folder with links, long paths and macOS attributes."""
    (root / "code" / "lib").mkdir(parents=True)
    (root / "model.onnx").write_bytes(outside("model.onnx.data"))
    (root / "model.onnx.data").write_bytes(WEIGHTS)
    (root / "._model.onnx").write_bytes(b"\0\5\26\7")
    (root / "notes-modèle.txt").write_text("notes")
    (root / "code" / "inference.py").symlink_to("/opt/ml/code/inference.py")
    (root / "code" / "latest.onnx").symlink_to("../model.onnx")
    os.link(root / "model.onnx.data", root / "code" / "copy.bin")
    long = root / "code" / ("p" * 90) / ("q" * 90)
    long.mkdir(parents=True)
    (long / "module.py").write_text("pass")
    for number in range(100):
        (root / "code" / "lib" / f"file-{number}.py").write_text("pass")


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"]], ids=str)
def test_the_output_of_a_training_job_is_served(
    platform: Platform, tmp_path: Path, options: list[str]
) -> None:
    root = tmp_path / "model"
    sagemaker_folder(root)
    archive = tmp_path / "made.tar.gz"
    members = ["model.onnx.data", "model.onnx", "._model.onnx", "notes-modèle.txt", "code"]
    subprocess.run(["tar", "czf", archive, *options, "-C", root, *members], check=True)

    version = register(platform, "job/output/model.tar.gz", archive.read_bytes())

    assert answer(platform, version) == [2, 3, 5]
    assert "._model.onnx" in version.ignored
    assert version.ignored[-1] == "and 43 more"


def test_pythons_tarfile_packs_a_folder(platform: Platform, tmp_path: Path) -> None:
    root = tmp_path / "model"
    sagemaker_folder(root)
    archive = tmp_path / "made.tar.gz"
    with tarfile.open(archive, "w:gz") as packer:
        for name in ("model.onnx.data", "model.onnx", "notes-modèle.txt", "code"):
            packer.add(root / name, arcname=f"./model/{name}")

    assert answer(platform, register(platform, "model.tar.gz", archive.read_bytes())) == [2, 3, 5]


def test_a_manifest_beside_the_model_is_read(platform: Platform) -> None:
    manifest = json.dumps({"schema": 1, "description": "Triples."}).encode()
    archive = tar(
        ("code/manifest.json", b"of another kind"),
        ("m/MODEL.ONNX", scale_model(3.0)),
        ("m/manifest.json", manifest),
    )

    version = register(platform, "model.tar.gz", archive)

    assert answer(platform, version) == [3, 3, 3]
    assert version.card["description"] == "Triples."
    assert version.ignored == ("code/manifest.json",)


def test_two_models_are_refused_by_their_names(platform: Platform) -> None:
    archive = tar(("encoder.onnx", scale_model()), ("decoder.onnx", scale_model()))

    version = register(platform, "model.tar.gz", archive)

    assert version.reason is not None
    assert version.reason.code == "NO_MODEL"
    assert version.reason.message == (
        "the archive holds 2 .onnx files, 'encoder.onnx' and 'decoder.onnx', and one is needed: "
        "upload each by itself, or call the one to serve model.onnx"
    )


def test_a_link_as_the_model_is_refused_with_the_cure(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(scale_model())
    (tmp_path / "model.onnx").symlink_to("blob")
    archive = tmp_path / "made.tar.gz"
    subprocess.run(["tar", "czf", archive, "-C", tmp_path, "model.onnx", "blob"], check=True)

    version = register(platform, "model.tar.gz", archive.read_bytes())

    assert version.reason is not None
    assert version.reason.code == "BAD_ARCHIVE"
    assert version.reason.message == (
        "the archive cannot be read: 'model.onnx' is a symbolic link; pack the file itself "
        "(tar --dereference)"
    )
    subprocess.run(["tar", "czhf", archive, "-C", tmp_path, "model.onnx"], check=True)
    assert answer(platform, register(platform, "model.tar.gz", archive.read_bytes())) == [2, 2, 2]
