"""Tests of the check for integer divisions that could crash."""

from pathlib import Path

import pytest

from functions.core.errors import InvalidModel
from functions.core.package.onnx_reader import read_onnx
from tests.hostile import divisions
from tests.hostile.cases import (
    FLOAT,
    INT32,
    Case,
    message,
    model,
    node,
    number,
    onnx,
    raw_model,
    raw_node,
    raw_value,
    value,
)


def read(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        read_onnx(path)
    except InvalidModel as error:
        assert len(str(error)) <= 300
        if error.instance_code == "UNSAFE_INTEGER_DIVISION":
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


def test_the_low_bits_of_a_longer_number_count(tmp_path: Path) -> None:
    """Check that an int32 varint of 2**32 - 1 counts as -1."""
    minus_one = b"\xff\xff\xff\xff\x0f"
    tensor = (
        number(1, 1) + number(2, INT32) + message(5, minus_one) + message(8, b"c")
    )  # fmt: skip
    content = raw_model(
        message(5, tensor), raw_node(b"Div", [b"a", b"c"], [b"y"]),
        message(11, raw_value(b"a", INT32)), message(12, raw_value(b"y", INT32)),
    )  # fmt: skip

    assert read(tmp_path, content) == "UNSAFE_INTEGER_DIVISION"


def test_the_same_type_may_be_declared_twice(tmp_path: Path) -> None:
    made = onnx.ModelProto.FromString(divisions.divided("Shrink", FLOAT))
    made.graph.value_info.extend([value("a", FLOAT, ["n"]), onnx.ValueInfoProto(name="b")])

    assert read(tmp_path, made.SerializeToString()) == "read"


def test_fields_that_an_exporter_leaves_at_zero_are_no_values(tmp_path: Path) -> None:
    made = node("Mod", "x z", "y", fmod=1)
    made.attribute[0].f = 0.0
    made.attribute[0].s = b""
    content = model([made], [value("x"), value("z")], [value("y")])

    assert read(tmp_path, content) == "read"
