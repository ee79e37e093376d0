"""Category codes are the same in the graph and in Python."""

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
CATEGORIES = Categories.of(["monthly", "two years"], ["Yes", "no", "ÉTÉ", "a\tb", "no"])


def graph(name: str) -> onnx.ModelProto:
    """Make a graph that answers its input `name`, (batch, 2) int64."""
    values = [
        helper.make_tensor_value_info(value, TensorProto.INT64, ["batch", 2])
        for value in (name, "answer")
    ]
    plain = helper.make_graph(
        [helper.make_node("Identity", [name], ["answer"])], "model", values[:1], values[1:]
    )
    return helper.make_model(
        plain, opset_imports=[helper.make_opsetid("", graphs.OPSET)], ir_version=graphs.IR
    )


def test_capitals_and_blanks_do_not_change_a_code() -> None:
    rows = {
        ("Monthly", "YES"): [2, 2],
        ("  two   Years ", " no"): [3, 3],
        ("", "   "): [MISSING, MISSING],
        ("yes", "two years"): [UNKNOWN, UNKNOWN],
        ("two years more", "ÉTÉ"): [UNKNOWN, 4],
        ("two\tyears", "A\tb"): [UNKNOWN, 5],
    }
    cells, expected = np.array(list(rows), object), list(rows.values())

    preprocessor = CategoryPreprocessor(CATEGORIES)
    assert preprocessor.encode({"categories": cells})["codes"].tolist() == expected
    session = graphs.open_session(preprocessor.attach(graph("codes")))
    assert session.run(None, {"categories": cells})[0].tolist() == expected
    assert session.run(None, {"categories": cells[:0]})[0].shape == (0, 2)


def test_codes_are_numbered_in_sorted_order() -> None:
    fitted = Categories.fit(np.array([["b", "x"], [" A", ""], ["a", "X "]], object))

    assert fitted.columns == ({"a": SPECIAL, "b": SPECIAL + 1}, {"x": SPECIAL})
    assert fitted.sizes == (4, 3)


def test_inputs_keep_their_order() -> None:
    inputs = {"categories": np.array([["", ""]], object), "numbers": np.zeros((1, 3), np.float32)}
    assert list(CategoryPreprocessor(CATEGORIES).encode(inputs)) == ["codes", "numbers"]


def test_a_graph_whose_codes_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert category_graph.disagreement(CATEGORIES) is None

    monkeypatch.setattr(category_graph, "tidy", lambda cell: cell.strip())
    with pytest.raises(
        ExportFailed, match="encoding of 'categories' in the graph differs from Python's at '"
    ):
        CategoryPreprocessor(CATEGORIES).attach(graph("codes"))


def test_a_network_without_the_input_is_refused() -> None:
    with pytest.raises(ExportFailed, match="no input 'codes' for the encoded 'categories'"):
        CategoryPreprocessor(CATEGORIES).attach(graph("numbers"))
