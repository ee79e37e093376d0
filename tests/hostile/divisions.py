"""Test models with integer divisions whose types need inference through other operators.

`WAYS` has functions that make the nodes from "a" to "p" and from "b" to "q": with a = INT64_MIN and
b = -1, dividing p by q crashes the process.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.hostile.cases import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Case,
    case,
    constant,
    graph,
    helper,
    model,
    node,
    onnx,
    value,
)

ML = "ai.onnx.ml"


def untyped(name: str) -> Any:
    return onnx.ValueInfoProto(name=name)


def branches(source: str, target: str) -> Any:
    then, other = (
        graph(f"{side}_{target}", [node("Identity", source, f"{side}_{target}")], [], [out])
        for side in ("then", "else")
        for out in (untyped(f"{side}_{target}"),)
    )
    return node("If", "c", target, then_branch=then, else_branch=other)


def loop(source: str, target: str) -> Any:
    body = graph(
        f"loop_{target}",
        [node("Identity", f"v_{target}", f"w_{target}"), node("Identity", "go", f"on_{target}")],
        [value("i", INT64, []), value("go", BOOL, []), value(f"v_{target}", INT64, None)],
        [value(f"on_{target}", BOOL, []), untyped(f"w_{target}")],
    )
    return helper.make_node("Loop", ["one", "", source], [target], body=body)


def scan(source: str, target: str) -> Any:
    body = graph(
        f"scan_{target}",
        [node("Identity", f"v_{target}", f"w_{target}")],
        [untyped(f"v_{target}")],
        [untyped(f"w_{target}")],
    )
    return node("Scan", source, target, num_scan_inputs=1, body=body)


def through(first: str, second: str, ends: str = "", **attributes: Any) -> Any:
    """Return a factory for two chained ONNX nodes with optional extra inputs.

    `ends` names further inputs of the second node.
    """

    def make(source: str, target: str) -> list[Any]:
        return [
            node(first, source, f"s_{target}"),
            node(second, f"s_{target} {ends}".strip(), target, **attributes),
        ]

    return make


WAYS: dict[str, Any] = {
    "Shrink": lambda source, target: [node("Shrink", source, target, lambd=0.0)],
    "SequenceAt": through("SequenceConstruct", "SequenceAt", "zero"),
    "SplitToSequence": through("SplitToSequence", "SequenceAt", "zero"),
    "ConcatFromSequence": through("SequenceConstruct", "ConcatFromSequence", axis=0),
    "Optional": through("Optional", "OptionalGetElement"),
    "If": lambda source, target: [branches(source, target)],
    "Loop": lambda source, target: [loop(source, target)],
    "Scan": lambda source, target: [scan(source, target)],
    "TopK": lambda source, target: [node("TopK", f"{source} first", f"{target} at_{target}")],
    "ArrayFeatureExtractor": lambda source, target: [
        node("ArrayFeatureExtractor", f"{source} at", target, domain=ML)
    ],
    "LabelEncoder": lambda source, target: [
        node(
            "LabelEncoder", source, target, domain=ML, keys_int64s=[7], values_int64s=[7],
            default_int64=-(2**63) if target == "p" else -1,
        )
    ],
}  # fmt: skip


def divided(way: str, kind: int = INT64) -> bytes:
    """Return a model that divides two integer inputs, hidden behind other operators."""
    return model(
        [*WAYS[way]("a", "p"), *WAYS[way]("b", "q"), node("Div", "p q", "d"),
         node("Cast", "d", "y", to=FLOAT)],
        [value("a", kind, ["n"]), value("b", kind, ["n"]), value("c", BOOL, [])],
        [value("y", FLOAT, None)],
        constant("zero", 0, np.int64), constant("one", 1, np.int64),
        constant("first", [1], np.int64), constant("at", [0], np.int64),
        opsets={ML: 3},
    )  # fmt: skip


def hidden(name: str, inner: Sequence[Any], *constants: Any) -> bytes:
    """Return a model whose subgraph value `name` shadows a harmless outer value."""
    then = graph("then", [node("Identity", "b", name), *inner], [], [value("t", INT64, None)])
    other = graph("else", [node("Identity", "a", "e")], [], [value("e", INT64, None)])
    return model(
        [node("Shape", "a", "shape"), node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("a", INT64, ["n"]), value("b", INT64, ["n"]), value("c", BOOL, [])],
        [value("y", INT64, None)],
        *constants,
    )


def declared(**outer: int) -> bytes:
    """Return a model that divides integers declared as another type."""
    made = onnx.ModelProto.FromString(divided("Shrink"))
    made.graph.value_info.extend(value(name, kind, ["n"]) for name, kind in outer.items())
    return made.SerializeToString()


def inner_declared() -> bytes:
    """Return a model whose branch redeclares an outer integer's type."""
    then = graph(
        "then", [node("Div", "a b", "d"), node("Cast", "d", "t", to=FLOAT)], [],
        [value("t", FLOAT, None)],
    )  # fmt: skip
    then.value_info.extend([value("a", FLOAT, None), value("b", FLOAT, None)])
    other = graph("else", [node("Cast", "a", "e", to=FLOAT)], [], [value("e", FLOAT, None)])
    return model(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("a", INT64, ["n"]), value("b", INT64, ["n"]), value("c", BOOL, [])],
        [value("y", FLOAT, None)],
    )


def by(divisor: Any, kind: int = INT64) -> bytes:
    """Return a model that divides its input by a constant."""
    nodes, constants = ([], [divisor]) if hasattr(divisor, "dims") else ([divisor], [])
    return model(
        [*nodes, node("Div", "a c", "y")], [value("a", kind, ["n"])], [value("y", kind, ["n"])],
        *constants,
    )  # fmt: skip


def twice_filled() -> Any:
    """Return a Constant of -1 that also lists an ignored 2."""
    made = node("Constant", "", "c", value=constant("t", [-1], np.int64))
    made.attribute[0].tensors.append(constant("t", [2], np.int64))
    return made


def tensor(kind: int, **values: Any) -> Any:
    return onnx.TensorProto(name="c", data_type=kind, dims=[1], **values)


def emptied(operator: str) -> bytes:
    """Return a model that divides by `operator` of a sliced shape."""
    return model(
        [node("Shape", "a", "s"), node("Slice", "s from to", "e"), node(operator, "e", "r"),
         node("Div", "r b", "y")],
        [value("a", INT64, ["n"]), value("from", INT64, [1]), value("to", INT64, [1]),
         value("b", INT64, [1])],
        [value("y", INT64, None)],
    )  # fmt: skip


def contradictions() -> Iterator[Case]:
    yield case("inputs with two types", declared(a=FLOAT, b=FLOAT), "DUPLICATE_NAME")
    yield case("a branch that declares an outer value", inner_declared(), "UNSAFE_INTEGER_DIVISION")
    numbers = tensor(INT32, int32_data=[-1], int64_data=[2])
    yield case("a constant with values of two types", by(numbers, INT32), "BAD_CONSTANT")
    numbers = tensor(INT64, raw_data=(2).to_bytes(8, "little"), int64_data=[-1])
    yield case("a constant with values and bytes", by(numbers), "BAD_CONSTANT")
    yield case("a constant attribute with two values", by(twice_filled()), "NOT_ONNX")
    for operator in ("ReduceMax", "ReduceMin"):
        yield case(
            f"Div of the {operator} of nothing", emptied(operator), "UNSAFE_INTEGER_DIVISION"
        )


def cases() -> Iterator[Case]:
    yield from contradictions()
    for way in WAYS:
        yield case(f"Div after {way}", divided(way), "UNSAFE_INTEGER_DIVISION")
    yield case(
        "Div by what hides a shape", hidden("shape", [node("Div", "a shape", "t")]),
        "UNSAFE_INTEGER_DIVISION",
    )  # fmt: skip
    yield case(
        "Div by what hides a constant",
        hidden("two", [node("Div", "a two", "t")], constant("two", [2], np.int64)),
        "UNSAFE_INTEGER_DIVISION",
    )
    yield case(
        "Div by what is called as a Loop's input",
        model(
            [helper.make_node("Loop", ["one", "", "a"], ["y"], body=graph(
                "body",
                [node("Div", "a two", "w"), node("Identity", "go", "on")],
                [value("i", INT64, []), value("go", BOOL, []), value("two", INT64, None)],
                [value("on", BOOL, []), value("w", INT64, None)],
            ))],
            [value("a", INT64, ["n"])],
            [value("y", INT64, None)],
            constant("one", 1, np.int64), constant("two", [2], np.int64),
        ),
        "UNSAFE_INTEGER_DIVISION",
    )  # fmt: skip
