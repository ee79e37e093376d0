"""Categories are coded in the graph as they are in Python, however they were typed."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch", reason="training needs torch")

from onnx import TensorProto, helper

from training.errors import ExportFailed
from training.export import category_graph, graphs
from training.export.category_graph import (
    MISSING,
    SPECIAL,
    UNKNOWN,
    Categories,
    CategoryPreprocessor,
)

pytestmark = pytest.mark.train
KNOWN = Categories.of(["monthly", "two years"], ["Yes", "no", "ÉTÉ", "a\tb", "no"])


def graph(name: str) -> onnx.ModelProto:
    """Answers its input `name`, (batch, 2) int64."""
    values = [
        helper.make_tensor_value_info(one, TensorProto.INT64, ["batch", 2])
        for one in (name, "answer")
    ]
    plain = helper.make_graph(
        [helper.make_node("Identity", [name], ["answer"])], "model", values[:1], values[1:]
    )
    return helper.make_model(
        plain, opset_imports=[helper.make_opsetid("", graphs.OPSET)], ir_version=graphs.IR
    )


def test_a_category_has_one_code_however_it_is_typed() -> None:
    cells = np.array([["Monthly", "YES"], ["  two   Years ", " no"], ["", "   "], ["yes", "two years"],
                      ["two years more", "ÉTÉ"], ["two\tyears", "A\tb"]], object)  # fmt: skip
    expected = [[2, 2], [3, 3], [MISSING, MISSING], [UNKNOWN, UNKNOWN], [UNKNOWN, 4], [UNKNOWN, 5]]

    preprocessor = CategoryPreprocessor(KNOWN)
    assert preprocessor.encode({"categories": cells})["codes"].tolist() == expected
    session = graphs.open_session(preprocessor.attach(graph("codes")))
    assert session.run(None, {"categories": cells})[0].tolist() == expected
    assert session.run(None, {"categories": cells[:0]})[0].shape == (0, 2)


def test_codes_are_learned_in_an_order_of_their_own() -> None:
    fitted = Categories.fit(np.array([["b", "x"], [" A", ""], ["a", "X "]], object))

    assert fitted.columns == ({"a": SPECIAL, "b": SPECIAL + 1}, {"x": SPECIAL})
    assert fitted.sizes == (4, 3)


def test_inputs_keep_their_order() -> None:
    inputs = {"categories": np.array([["", ""]], object), "numbers": np.zeros((1, 3), np.float32)}
    assert list(CategoryPreprocessor(KNOWN).encode(inputs)) == ["codes", "numbers"]


def test_codes_that_differ_from_the_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert category_graph.disagreement(KNOWN) is None

    monkeypatch.setattr(category_graph, "tidy", lambda cell: cell.strip())
    with pytest.raises(
        ExportFailed, match="encoding of 'categories' in the graph differs from Python's at '"
    ):
        CategoryPreprocessor(KNOWN).attach(graph("codes"))


def test_a_network_without_the_input_is_refused() -> None:
    with pytest.raises(ExportFailed, match="no input 'codes' for the encoded 'categories'"):
        CategoryPreprocessor(KNOWN).attach(graph("numbers"))
