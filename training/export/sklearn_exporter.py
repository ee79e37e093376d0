"""scikit-learn → ONNX with proof: estimators, pipelines and searches, and what they do to raw columns in the graph.

scikit-learn computes in float64 and the graph, where that is enough, in float32: a value that lies on the threshold of
a tree may fall to the other side. How often that happens is measured, and bounded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.errors import ExportFailed
from training.evaluation import calibration
from training.export import graphs
from training.export.graphs import ATOL, OPSET, RTOL, Feeds, first_line

ML_OPSET = 3  # of the operators ai.onnx.ml
PROBES = 16  # rows that are asked once more with a value missing, or one never seen
# Shares of rows that may be beyond the tolerance, and that may get another label, where the model has thresholds or
# splits text: there a last bit, or a letter beyond ASCII, can turn an answer. Everywhere else none may.
OFF, RELABELLED = 0.01, 0.005
_TURNING = {"TreeEnsembleClassifier", "TreeEnsembleRegressor", "Tokenizer", "TopK"}

_INSTEAD = {
    "HistGradientBoostingClassifier": "use GradientBoostingClassifier, behind a SimpleImputer where values are missing",
    "HistGradientBoostingRegressor": "use GradientBoostingRegressor, behind a SimpleImputer where values are missing",
    "HashingVectorizer": "use TfidfVectorizer or CountVectorizer, which keep their vocabulary",
    "FeatureHasher": "use OneHotEncoder(handle_unknown='ignore')",
}
_TEXT = ("TfidfVectorizer", "CountVectorizer")
_UNICODE_WORD = r"[\p{L}\p{N}_]"  # Python's \w in the runtime's syntax, whose own \w is ASCII


@dataclass(frozen=True, slots=True)
class Converted:
    """A proven graph, and how far from the estimator it was on the rows it was proven with."""

    graph: onnx.ModelProto
    rows: int
    off: float  # share of them beyond the tolerance
    relabelled: float  # share with another most likely class


def table(inputs: Feeds) -> NDArray[Any]:
    """What an estimator is fitted on: the columns of all inputs side by side (n, columns), each input flattened.

    Objects where there is text, else float64 of float32 values, so that the estimator computes in float64 throughout. A
    single text input (n,) stays as it is, as vectorisers want it.

    >>> table({"num": np.ones((2, 2), np.float32), "cat": np.array(["a", "b"], object)}).shape
    (2, 3)
    """
    arrays = list(inputs.values())
    if len(arrays) == 1 and arrays[0].ndim == 1 and arrays[0].dtype == np.object_:
        return arrays[0]
    columns = [array.reshape(len(array), -1) for array in arrays]
    if all(array.dtype != np.object_ for array in columns):
        return np.concatenate(
            [array.astype(np.float32).astype(np.float64) for array in columns], axis=1
        )
    return np.concatenate(
        [
            array if array.dtype == np.object_ else array.astype(np.float32).astype(object)
            for array in columns
        ],
        axis=1,
    )


def check(estimator: Any) -> None:
    """Refuse an estimator that cannot be converted, before minutes go into its fit.

    Raises:
        ExportFailed: which part it is, and what to use instead.
    """
    for part in _parts(estimator):
        name = type(part).__name__
        if name in _INSTEAD:
            raise ExportFailed(f"{name} cannot be converted to ONNX: {_INSTEAD[name]}")
        if name in _TEXT:
            _check_text(name, part)


def _check_text(name: str, part: Any) -> None:
    instead = {
        "analyzer": (part.analyzer == "word", "use analyzer='word'"),
        "strip_accents": (
            part.strip_accents is None,
            "strip accents in data() and in whatever calls the model",
        ),
        "preprocessor": (
            part.preprocessor is None,
            "do it in data() and in whatever calls the model",
        ),
        "tokenizer": (part.tokenizer is None, "use token_pattern"),
        "sublinear_tf": (not getattr(part, "sublinear_tf", False), "leave it out"),
    }
    for option, (fine, advice) in instead.items():
        if not fine:
            value = getattr(part, option)
            shown = getattr(value, "__name__", value)
            raise ExportFailed(
                f"{name} with {option}={shown!r} cannot be converted to ONNX: {advice}"
            )


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and all that it is made of: steps, columns, candidates of a search."""
    yield estimator
    if hasattr(estimator, "get_params"):
        for value in estimator.get_params(deep=True).values():
            if hasattr(value, "get_params"):
                yield value


def export(estimator: Any, inputs: Feeds, output: str) -> Converted:
    """The proven graph of a fitted `estimator`, with the tensors `inputs` of a test part.

    `output` is the name of its one output: probabilities (n, classes) in the order of `classes_`, without the label,
    which is the likeliest of them; values (n,) or (n, targets) of a regressor; features (n, width) of a transformer.

    Raises:
        ExportFailed: it cannot be converted, or the graph does not answer what the estimator does.
    """
    estimator = getattr(estimator, "best_estimator_", estimator)
    check(estimator)
    ask = _question(estimator)
    found: list[Converted] = []
    problems: list[ExportFailed] = []
    for double in (False, True):
        try:
            graph = _graph(estimator, ask, inputs, output, double)
            found.append(_prove(graph, ask, inputs, _title(estimator)))
        except ExportFailed as error:
            problems.append(error)
        if found and not found[-1].off:
            break
    if not found:
        raise problems[0]
    return min(found, key=lambda one: one.off)


def at_temperature(
    graph: onnx.ModelProto, output: str, temperature: float, inputs: Feeds
) -> onnx.ModelProto:
    """`graph` whose probabilities `output` are those at another temperature, proven on `inputs`.

    Raises:
        ExportFailed: ONNX Runtime computes something else.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    raw = f"{output}_raw"
    _rename(model.graph, output, raw)
    constants = {"tiny": calibration.TINY, "coldness": 1 / temperature}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.float32), f"{output}_{name}")
        for name, value in constants.items()
    )
    model.graph.node.extend([
        helper.make_node("Max", [raw, f"{output}_tiny"], [f"{output}_positive"]),
        helper.make_node("Log", [f"{output}_positive"], [f"{output}_logs"]),
        helper.make_node("Mul", [f"{output}_logs", f"{output}_coldness"], [f"{output}_logits"]),
        helper.make_node("Softmax", [f"{output}_logits"], [output], axis=-1),
    ])  # fmt: skip
    before, after = graphs.runtime(graph), graphs.runtime(model)
    for rows in (1, 2, None):
        feeds = {name: values[:rows] for name, values in inputs.items()}
        expected = calibration.scaled(before.run([output], feeds)[0], temperature)
        problem = graphs.difference(after.run([output], feeds)[0], expected)
        if problem is not None:
            raise ExportFailed(f"at temperature {temperature}, {output} {problem}")
    return model


def _graph(estimator: Any, ask: Any, inputs: Feeds, output: str, double: bool) -> onnx.ModelProto:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _convert(estimator, inputs, double)
            expected = ask(table({name: values[:1] for name, values in inputs.items()}))
            graph = graphs.clean(_frame(graph, inputs, output, expected, double))
        _mend_trees(graph, estimator)
        if double:
            _mend_imputers(graph)
    except Exception as error:  # the converter raises anything, its own bugs included
        raise ExportFailed(
            f"{_title(estimator)} cannot be converted to ONNX: {first_line(error)}"
        ) from error
    problem = graphs.unfit(graph)
    if problem is not None:
        raise ExportFailed(f"the graph of {_title(estimator)} {problem}")
    return graph


def _title(estimator: Any) -> str:
    steps = getattr(estimator, "steps", None)
    return (
        " + ".join(type(step).__name__ for _, step in steps) if steps else type(estimator).__name__
    )


def _question(estimator: Any) -> Any:
    """How the estimator is asked for what the graph answers."""
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator):
        if not hasattr(estimator, "predict_proba"):
            last = _title(estimator).split(" + ")[-1]
            raise ExportFailed(f"{last} gives no probabilities: wrap it in CalibratedClassifierCV")
        return estimator.predict_proba
    if is_regressor(estimator):
        return estimator.predict
    if hasattr(estimator, "transform"):
        return estimator.transform
    raise ExportFailed(
        f"{_title(estimator)} neither classifies, nor predicts values, nor transforms"
    )


# --- conversion -------------------------------------------------------------------------------------------------------


def _convert(estimator: Any, inputs: Feeds, double: bool) -> onnx.ModelProto:
    """What skl2onnx makes of it, with flat inputs (n, columns) of floats and text."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
    from sklearn.base import is_classifier

    floats = DoubleTensorType if double else FloatTensorType
    columns = {name: values.reshape(len(values), -1).shape[1] for name, values in inputs.items()}
    kinds = {
        name: StringTensorType if values.dtype == np.object_ else floats
        for name, values in inputs.items()
    }
    options: dict[int, dict[str, Any]] = {}
    if is_classifier(estimator):
        options[id(estimator)] = {"zipmap": False}
    for part in _fitted(estimator):
        if type(part).__name__ in _TEXT:
            options[id(part)] = {"tokenexp": _pattern(part.token_pattern)}
    graph: onnx.ModelProto = convert_sklearn(
        estimator,
        initial_types=[(name, kinds[name]([None, columns[name]])) for name in inputs],
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options=options,
    )
    for entry in graph.opset_import:  # it declares the oldest opset that has these very operators
        if entry.domain == "":
            entry.version = OPSET
    return graph


def _fitted(estimator: Any) -> Iterator[Any]:
    """The parts that hold what was learned; a ColumnTransformer keeps them apart from its parameters."""
    yield estimator
    inner = [step for _, step in getattr(estimator, "steps", [])]
    inner += [part for _, part, _ in getattr(estimator, "transformers_", [])]
    inner += [part for _, part in getattr(estimator, "transformer_list", [])]
    for part in inner:
        if hasattr(part, "get_params"):
            yield from _fitted(part)


def _pattern(pattern: str) -> str:
    r"""A token pattern in the syntax of the runtime.

    >>> print(_pattern(r"(?u)\b\w\w+\b"))
    [\p{L}\p{N}_][\p{L}\p{N}_]+
    """
    plain = pattern.removeprefix("(?u)").replace(r"\w", _UNICODE_WORD)
    words = re.fullmatch(r"\\b(.*)\\b", plain)
    return words[1] if words else plain  # what matches whole words greedily needs no boundaries


def _mend_trees(model: onnx.ModelProto, estimator: Any) -> None:
    """Make trees decide as scikit-learn does: by float32 values, double thresholds, and NaN down its learned branch.

    The converter leaves NaN out, and compares doubles that were not rounded.
    """
    ensembles = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    final = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    trees = [
        part.tree_
        for part in np.ravel(getattr(final, "estimators_", [final]))
        if hasattr(part, "tree_")
    ]
    if len(ensembles) != 1 or not trees:
        return
    node = ensembles[0]
    attributes = {attribute.name: attribute for attribute in node.attribute}
    places = list(
        zip(attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints, strict=True)
    )
    if len(places) != sum(tree.node_count for tree in trees):
        return  # they were put together in another way
    inner = [trees[tree].children_left[at] >= 0 for tree, at in places]
    values = np.array([trees[tree].threshold[at] for tree, at in places])
    rounded = values.astype(np.float32)
    below = np.where(
        rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded
    )  # x <= t just as before
    left = [bool(trees[tree].missing_go_to_left[at]) for tree, at in places]
    told = {
        "nodes_values": np.where(inner, below, 0).tolist(),
        "nodes_missing_value_tracks_true": [
            int(way and more) for way, more in zip(left, inner, strict=True)
        ],
    }
    kept = [attribute for name, attribute in attributes.items() if name not in told]
    del node.attribute[:]
    node.attribute.extend(
        [*kept, *(helper.make_attribute(name, value) for name, value in told.items())]
    )
    rounding = helper.make_node("Cast", [node.input[0]], ["rounded_columns"], to=TensorProto.FLOAT)
    node.input[0] = "rounded_columns"
    at = next(at for at, one in enumerate(model.graph.node) if one.op_type == node.op_type)
    model.graph.node.insert(at, rounding)


def _mend_imputers(model: onnx.ModelProto) -> None:
    """The runtime has no Imputer of doubles: choose between the value and the imputed one by hand."""
    wired: list[onnx.NodeProto] = []
    for node in list(model.graph.node):
        told = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Imputer" or "imputed_value_floats" not in told:
            wired.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        (x,), (y,) = node.input, node.output
        missing = told["replaced_value_float"].f if "replaced_value_float" in told else 0.0
        for name, value in (
            (f"{y}_values", list(told["imputed_value_floats"].floats)),
            (f"{y}_missing", missing),
        ):
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(np.array(value, np.float64), name)
            )
        operator, operands = ("IsNaN", [x]) if np.isnan(missing) else ("Equal", [x, f"{y}_missing"])
        wired.append(helper.make_node(operator, operands, [f"{y}_asked"]))
        wired.append(helper.make_node("Where", [f"{y}_asked", f"{y}_values", x], [y]))
    del model.graph.node[:]
    model.graph.node.extend(wired)


def _frame(
    graph: onnx.ModelProto, inputs: Feeds, output: str, expected: NDArray[Any], double: bool
) -> onnx.ModelProto:
    """`graph` with inputs of the callers' own types and shapes, and the one output that is asked for, in float32."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    nodes: list[onnx.NodeProto] = []
    del model.graph.input[:]
    for name, values in inputs.items():
        text, given = values.dtype == np.object_, name
        steps: list[tuple[str, dict[str, Any]]] = []
        if not text and (double or values.dtype != np.float32):
            steps.append(("Cast", {"to": TensorProto.DOUBLE if double else TensorProto.FLOAT}))
        if values.ndim != 2:
            steps.append(("Flatten", {"axis": 1}))
        if steps:
            _rename(model.graph, name, f"{name}_columns")
        for at, (operator, settings) in enumerate(steps):
            result = f"{name}_columns" if at == len(steps) - 1 else f"{name}_numbers"
            nodes.append(helper.make_node(operator, [given], [result], **settings))
            given = result
        elements = TensorProto.STRING if text else helper.np_dtype_to_tensor_dtype(values.dtype)
        model.graph.input.append(
            helper.make_tensor_value_info(name, elements, ["batch", *values.shape[1:]])
        )
    names = [value.name for value in model.graph.output]
    after: list[tuple[str, list[str], dict[str, Any]]] = []
    if expected.ndim == 1:  # a regressor with one target
        nodes.append(helper.make_node("Constant", [], ["one_dimension"], value_ints=[-1]))
        after.append(("Reshape", ["one_dimension"], {}))
    if double:
        after.append(("Cast", [], {"to": TensorProto.FLOAT}))
    _rename(
        model.graph,
        "probabilities" if "probabilities" in names else names[0],
        "step_0" if after else output,
    )
    nodes += model.graph.node
    for at, (operator, more, settings) in enumerate(after):
        result = f"step_{at + 1}" if at + 1 < len(after) else output
        nodes.append(helper.make_node(operator, [f"step_{at}", *more], [result], **settings))
    kept = _needed(nodes, {output})
    del model.graph.output[:], model.graph.node[:]
    model.graph.output.append(
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *expected.shape[1:]])
    )
    model.graph.node.extend(kept)
    used = {name for node in graphs.nodes(model.graph) for name in node.input}
    constants = [
        onnx.TensorProto.FromString(t.SerializeToString())
        for t in model.graph.initializer
        if t.name in used
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the values `wanted` depend on, in order."""
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            wanted = wanted | set(node.input)
    return kept[::-1]


# --- proof ------------------------------------------------------------------------------------------------------------


def _prove(graph: onnx.ModelProto, ask: Any, inputs: Feeds, title: str) -> Converted:
    try:
        session = graphs.runtime(graph)
    except Exception as error:  # native errors of any kind: that it does not load is the answer
        raise ExportFailed(f"the graph of {title} does not load: {first_line(error)}") from error
    turning = bool(_TURNING & {node.op_type for node in graph.graph.node})
    rows = off = relabelled = 0
    for what, feeds in _questions(inputs):
        try:
            expected = np.asarray(ask(table(feeds)), np.float64)
        except ValueError:
            if what is None:
                raise
            continue  # the estimator does not take missing values or unknown ones: nobody is promised an answer
        if not np.isfinite(expected).all():
            if what is None:
                raise ExportFailed(f"{title} answers NaN or infinity")
            continue
        try:
            got = session.run(None, dict(feeds))[0]
        except Exception as error:  # as above
            raise ExportFailed(
                f"the graph of {title} fails{what or ''}: {first_line(error)}"
            ) from error
        if got.shape != expected.shape:
            raise ExportFailed(
                f"the graph of {title} answers {list(got.shape)}{what or ''}, the estimator {list(expected.shape)}"
            )
        wrong = _wrong_rows(got, expected)
        others = got.argmax(axis=1) != expected.argmax(axis=1) if got.ndim == 2 else wrong
        if wrong.any() and not turning:
            worst = np.abs(got - expected).max()
            raise ExportFailed(
                f"the graph of {title} is off by {worst:.1e}{what or ''}, in {wrong.sum()} rows"
            )
        rows, off, relabelled = (
            rows + len(wrong),
            off + int(wrong.sum()),
            relabelled + int((wrong & others).sum()),
        )
    _prove_empty(
        graph,
        inputs,
        np.asarray(ask(table({name: values[:1] for name, values in inputs.items()}))),
        title,
    )
    if off > OFF * rows or relabelled > RELABELLED * rows:
        raise ExportFailed(
            f"the graph of {title} differs from the estimator in {off} of {rows} rows, in {relabelled} of them by "
            f"another label; {_advice(graph)}"
        )
    return Converted(graph, rows, off / rows, relabelled / rows)


def _prove_empty(graph: onnx.ModelProto, inputs: Feeds, one: NDArray[Any], title: str) -> None:
    """No rows get no answers, or are refused: scikit-learn refuses them, too. `one` is the answer to a single row."""
    answers = graphs.risky_answers(graph, [{name: values[:0] for name, values in inputs.items()}])
    if answers is None:
        raise ExportFailed(f"the graph of {title} ends the process that asks it about no rows")
    for answer in answers:
        if answer is not None and [got.shape for got in answer.values()] != [(0, *one.shape[1:])]:
            raise ExportFailed(
                f"the graph of {title} answers {len(next(iter(answer.values())))} rows where it is asked none"
            )


def _advice(graph: onnx.ModelProto) -> str:
    if any(node.op_type == "Tokenizer" for node in graph.graph.node):
        return "the runtime lower-cases A to Z only: lower-case the texts in data() and set lowercase=False"
    return "scale or round the columns in data(), so that no value lies on the threshold of a tree"


def _wrong_rows(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Which rows are beyond the tolerance, (n,)."""
    close = np.isclose(got, expected, rtol=RTOL, atol=ATOL)
    wrong: NDArray[Any] = ~close.reshape(len(close), -1).all(axis=1)
    return wrong


def _questions(inputs: Feeds) -> Iterator[tuple[str | None, Feeds]]:
    """The test part whole, and its first rows alone and in twos; then some with a value missing or never seen."""
    yield None, inputs
    for size in (1, 2):
        yield None, {name: values[:size] for name, values in inputs.items()}
    first = {name: values[:PROBES] for name, values in inputs.items()}
    for name, values in first.items():
        if values.dtype.kind == "f":
            for column in range(min(values.reshape(len(values), -1).shape[1], PROBES)):
                changed = values.copy()
                changed.reshape(len(values), -1)[:, column] = np.nan
                yield f" where {name} has no value in column {column}", {**first, name: changed}
        elif values.dtype == np.object_:
            for text in ("", "a value that was never seen"):
                yield f" where {name} is {text!r}", {**first, name: np.full_like(values, text)}


def probabilities_of(estimator: Any) -> Mapping[Any, int]:
    """Column of each class in the graph's probabilities.

    >>> from sklearn.dummy import DummyClassifier
    >>> probabilities_of(DummyClassifier().fit([[0], [1]], ["yes", "no"]))
    {'no': 0, 'yes': 1}
    """
    classes = getattr(estimator, "best_estimator_", estimator).classes_
    return {
        label.item() if hasattr(label, "item") else label: at for at, label in enumerate(classes)
    }
