"""Tests of the check for integer divisions that could crash."""

from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.package.onnx_reader import read_onnx
from tests.hostile import divisions
from tests.hostile.cases import FLOAT, Case, model, node, value


def read(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        read_onnx(path)
    except InvalidModel as error:
        assert len(str(error)) <= 300
        assert "constant" in str(error)
        return error.instance_code
    return "read"


@pytest.mark.parametrize("case", [*divisions.cases()], ids=str)
def test_an_integer_division_is_seen_through_other_operators(tmp_path: Path, case: Case) -> None:
    assert {read(tmp_path, case.make())} == case.codes


@pytest.mark.parametrize("way", sorted(divisions.WAYS.keys() - {"LabelEncoder", "Loop"}))
def test_a_division_of_floats_is_seen_through_other_operators(tmp_path: Path, way: str) -> None:
    assert read(tmp_path, divisions.divided(way, FLOAT)) == "read"


@pytest.mark.parametrize("kind", [3, 5], ids=["int8", "int16"])
def test_narrow_integers_never_trap(tmp_path: Path, kind: int) -> None:
    content = model(
        [node("Mod", "x z", "y")], [value("x", kind), value("z", kind)], [value("y", kind)]
    )

    assert read(tmp_path, content) == "read"
