"""Reader of ONNX files, compared with the onnx package and fed damaged files."""

from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.core.errors import InvalidModel
from functions.core.package.onnx_reader import read_onnx
from tests.models import outside_weights_model, scale_model


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return path


def test_it_agrees_with_the_onnx_package(tmp_path: Path) -> None:
    path = write(tmp_path, scale_model(manifest={"schema": 1}))
    model = onnx.load(path)

    description = read_onnx(path)

    assert description.ir_version == model.ir_version
    assert description.opset == model.opset_import[0].version
    assert description.producer == model.producer_name
    assert description.metadata == {p.key: p.value for p in model.metadata_props}
    assert description.nodes == len(model.graph.node)
    assert description.external == {}


@pytest.mark.parametrize("again", ["1", "2"], ids=["the same value", "another value"])
def test_a_metadata_key_given_twice_is_refused_by_name(tmp_path: Path, again: str) -> None:
    model = onnx.load_from_string(scale_model())
    for key, value in (("author", "1"), ("licence", "1"), ("author", again)):
        model.metadata_props.add(key=key, value=value)

    with pytest.raises(InvalidModel, match="the key 'author' twice; remove one") as refused:
        read_onnx(write(tmp_path, model.SerializeToString()))

    assert refused.value.instance_code == "DUPLICATE_NAME"


def test_it_lists_external_weight_files(tmp_path: Path) -> None:
    content, _ = outside_weights_model(tmp_path, "weights.bin")

    assert read_onnx(write(tmp_path, content)).external == {"weights.bin": 12}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "EMPTY_FILE"),
        (scale_model()[:-10], "TRUNCATED"),
        (b"\x08\x0a", "NOT_ONNX"),
        (b"this is a text file\n" * 10, None),
        (b"<html><body>404</body></html>", None),
        (b"\x80\x04\x95pickle", None),
        (b"PK\x03\x04zip", None),
        (b'{"json": true}', None),
        (b"\xff" * 100, "NOT_ONNX"),
    ],
    ids=[
        "empty",
        "truncated",
        "no graph",
        "text",
        "html",
        "pickle",
        "zip",
        "json",
        "endless number",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, code: str | None) -> None:
    with pytest.raises(InvalidModel) as caught:
        read_onnx(write(tmp_path, content))
    assert caught.value.instance_code in ({code} if code else {"NOT_ONNX", "TRUNCATED"})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused_with_a_reason(tmp_path_factory, data: st.DataObject) -> None:
    good = scale_model(manifest={"schema": 1})
    content = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.tuples(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=8)).map(
                lambda change: good[: change[0]] + change[1] + good[change[0] + len(change[1]) :]
            ),
        )
    )
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    path.write_bytes(content)
    try:
        read_onnx(path)
    except InvalidModel as error:
        assert len(str(error)) <= 300
        assert str(error).isprintable()
