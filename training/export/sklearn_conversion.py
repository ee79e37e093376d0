"""Convert scikit-learn estimators to ONNX with skl2onnx, correcting trees and imputers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.export import graph_editing, graphs
from training.export.boosting import converters
from training.export.graphs import OPSET, Feeds
from training.fitting.estimators import VECTORIZERS

ML_OPSET = 3  # version of ai.onnx.ml that skl2onnx writes
_UNICODE_WORD = r"[\p{L}\p{N}_]"  # Python's \w; ONNX Runtime's own \w is ASCII

Step = tuple[str, list[str], dict[str, Any]]  # operator, inputs after the first, attributes


def convert(
    estimator: Any, inputs: Feeds, output: str, expected: NDArray[Any], double: bool
) -> onnx.ModelProto:
    """Convert a fitted scikit-learn estimator to ONNX, in float32 or float64.

    `expected` is the estimator's answer to some rows, for the shape of `output`.
    """
    raw = _run_converter(estimator, inputs, double)
    graph = graph_editing.clean(_with_signature(raw, inputs, output, expected, double))
    _correct_trees(graph, estimator)
    if double:
        _replace_imputers(graph)
    return graph


def _run_converter(estimator: Any, inputs: Feeds, double: bool) -> onnx.ModelProto:
    """Convert an estimator with skl2onnx; inputs are (n, columns) floats or text."""
    # Imported late: recipes of torch networks do not need it.
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    converters.register(converters.libraries(list(_fitted_parts(estimator))))
    floats = DoubleTensorType if double else FloatTensorType
    types = []
    for name, values in inputs.items():
        kind = StringTensorType if values.dtype == np.object_ else floats
        types.append((name, kind([None, values.reshape(len(values), -1).shape[1]])))
    graph: onnx.ModelProto = convert_sklearn(
        estimator,
        initial_types=types,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options=_options(estimator),
    )
    for entry in graph.opset_import:  # skl2onnx declares the oldest opset of its operators
        if entry.domain == "":
            entry.version = OPSET
    return graph


def _options(estimator: Any) -> dict[int, dict[str, Any]]:
    """Return skl2onnx options by object id of each estimator part."""
    from sklearn.base import is_classifier

    options: dict[int, dict[str, Any]] = {}
    if is_classifier(estimator):
        options[id(estimator)] = {"zipmap": False}
    for part in _fitted_parts(estimator):
        if type(part).__name__ in VECTORIZERS:
            options[id(part)] = {"tokenexp": _token_pattern(part.token_pattern)}
    return options


def _fitted_parts(estimator: Any) -> Iterator[Any]:
    """Yield a scikit-learn estimator and its fitted parts, recursively.

    A ColumnTransformer keeps its fitted parts apart from its parameters.
    """
    yield estimator
    parts = [step for _, step in getattr(estimator, "steps", [])]
    parts += [part for _, part, _ in getattr(estimator, "transformers_", [])]
    parts += [part for _, part in getattr(estimator, "transformer_list", [])]
    for part in parts:
        if hasattr(part, "get_params"):
            yield from _fitted_parts(part)


def _token_pattern(pattern: str) -> str:
    r"""Translate a vectorizer's token pattern to ONNX Runtime's regular expression syntax.

    >>> print(_token_pattern(r"(?u)\b\w\w+\b"))
    [\p{L}\p{N}_][\p{L}\p{N}_]+
    """
    plain = pattern.removeprefix("(?u)").replace(r"\w", _UNICODE_WORD)
    words = re.fullmatch(r"\\b(.*)\\b", plain)
    return words[1] if words else plain  # greedy matches of whole words need no boundaries


# --- inputs and outputs


def _with_signature(
    graph: onnx.ModelProto, inputs: Feeds, output: str, expected: NDArray[Any], double: bool
) -> onnx.ModelProto:
    """Give an ONNX graph the callers' input types and one float32 output."""
    model = graph_editing.copy(graph)
    names = [value.name for value in model.graph.output]
    raw = "probabilities" if "probabilities" in names else names[0]
    del model.graph.input[:], model.graph.output[:]
    before: list[onnx.NodeProto] = []
    for name, values in inputs.items():
        before += _add_input(model.graph, name, values, double)
    after = _add_output(model.graph, raw, output, expected, double)
    nodes = [*before, *model.graph.node, *after]
    graph_editing.replace_nodes(model.graph, _needed(nodes, output))
    _drop_unused_initializers(model.graph)
    return model


def _add_input(
    graph: onnx.GraphProto, name: str, values: NDArray[Any], double: bool
) -> list[onnx.NodeProto]:
    """Declare an ONNX graph input; return nodes that cast and flatten it."""
    is_text = values.dtype == np.object_
    steps: list[Step] = []
    if not is_text and (double or values.dtype != np.float32):
        steps.append(("Cast", [], {"to": TensorProto.DOUBLE if double else TensorProto.FLOAT}))
    if values.ndim != 2:
        steps.append(("Flatten", [], {"axis": 1}))
    elements = TensorProto.STRING if is_text else helper.np_dtype_to_tensor_dtype(values.dtype)
    shape = ["batch", *values.shape[1:]]
    graph.input.append(helper.make_tensor_value_info(name, elements, shape))
    if not steps:
        return []
    graph_editing.rename_value(graph, name, f"{name}_columns")
    return _chain(steps, name, f"{name}_columns")


def _add_output(
    graph: onnx.GraphProto, raw: str, output: str, expected: NDArray[Any], double: bool
) -> list[onnx.NodeProto]:
    """Declare the ONNX graph output; return nodes computing it from `raw`."""
    shape = ["batch", *expected.shape[1:]]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    steps: list[Step] = []
    if expected.ndim == 1:  # a regressor with one target
        graph.initializer.extend(graph_editing.constants("", np.int64, {"one_dimension": [-1]}))
        steps.append(("Reshape", ["one_dimension"], {}))
    if double:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
    source = f"{output}_step_0" if steps else output
    graph_editing.rename_value(graph, raw, source)
    return _chain(steps, source, output)


def _chain(steps: Sequence[Step], source: str, target: str) -> list[onnx.NodeProto]:
    """Return a chain of ONNX nodes that computes `target` from `source`."""
    between = [f"{target}_step_{count}" for count in range(1, len(steps))]
    values = [source, *between, target]
    return [
        helper.make_node(operator, [values[position], *more], [values[position + 1]], **attributes)
        for position, (operator, more, attributes) in enumerate(steps)
    ]


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the ONNX nodes that `output` depends on, in order."""
    needed = {output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graphs.nodes(graph) for name in node.input}
    kept = [
        onnx.TensorProto.FromString(tensor.SerializeToString())
        for tensor in graph.initializer
        if tensor.name in used
    ]
    del graph.initializer[:]
    graph.initializer.extend(kept)


# --- corrections of the converter's operators


def _correct_trees(model: onnx.ModelProto, estimator: Any) -> None:
    """Make ONNX tree ensembles decide exactly as in scikit-learn.

    scikit-learn compares float32 values with double thresholds. The converter leaves out the
    learned branch of NaN, and compares doubles that were not rounded.
    """
    ensembles = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    if "xgboost" in converters.libraries(list(_fitted_parts(estimator))):
        for ensemble in ensembles:  # xgboost rounds what comes from the steps before
            _round_input(model, ensemble)
        return
    trees = _trees(estimator)
    if len(ensembles) != 1 or not trees:
        return
    node = ensembles[0]
    attributes = {attribute.name: attribute for attribute in node.attribute}
    tree_ids, node_ids = attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints
    places = list(zip(tree_ids, node_ids, strict=True))
    if len(places) != sum(tree.node_count for tree in trees):
        return  # the converter arranged the nodes in another way
    is_split = np.array([trees[tree].children_left[at] >= 0 for tree, at in places])
    is_nan_left = np.array([bool(trees[tree].missing_go_to_left[at]) for tree, at in places])
    thresholds = _rounded_down(np.array([trees[tree].threshold[at] for tree, at in places]))
    graph_editing.set_attributes(
        node,
        nodes_values=np.where(is_split, thresholds, 0).tolist(),
        nodes_missing_value_tracks_true=(is_split & is_nan_left).astype(int).tolist(),
    )
    _round_input(model, node)


def _round_input(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Round a node's first input to float32."""
    rounding = helper.make_node("Cast", [node.input[0]], ["rounded_columns"], to=TensorProto.FLOAT)
    node.input[0] = "rounded_columns"
    position = [item.op_type for item in model.graph.node].index(node.op_type)
    model.graph.node.insert(position, rounding)


def _trees(estimator: Any) -> list[Any]:
    """Return the fitted decision trees of an estimator or pipeline's last step."""
    final = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    parts = np.ravel(getattr(final, "estimators_", [final]))
    return [part.tree_ for part in parts if hasattr(part, "tree_")]


def _rounded_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round float64 tree thresholds down to float32.

    For float32 x, x <= t then has the same result.
    """
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _replace_imputers(model: onnx.ModelProto) -> None:
    """Replace Imputer nodes, which ONNX Runtime lacks for doubles, by Where."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Imputer" and "imputed_value_floats" in attributes:
            nodes += _imputing(model.graph, node, attributes)
        else:
            nodes.append(node)
    graph_editing.replace_nodes(model.graph, nodes)


def _imputing(
    graph: onnx.GraphProto, imputer: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto]
) -> list[onnx.NodeProto]:
    (x,), (y,) = imputer.input, imputer.output
    replaced = attributes.get("replaced_value_float")
    missing = 0.0 if replaced is None else replaced.f
    values = {"values": list(attributes["imputed_value_floats"].floats), "missing": missing}
    graph.initializer.extend(graph_editing.constants(f"{y}_", np.float64, values))
    operator, inputs = ("IsNaN", [x]) if np.isnan(missing) else ("Equal", [x, f"{y}_missing"])
    return [
        helper.make_node(operator, inputs, [f"{y}_is_missing"]),
        helper.make_node("Where", [f"{y}_is_missing", f"{y}_values", x], [y]),
    ]
