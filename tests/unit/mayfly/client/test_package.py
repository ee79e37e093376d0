"""Files of an upload: which are sent, under which names, in which order."""

import hashlib
import json
from pathlib import Path

import pytest

from mayfly.client.errors import InvalidInput
from mayfly.client.package import FILES_MAX, read_package


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(path: Path) -> list[str]:
    return [file.name for file in read_package(path)]


def test_an_archive_has_the_name_that_registers(tmp_path: Path) -> None:
    write(tmp_path, out_dot_tgz="x")

    assert names(tmp_path / "out.tgz") == ["model.tar.gz"]


@pytest.mark.parametrize("ending", [".data", "_data"])
def test_weights_go_before_their_model(tmp_path: Path, ending: str) -> None:
    write(tmp_path, net_dot_onnx="graph", other_dot_txt="x")
    (tmp_path / f"net.onnx{ending}").write_text("weights")

    assert names(tmp_path / "net.onnx") == [f"net.onnx{ending}", "net.onnx"]


def test_a_model_and_its_weights_keep_their_own_manifest(tmp_path: Path) -> None:
    """A manifest.json would replace the one inside the model."""
    write(tmp_path, net_dot_onnx="graph", net_dot_onnx_dot_data="weights", README_dot_md="x")

    assert names(tmp_path) == ["net.onnx.data", "net.onnx"]


def test_a_folder_is_sent_in_parts_with_a_manifest_last(tmp_path: Path) -> None:
    write(
        tmp_path,
        manifest_dot_json='{"schema": 1, "task": "embedding"}',
        model_dot_onnx="graph",
        data__w_dot_bin="weights",
        tokenizer_dot_json="{}",
        model_dot_safetensors="no",
        _dot_cache__x="no",
    )
    *parts, manifest = read_package(tmp_path)

    assert [part.name for part in parts] == [
        "parts/data/w.bin", "parts/model.onnx", "parts/tokenizer.json",
    ]  # fmt: skip
    document = json.loads(manifest.open().read())
    assert (manifest.name, document["task"]) == ("manifest.json", "embedding")
    assert document["files"][0] == {
        "path": "parts/data/w.bin",
        "size": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert names(tmp_path / "manifest.json") == names(tmp_path)


def test_a_manifest_with_a_list_says_what_is_sent(tmp_path: Path) -> None:
    listed = [{"path": "parts/a.onnx", "size": 0, "sha256": ""}]
    write(tmp_path, parts__a_dot_onnx="graph", parts__b_dot_onnx="x")
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "files": listed}))

    *parts, manifest = read_package(tmp_path)
    assert [part.name for part in parts] == ["parts/a.onnx"]
    assert json.loads(manifest.content)["files"][0]["size"] == 5


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a_dot_txt": "x"}, "has no .onnx"),
        ({"a_dot_onnx": "x", "b_dot_onnx": "x"}, "2 .onnx files"),
        ({"a_dot_onnx": "", "b_dot_bin": "x"}, "is empty"),
        ({"a_dot_onnx": "x", "manifest_dot_json": "{"}, "no JSON"),
        ({"a_dot_onnx": "x", "manifest_dot_json": "[]"}, "no JSON object"),
        ({"a_dot_onnx": "x", "manifest_dot_json": '{"files": ["a"]}'}, "no list of objects"),
        ({"a_dot_onnx": "x", "manifest_dot_json": '{"files": [{"path": "b"}]}'}, "not there"),
        ({"a_dot_onnx": "x", **{f"w{n}": "x" for n in range(FILES_MAX)}}, "at most 256"),
    ],
)
def test_a_folder_that_is_no_package_says_why(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_package(write(tmp_path, **files))


def test_the_model_of_several_variants_is_sent_alone(tmp_path: Path) -> None:
    for name in (
        *("onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json", "chat_template.jinja"),
        *("onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    assert names(tmp_path) == [
        *("parts/chat_template.jinja", "parts/onnx/model.onnx", "parts/onnx/model.onnx_data"),
        *("parts/tokenizer.json", "manifest.json"),
    ]
    (tmp_path / "onnx/encoder_model.onnx").write_text("x")
    with pytest.raises(InvalidInput, match=r"3 \.onnx files"):
        read_package(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "none.onnx"])
def test_a_path_that_is_no_model_says_what_is(tmp_path: Path, name: str) -> None:
    write(tmp_path, model_dot_pt="x")

    with pytest.raises(InvalidInput, match=r"name an \.onnx, a model\.tar\.gz"):
        read_package(tmp_path / name)
