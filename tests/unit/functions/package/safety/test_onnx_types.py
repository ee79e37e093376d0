"""Tests of ONNX type inference against ONNX Runtime's operator schemas."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from functions.core.package import onnx_limits as limits
from functions.core.package.onnx_graph import Node
from functions.core.package.safety.onnx_types import (
    _BY_ATTRIBUTE,
    _FIRST_OF_BODY,
    _UNKNOWN,
    output_types,
)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
pybind = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")

NAMES = (
    "float uint8 int8 uint16 int16 int32 int64 string bool float16 double uint32 uint64"  # in order
)
NUMBERS = {name: number for number, name in enumerate(NAMES.split(), start=1)}
# Their types depend on attributes or subgraphs, or they are not for a CPU.
OTHERWISE = {*_UNKNOWN, *_FIRST_OF_BODY, *_BY_ATTRIBUTE, "ConstantOfShape", "EfficientNMS_TRT"} - {
    "DequantizeLinear",
    "QuantizeLinear",
}
TRAPPING = {NUMBERS["int32"], NUMBERS["int64"]}


def schemas() -> Iterator[Any]:
    """Yield schemas of all allowed ONNX operators, in every version."""
    for schema in pybind.get_all_operator_schema():
        if limits.is_allowed(schema.domain, schema.name) and schema.inputs:
            yield schema


def allowed(schema: Any, kind: str) -> set[int]:
    """Return the element types that a schema's type variable allows."""
    names = [kind]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == kind:
            names = list(constraint.allowed_type_strs)
    inner = re.findall(r"(\w+)\)", " ".join(names))
    return {NUMBERS.get(name, 0) for name in inner}


def types_by_rule(schema: Any, kinds: list[int]) -> list[int]:
    names = [str(at) for at in range(len(kinds))]
    outputs = [formal.name for formal in schema.outputs]
    node = Node(schema.name, inputs=names, outputs=outputs)
    return output_types(node, dict(zip(names, kinds, strict=True)), [])


def test_outputs_have_the_types_that_the_runtime_declares() -> None:
    """Compare inferred output types with those that ONNX Runtime's schemas declare.

    A wrong 32- or 64-bit integer type is tolerated: it only makes a division suspicious.
    """
    wrong, compared = [], 0
    for schema in schemas():
        if schema.name in OTHERWISE:
            continue
        kinds = [formal.typeStr for formal in schema.inputs]
        marks = {kind: 1000 + at for at, kind in enumerate(dict.fromkeys(kinds))}
        by_mark = {mark: kind for kind, mark in marks.items()}
        ruled = types_by_rule(schema, [marks[kind] for kind in kinds])
        for formal, mark in zip(schema.outputs, ruled, strict=True):
            compared += 1
            declared = allowed(schema, formal.typeStr)
            by_rule = allowed(schema, by_mark[mark]) if mark in by_mark else {mark}
            if by_mark.get(mark) == formal.typeStr or by_rule <= TRAPPING:
                continue
            if by_rule != declared and (by_rule | declared) & TRAPPING:
                wrong.append((schema.domain, schema.name, schema.since_version, formal.name))

    assert wrong == []
    assert compared > 500


def test_attributes_that_name_a_type_exist() -> None:
    attributes: dict[str, set[str]] = {}
    for schema in schemas():
        attributes.setdefault(schema.name, set()).update(schema.attributes)

    for operator, attribute in _BY_ATTRIBUTE.items():
        assert attribute in attributes.get(operator, {attribute}), operator


@pytest.mark.parametrize(
    ("node", "bodies", "expected"),
    [
        (Node("Cast", inputs=["f"], outputs=["y"], attributes={"to": 7}), [], [7]),
        (Node("EyeLike", inputs=["i"], outputs=["y"]), [], [6]),
        (Node("EyeLike", inputs=["i"], outputs=["y"], attributes={"dtype": 1}), [], [1]),
        (Node("ConstantOfShape", inputs=["i"], outputs=["y"]), [], [1]),
        (Node("Constant", outputs=["y"], attributes={"value_floats": 0}), [], [1]),
        (Node("If", inputs=["b"], outputs=["y", "z"]), [[0, 7], [1, 7]], [1, 7]),
        (Node("Loop", inputs=["i", "b", "f"], outputs=["y", "z"]), [[9, 1, 6]], [1, 6]),
        (Node("Scan", inputs=["f"], outputs=["y"]), [[7]], [7]),
        (Node("SequenceAt", inputs=["i", "i"], outputs=["y"]), [], [6]),
        (Node("TopK", inputs=["f", "i"], outputs=["y", "z"]), [], [1, 7]),
        (Node("Split", inputs=["i"], outputs=["y", "z"]), [], [6, 6]),
        (Node("LabelEncoder", inputs=["f"], outputs=["y"]), [], [0]),
        (Node("Add", inputs=["nowhere"], outputs=["y"]), [], [0]),
    ],
    ids=lambda part: part.op if isinstance(part, Node) else "",
)
def test_types_of_outputs(node: Node, bodies: list[list[int]], expected: list[int]) -> None:
    assert output_types(node, {"f": 1, "i": 6, "b": 9}, bodies) == expected
