"""Export scikit-learn estimators to ONNX, checking graph outputs against the estimator.

scikit-learn computes in float64 and the graph, where that is enough, in float32. A value on the
threshold of a tree may then fall to the other side: how often is measured, and limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training.errors import ExportFailed
from training.export import graphs, sklearn_conversion
from training.export.graphs import ATOL, RTOL, Feeds, first_line
from training.export.quiet import quiet
from training.fitting.estimators import check_exportable, table

PROBES = 16  # rows that are checked again with a missing or an unknown value
# Largest shares of rows beyond the tolerance, and with another label, for models in which a last
# bit or a letter beyond ASCII can turn an answer (_THRESHOLDS). For all others both are 0.
MISMATCH_MAX, RELABEL_MAX = 0.01, 0.005
_THRESHOLDS = {"TreeEnsembleClassifier", "TreeEnsembleRegressor", "Tokenizer", "TopK"}

Predict = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Converted:
    """Checked ONNX graph, with its mismatch rates against the scikit-learn estimator."""

    graph: onnx.ModelProto
    rows: int
    mismatch_rate: float  # share of rows beyond the tolerance
    relabel_rate: float  # share of rows with another most likely class


def export(estimator: Any, inputs: Feeds, output: str) -> Converted:
    """Convert a fitted scikit-learn estimator to a checked ONNX graph.

    The graph computes in float32 or, if that is not exact, in float64. `inputs` are test data. The
    graph's one output `output` has a classifier's probabilities (n, classes), in the order of
    `classes_`; a regressor's values (n,) or (n, targets); or a transformer's features (n, width).

    Raises:
        ExportFailed: it cannot be converted, or the graph differs from the estimator.
    """
    estimator = getattr(estimator, "best_estimator_", estimator)
    check_exportable(estimator)
    predict = _predict_method(estimator)
    results: list[Converted] = []
    problems: list[ExportFailed] = []
    for double in (False, True):
        try:
            graph = _convert(estimator, predict, inputs, output, double)
            results.append(_prove(graph, predict, inputs, _title(estimator)))
        except ExportFailed as error:
            problems.append(error)
        if results and not results[-1].mismatch_rate:
            break
    if not results:
        raise problems[0]
    return min(results, key=lambda result: result.mismatch_rate)


def _convert(
    estimator: Any, predict: Predict, inputs: Feeds, output: str, double: bool
) -> onnx.ModelProto:
    title = _title(estimator)
    try:
        with quiet():
            expected = predict(table(_rows(inputs, 1)))
            graph = sklearn_conversion.convert(estimator, inputs, output, expected, double)
    except Exception as error:  # the converter raises anything, its own bugs included
        raise ExportFailed(f"{title} cannot be converted to ONNX: {first_line(error)}") from error
    problem = graphs.load_problem(graph)
    if problem is not None:
        raise ExportFailed(f"the graph of {title} {problem}")
    return graph


def _title(estimator: Any) -> str:
    """Return an estimator's class name; pipeline steps are joined by "+"."""
    steps = [step for _, step in getattr(estimator, "steps", ())] or [estimator]
    return " + ".join(type(step).__name__ for step in steps)


def _predict_method(estimator: Any) -> Predict:
    """Return the estimator's method that the ONNX graph has to reproduce."""
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        last = _title(estimator).split(" + ")[-1]
        raise ExportFailed(f"{last} gives no probabilities: wrap it in CalibratedClassifierCV")
    if is_classifier(estimator):
        name = "predict_proba"
    else:
        name = "predict" if is_regressor(estimator) else "transform"
    if not hasattr(estimator, name):
        raise ExportFailed(
            f"{_title(estimator)} neither classifies, nor predicts values, nor transforms"
        )
    method: Predict = getattr(estimator, name)
    return method


# --- check


def _prove(graph: onnx.ModelProto, predict: Predict, inputs: Feeds, title: str) -> Converted:
    """Compare an ONNX graph with its estimator on test and damaged rows.

    Raises:
        ExportFailed: more rows differ than may.
    """
    try:
        session = graphs.open_session(graph)
    except Exception as error:  # native errors of any kind
        raise ExportFailed(f"the graph of {title} does not load: {first_line(error)}") from error
    has_thresholds = bool(_THRESHOLDS & {node.op_type for node in graph.graph.node})
    rows = mismatched = relabelled = 0
    for condition, feeds in _probes(inputs):
        expected = _expected(predict, feeds, condition, title)
        if expected is None:
            continue
        answer = _answer(session, feeds, f"the graph of {title}", condition, expected.shape)
        wrong = _wrong_rows(answer, expected)
        if wrong.any() and not has_thresholds:
            worst = np.abs(answer - expected).max()
            raise ExportFailed(
                f"the graph of {title} is off by {worst:.1e}{condition}, in {wrong.sum()} rows"
            )
        rows += len(wrong)
        mismatched += int(wrong.sum())
        relabelled += int((wrong & _relabelled(answer, expected)).sum())
    _check_empty(graph, inputs, np.shape(predict(table(_rows(inputs, 1)))), title)
    if mismatched > MISMATCH_MAX * rows or relabelled > RELABEL_MAX * rows:
        raise ExportFailed(
            f"the graph of {title} differs from the estimator in {mismatched} of {rows} rows, in "
            f"{relabelled} of them by another label; {_advice(graph)}"
        )
    return Converted(graph, rows, mismatched / rows, relabelled / rows)


def _probes(inputs: Feeds) -> Iterator[tuple[str, Feeds]]:
    """Yield requests for checking: test rows, then rows with damaged values.

    Damaged rows have a missing or unknown value. Each request has its condition for errors; it is
    empty for rows that the estimator has to answer.
    """
    for size in (None, 1, 2):
        yield "", _rows(inputs, size)
    first = _rows(inputs, PROBES)
    for name, values in first.items():
        if values.dtype.kind == "f":
            for column in range(min(values.reshape(len(values), -1).shape[1], PROBES)):
                changed = values.copy()
                changed.reshape(len(values), -1)[:, column] = np.nan
                yield f" where {name} has no value in column {column}", {**first, name: changed}
        elif values.dtype == np.object_:
            for text in ("", "a value that was never seen"):
                yield f" where {name} is {text!r}", {**first, name: np.full_like(values, text)}


def _rows(inputs: Feeds, count: int | None) -> Feeds:
    return {name: values[:count] for name, values in inputs.items()}


def _expected(
    predict: Predict, feeds: Feeds, condition: str, title: str
) -> NDArray[np.float64] | None:
    """Return the estimator's answer, or None if it refuses damaged rows."""
    try:
        expected = np.asarray(predict(table(feeds)), np.float64)
    except ValueError:
        if not condition:
            raise
        return None
    if np.isfinite(expected).all():
        return expected
    if not condition:
        raise ExportFailed(f"{title} answers NaN or infinity")
    return None


def _answer(
    session: Any, feeds: Feeds, subject: str, condition: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    try:
        answer: NDArray[Any] = session.run(None, dict(feeds))[0]
    except Exception as error:  # native errors of any kind
        raise ExportFailed(f"{subject} fails{condition}: {first_line(error)}") from error
    if answer.shape != shape:
        raise ExportFailed(
            f"{subject} answers {list(answer.shape)}{condition}, the estimator {list(shape)}"
        )
    return answer


def _wrong_rows(answer: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask (n,) of rows whose answers differ beyond tolerance."""
    close = np.isclose(answer, expected, rtol=RTOL, atol=ATOL)
    wrong: NDArray[np.bool_] = ~close.reshape(len(close), -1).all(axis=1)
    return wrong


def _relabelled(answer: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask (n,) of rows whose most likely class differs.

    All rows are in it if each answer is one value.
    """
    if answer.ndim != 2:
        return np.ones(len(answer), np.bool_)
    changed: NDArray[np.bool_] = answer.argmax(axis=1) != expected.argmax(axis=1)
    return changed


def _check_empty(
    graph: onnx.ModelProto, inputs: Feeds, single: tuple[int, ...], title: str
) -> None:
    """Check that the graph refuses an empty request or answers no rows.

    scikit-learn refuses it. `single` is the shape of one row's answer.
    """
    answers = graphs.run_in_subprocess(graph, [_rows(inputs, 0)])
    if answers is None:
        raise ExportFailed(f"the graph of {title} ends the process that asks it about no rows")
    for answer in answers:
        if answer is not None and [array.shape for array in answer.values()] != [(0, *single[1:])]:
            count = len(next(iter(answer.values())))
            raise ExportFailed(f"the graph of {title} answers {count} rows where it is asked none")


def _advice(graph: onnx.ModelProto) -> str:
    if any(node.op_type == "Tokenizer" for node in graph.graph.node):
        return (
            "the runtime lower-cases A to Z only: lower-case the texts in data() and set "
            "lowercase=False"
        )
    return "scale or round the columns in data(), so that no value lies on the threshold of a tree"
