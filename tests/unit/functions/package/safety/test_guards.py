"""Tests of input checks (guards) added to ONNX graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from functions.core.errors import InvalidModel
from functions.core.package.onnx_graph import Node
from functions.core.package.safety.guards import add_guards, operators_to_guard
from functions.core.package.safety.operator_needs import _GUARDS, needs
from tests.hostile.cases import BOOL, FLOAT, INT64, constant, graph, model, node, value

WEIGHTS = (constant("w", np.ones((1, 12, 2))), constant("r", np.ones((1, 12, 4))))
X = value("x", FLOAT, ["time", "batch", 2])
Y = value("y", FLOAT, None)


def guarded(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    operators = operators_to_guard(path)
    assert add_guards(path) == operators
    changed = onnx.load(path)
    if operators:
        assert path.read_bytes() != content
    else:
        assert path.read_bytes() == content
    return changed.graph


def operators(nodes: Any) -> list[str]:
    return [inner.op_type for inner in nodes]


GUARD = ["Size", "Sub", "Div", "Shape", "Add", "Reshape"]


def test_a_guard_comes_before_its_operator_and_feeds_it(tmp_path: Path) -> None:
    changed = guarded(tmp_path, model([node("GRU", "x w r", "y")], [X], [Y], *WEIGHTS))

    *guard, gru = changed.node
    assert operators(guard) == GUARD
    assert guard[2].name == "mayfly_guard_1: GRU: x must not be empty"
    assert list(gru.input) == [guard[-1].output[0], "w", "r"]
    assert list(guard[-1].input) == ["x", guard[-2].output[0]]


def test_a_graph_without_such_operators_stays_as_it_is(tmp_path: Path) -> None:
    content = model([node("RNN", "x w r", "y")], [X], [Y], *WEIGHTS)

    assert operators(guarded(tmp_path, content).node) == ["RNN"]


def test_constants_with_elements_need_no_guard(tmp_path: Path) -> None:
    image, kernel = value("x", FLOAT, ["n", 1, 5, 5]), value("k", FLOAT, [1, 1, 3, 3])
    convolution = [node("Conv", "x k", "y")]
    weights = constant("k", np.ones((1, 1, 3, 3)))

    assert operators(guarded(tmp_path, model(convolution, [image], [Y], weights)).node) == ["Conv"]
    empty = constant("k", np.ones((1, 1, 0, 3)))
    for inputs, constants in (
        ([image, kernel], ()),
        ([image, kernel], (weights,)),
        ([image], (empty,)),
    ):
        changed = guarded(tmp_path, model(convolution, inputs, [Y], *constants))
        assert operators(changed.node) == [*GUARD, "Conv"]  # fmt: skip


def test_constants_of_old_files_are_listed_as_inputs(tmp_path: Path) -> None:
    listed = [X, value("w", FLOAT, [1, 12, 2]), value("r", FLOAT, [1, 12, 4])]
    image, kernel = value("x", FLOAT, ["n", 1, 5, 5]), value("k", FLOAT, [1, 1, 3, 3])
    old = onnx.ModelProto.FromString(
        model(
            [node("Conv", "x k", "y")], [image, kernel], [Y], constant("k", np.ones((1, 1, 3, 3)))
        )
    )
    old.ir_version = 3

    assert len(listed) == 3
    assert operators(guarded(tmp_path, old.SerializeToString()).node) == ["Conv"]


def test_subgraphs_are_guarded(tmp_path: Path) -> None:
    body = graph(
        "body",
        [node("GRU", "v w r", "all"), node("Squeeze", "all axis", "next"),
         node("Identity", "go", "on")],
        [value("i", INT64, []), value("go", BOOL, []), value("v", FLOAT, None)],
        [value("on", BOOL, []), value("next", FLOAT, None)],
    )  # fmt: skip
    then = graph("then", [helper.make_node("Loop", ["n", "", "x"], ["t"], body=body)], [],
                 [value("t", FLOAT, None)])  # fmt: skip
    other = graph("else", [node("Identity", "x", "e")], [], [value("e", FLOAT, None)])
    content = model(
        [node("If", "c", "y", then_branch=then, else_branch=other)],
        [X, value("c", BOOL, []), value("n", INT64, [])],
        [Y],
        *WEIGHTS,
        constant("axis", [1], np.int64),
    )

    [branch] = guarded(tmp_path, content).node
    [kept, changed] = sorted((part.g for part in branch.attribute), key=lambda part: part.name)
    assert operators(kept.node) == ["Identity"]
    inner = changed.node[0].attribute[0].g
    assert operators(inner.node) == [*GUARD, "GRU", "Squeeze", "Identity"]
    assert list(inner.node[6].input)[1:] == ["w", "r"]


def test_each_input_in_the_table_is_guarded(tmp_path: Path) -> None:
    attributes = {"axis": 0, "block_size": 2, "transBatchA": 1, "kernel_shape": [2]}
    for domain, operator in _GUARDS:
        names = [f"i{at}" for at in range(9)]
        content = model(
            [helper.make_node(operator, names, ["y"], domain=domain, **attributes)],
            [value(name, FLOAT, None) for name in names],
            [Y],
        )
        *added, changed = guarded(tmp_path, content).node
        listed = needs(Node(operator, domain=domain, attributes=attributes))
        positions = {need.position for need in listed}
        assert positions
        others = {at for at, name in enumerate(changed.input) if name != f"i{at}"}
        assert others == positions, operator
        assert len({inner.name.split(":")[0] for inner in added if inner.name}) == len(listed)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        (("", "Attention"), {"q_num_heads": 2, "kv_num_heads": 1}),
        (("", "QuantizeLinear"), {"block_size": 0}),
        (("", "Unique"), {}),
        (("com.microsoft", "FusedMatMul"), {"transBatchA": 0}),
    ],
)
def test_attributes_that_exclude_the_crash_need_no_guard(
    tmp_path: Path, operator: tuple[str, str], attributes: dict[str, int]
) -> None:
    domain, name = operator
    made = helper.make_node(name, ["x", "x", "x"], ["y"], domain=domain, **attributes)

    assert operators(guarded(tmp_path, model([made], [X], [Y])).node) == [name]


def test_a_guard_may_ask_for_the_size_of_one_axis(tmp_path: Path) -> None:
    *guard, _ = guarded(tmp_path, model([node("LSTM", "x w r", "y")], [X], [Y], *WEIGHTS)).node

    assert operators(guard) == ["Shape", "Constant", "Gather", *GUARD[1:]]
    assert helper.get_node_attr_value(guard[1], "value").raw_data == (1).to_bytes(8, "little")


def skipping(*between: Any) -> bytes:
    """Return a model ending in SkipLayerNormalization of x and a derived s."""
    last = node("SkipLayerNormalization", "x s gamma", "y", domain="com.microsoft")
    gamma, dense = constant("gamma", np.ones(2)), constant("dense", np.ones((2, 2)))
    return model([*between, last], [X, value("z")], [Y], gamma, dense)


def test_values_that_are_empty_together_need_no_guard(tmp_path: Path) -> None:
    dense = [node("MatMul", "x dense", "m"), node("FastGelu", "m", "s", domain="com.microsoft")]
    other = [node("MatMul", "x z", "s")]

    assert operators(guarded(tmp_path, skipping(*dense)).node)[-1:] == ["SkipLayerNormalization"]
    assert "Div" not in operators(guarded(tmp_path, skipping(*dense)).node)
    assert "Div" in operators(guarded(tmp_path, skipping(*other)).node)


def test_two_operators_of_a_value_share_a_guard(tmp_path: Path) -> None:
    twice = [node("GRU", "x w r", "a"), node("GRU", "x w r", "b"), node("Add", "a b", "y")]
    *first, one, two, _ = guarded(tmp_path, model(twice, [X], [Y], *WEIGHTS)).node

    assert operators(first) == GUARD
    assert one.input[0] == two.input[0] == first[-1].output[0]


def test_a_kernel_needs_an_image_of_its_size(tmp_path: Path) -> None:
    names = "x s z s z"
    parts = [value(name, FLOAT, None) for name in ("x", "s", "z")]
    pool = {"kernel_shape": [3, 2], "pads": [1, 0, 0, 0], "domain": "com.microsoft"}
    made = [node("QLinearAveragePool", names, "y", **pool)]
    last = [node("QLinearAveragePool", names, "y", channels_last=1, **pool)]
    same = [node("QLinearAveragePool", names, "y", auto_pad="SAME_UPPER", **pool)]
    valid = [node("QLinearAveragePool", names, "y", auto_pad="VALID", **pool)]
    named = [node("QLinearAveragePool", names, "y", auto_pad="NOTSET", **pool)]

    def least(nodes: Any) -> list[int]:
        """Return the axis and minimum size of each guard (input check)."""
        changed = guarded(tmp_path, model(nodes, parts, [Y])).node
        values = [part.attribute[0].t.raw_data for part in changed if part.op_type == "Constant"]
        return [int.from_bytes(raw, "little") for raw in values]

    assert least(made) == [2, 2, 3, 2]
    assert least(last) == [1, 2, 2, 2]
    assert least(same) == []
    assert least(valid) == [2, 3, 3, 2]
    assert least(named) == [2, 2, 3, 2]


def test_a_guarded_file_can_be_guarded_again(tmp_path: Path) -> None:
    once = guarded(tmp_path, model([node("GRU", "x w r", "y")], [X], [Y], *WEIGHTS))
    twice = guarded(tmp_path, (tmp_path / "model.onnx").read_bytes())

    names = [name for inner in twice.node for name in inner.output]
    assert len(set(names)) == len(names) == 2 * len(once.node) - 1


def test_an_opset_that_divides_no_integers_is_refused(tmp_path: Path) -> None:
    old = onnx.ModelProto.FromString(model([node("GRU", "x w r", "y")], [X], [Y], *WEIGHTS))
    old.opset_import[0].version = 6
    path = tmp_path / "model.onnx"
    path.write_bytes(old.SerializeToString())

    with pytest.raises(InvalidModel, match="opset 6 cannot check") as caught:
        add_guards(path)
    assert caught.value.instance_code == "UNSAFE_OPERATOR"


def test_names_of_a_body_hide_constants_around_it(tmp_path: Path) -> None:
    inputs = [value("i", INT64, []), value("go", BOOL, [])]
    outputs = [value("on", BOOL, []), value("w_", FLOAT, None)]
    inner = [node("GRU", "k w r", "w_"), node("Identity", "go", "on")]
    bodies = {
        "input": graph("body", inner, [*inputs, value("k", FLOAT, None)], outputs),
        "output": graph("body", [node("Abs", "x", "k"), *inner], inputs, outputs),
        "empty": graph("body", inner, inputs, outputs, constant("k", np.ones((0, 1, 2)))),
        "outer": graph("body", inner, inputs, outputs),
    }
    for name, body in bodies.items():
        loop = helper.make_node("Loop", ["n", "", *["x"] * (name == "input")], ["y"], body=body)
        outer = constant("k", np.ones((1, 1, 2)))
        content = model([loop], [X, value("n", INT64, [])], [Y], outer, *WEIGHTS)
        [changed] = guarded(tmp_path, content).node
        is_guarded = "Reshape" in operators(changed.attribute[0].g.node)
        assert is_guarded == (name != "outer"), name


@pytest.mark.parametrize("heads", [{"q_num_heads": 0, "kv_num_heads": 0}, {"q_num_heads": 2}])
def test_zero_heads_count_as_absent(tmp_path: Path, heads: dict[str, int]) -> None:
    made = helper.make_node("Attention", ["x", "z", "z"], ["y"], **heads)

    changed = guarded(tmp_path, model([made], [X, value("z")], [Y])).node
    assert operators(changed).count("Reshape") == 3


@pytest.mark.parametrize(("shape", "guards"), [((1, 2, 2), 2), ((1, 1, 2, 2), 1)])
def test_a_constant_without_the_axis_is_guarded(
    tmp_path: Path, shape: tuple[int, ...], guards: int
) -> None:
    query = constant("q", np.ones(shape))
    content = model([node("Attention", "q x x", "y")], [X], [Y], query)

    assert operators(guarded(tmp_path, content).node).count("Reshape") == guards


def test_a_product_of_empty_tensors_may_have_elements(tmp_path: Path) -> None:
    product = [node("Transpose", "x", "t"), node("MatMul", "x t", "s")]
    total = [node("Transpose", "x", "t"), node("Add", "x t", "s")]

    assert "Div" in operators(guarded(tmp_path, skipping(*product)).node)
    assert "Div" not in operators(guarded(tmp_path, skipping(*total)).node)


def test_attention_without_values_empties_its_output(tmp_path: Path) -> None:
    heads = {"q_num_heads": 1, "kv_num_heads": 1}
    made = [helper.make_node("Attention", ["x", "dense", "z"], ["s"], **heads)]

    assert "Div" in operators(guarded(tmp_path, skipping(*made)).node)
