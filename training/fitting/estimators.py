"""Fitting of scikit-learn estimators, pipelines and grid searches, and their predictions."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import Examples, lazy
from training.errors import ExportFailed, InvalidRecipe
from training.fitting.checkpoint import Interrupted, Stop
from training.recipe import Arrays

CANDIDATES_SHOWN = 5  # best candidates of a grid search that are printed
REASON_SHOWN = 300  # characters of scikit-learn's message in an error
FOLDS = 5  # scikit-learn's default
VECTORIZERS = ("TfidfVectorizer", "CountVectorizer")
_BOOSTING = "behind a SimpleImputer where values are missing"
_ALTERNATIVES = {
    "HistGradientBoostingClassifier": f"use GradientBoostingClassifier, {_BOOSTING}",
    "HistGradientBoostingRegressor": f"use GradientBoostingRegressor, {_BOOSTING}",
    "XGBRFClassifier": "use XGBClassifier or RandomForestClassifier",
    "XGBRFRegressor": "use XGBRegressor or RandomForestRegressor",
    "HashingVectorizer": "use TfidfVectorizer or CountVectorizer, which keep their vocabulary",
    "KNNImputer": "use SimpleImputer",
    "FeatureHasher": "use OneHotEncoder(handle_unknown='ignore')",
}


def is_estimator(model: object) -> bool:
    """Return whether `model` looks like a scikit-learn estimator."""
    return hasattr(model, "fit") and hasattr(model, "get_params")


def table(inputs: Arrays) -> NDArray[Any]:
    """Join named input arrays into one table (n, columns), each flattened.

    The dtype is object if there is text, or else float64 with values rounded to float32, so that
    the estimator computes in float64. A single text input (n,) stays flat, as vectorizers need it.

    >>> table({"num": np.ones((2, 2), np.float32), "cat": np.array(["a", "b"], object)}).shape
    (2, 3)
    """
    arrays = list(lazy.read(inputs).values())  # scikit-learn takes all rows at once
    has_text = any(array.dtype == np.object_ for array in arrays)
    if len(arrays) == 1 and arrays[0].ndim == 1 and has_text:
        return arrays[0]
    dtype = np.object_ if has_text else np.float64
    columns = []
    for array in arrays:
        flat = array.reshape(len(array), -1)
        rounded = flat if flat.dtype == np.object_ else flat.astype(np.float32)
        columns.append(rounded.astype(dtype))
    return np.concatenate(columns, axis=1)


def check_exportable(estimator: Any) -> None:
    """Raise an error if a scikit-learn estimator cannot be converted to ONNX.

    This runs before the fit, which may take long.

    Raises:
        ExportFailed: names the part, and an alternative.
    """
    for part in _parts(estimator):
        name = type(part).__name__
        if name in _ALTERNATIVES:
            raise ExportFailed(f"{name} cannot be converted to ONNX: {_ALTERNATIVES[name]}")
        if name in VECTORIZERS:
            _check_vectorizer(name, part)
        # skl2onnx leaves the indicators out, and later steps read columns that are not there.
        if getattr(part, "add_indicator", False):
            raise ExportFailed(
                f"{name} with add_indicator=True cannot be converted to ONNX: leave it out, and "
                "add a column of 0 and 1 for missing values to the data"
            )


def _parts(estimator: Any) -> Iterator[Any]:
    """Yield an estimator and its nested estimators: steps, columns, search candidates."""
    yield estimator
    if hasattr(estimator, "get_params"):
        for value in estimator.get_params(deep=True).values():
            if hasattr(value, "get_params"):
                yield value


def _check_vectorizer(name: str, part: Any) -> None:
    outside = "in data() and in whatever calls the model"
    rules = {
        "analyzer": ("word", "use analyzer='word'"),
        "strip_accents": (None, f"strip accents {outside}"),
        "preprocessor": (None, f"do it {outside}"),
        "tokenizer": (None, "use token_pattern"),
        "sublinear_tf": (False, "leave it out"),
    }
    for option, (supported, advice) in rules.items():
        value = getattr(part, option, supported)
        if value != supported:
            shown = getattr(value, "__name__", value)
            raise ExportFailed(
                f"{name} with {option}={shown!r} cannot be converted to ONNX: {advice}"
            )


def fit(
    estimator: Any,
    examples: Examples,
    *,
    seed: int,
    stop: Stop | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> Any:
    """Fit a scikit-learn estimator on examples, and return the fitted estimator.

    The columns of all inputs are put side by side. Every part that draws random numbers and has
    no `random_state` is seeded with `seed`. `columns` are the names of a table's columns by input;
    a ColumnTransformer may use them. Cross-validation keeps the rows of a group in one fold.
    `weights` (n,) are factors by which rows count.

    Raises:
        ExportFailed: a part of the estimator cannot be converted to ONNX.
        InvalidRecipe: the estimator does not take the data; the message is scikit-learn's.
        Interrupted: `stop` was requested; there is no state to resume from.
    """
    check_exportable(estimator)
    _seed(estimator, seed)
    _number_columns(estimator, _column_names(examples.inputs, columns or {}))
    _keep_groups(estimator, examples)
    print(_announce(estimator), flush=True)
    started = time.monotonic()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(table(examples.inputs), examples.target, **_weights(estimator, weights))
    except (ValueError, TypeError) as error:
        raise _refused(estimator, examples, error) from error
    elapsed_s = time.monotonic() - started
    for text in dict.fromkeys(str(each.message).strip().splitlines()[0] for each in caught):
        print(f"warning: {text}", flush=True)
    rate = len(examples) / max(elapsed_s, 1e-9)
    print(f"fitted in {elapsed_s:.1f} s  rate={rate:.0f}/s", flush=True)
    for line in candidates(estimator):
        print(line, flush=True)
    if stop is not None and stop.requested:
        raise Interrupted("stopped after fitting; the next attempt fits anew")
    return estimator


def _weights(estimator: Any, weights: NDArray[np.float64] | None) -> dict[str, Any]:
    """Return the arguments of `fit` that pass row weights on.

    Raises:
        InvalidRecipe: it takes no weights.
    """
    if weights is None:
        return {}
    prefix, last = "", estimator
    while hasattr(last, "steps") or _is_search(last):
        if _is_search(last):  # it passes the arguments of `fit` on
            last = last.estimator
        else:
            name, last = last.steps[-1]
            prefix += f"{name}__"
    if "sample_weight" not in inspect.signature(last.fit).parameters:
        raise InvalidRecipe(f"{type(last).__name__} takes no weights of rows or classes")
    return {f"{prefix}sample_weight": weights}


def _is_search(estimator: Any) -> bool:
    """Return whether an estimator tries parameters of another one."""
    return hasattr(estimator, "param_grid") or hasattr(estimator, "param_distributions")


def _seed(estimator: Any, seed: int) -> None:
    for part in _parts(estimator):
        if type(part).__name__.startswith("CatBoost"):
            _quieten_catboost(part, seed)
    free = [
        name
        for name, value in estimator.get_params().items()
        if name.endswith("random_state") and value is None
    ]
    estimator.set_params(**dict.fromkeys(free, seed))


def _quieten_catboost(estimator: Any, seed: int) -> None:
    """Set CatBoost's seed, silence and no files where the user has not."""
    own = set(estimator.get_params())
    if not own & {"random_seed", "random_state"}:
        estimator.set_params(random_seed=seed)
    if not own & {"verbose", "silent", "logging_level", "verbose_eval"}:
        estimator.set_params(logging_level="Silent")
    if "allow_writing_files" not in own:
        estimator.set_params(allow_writing_files=False)


def _column_names(inputs: Arrays, columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the column names of `table`, "" where there is none."""
    names: list[str] = []
    for name, values in inputs.items():
        width = values[:1].size
        own = list(columns.get(name, [name] if values.ndim == 1 else []))
        names += own if len(own) == width else [""] * width
    return names


def _number_columns(estimator: Any, names: Sequence[str]) -> None:
    """Replace column names in ColumnTransformers by positions, as arrays have no names.

    Raises:
        InvalidRecipe: the data have no such column.
    """
    for part in _parts(estimator):
        if type(part).__name__ == "ColumnTransformer":
            part.transformers = [
                (label, step, _positions(chosen, names))
                for label, step, chosen in part.transformers
            ]


def _positions(chosen: Any, names: Sequence[str]) -> Any:
    if isinstance(chosen, str):
        return _position(chosen, names)
    if isinstance(chosen, list | tuple) and chosen and isinstance(chosen[0], str):
        numbers = [_position(name, names) for name in chosen]
        if numbers != sorted(numbers):  # skl2onnx would exchange them
            ordered = [names[number] for number in sorted(numbers)]
            raise InvalidRecipe(f"ColumnTransformer: list columns in the table's order: {ordered}")
        return numbers
    if callable(chosen):
        raise InvalidRecipe(
            "ColumnTransformer: list the columns by name; a selector finds no types"
        )
    return chosen


def _position(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    listed = ", ".join(filter(None, names))[:REASON_SHOWN] or "none with a name"
    raise InvalidRecipe(f"ColumnTransformer: there is no column {name!r}; there are {listed}")


def _keep_groups(estimator: Any, examples: Examples) -> None:
    """Keep the rows of a group in one fold of cross-validation.

    Its number of folds, or a splitter such as GroupKFold, becomes a list of splits, because most
    estimators do not pass groups on.

    Raises:
        InvalidRecipe: a splitter needs groups, and the data have none.
    """
    from sklearn.model_selection import GroupKFold

    part = next((part for part in _parts(estimator) if hasattr(part, "cv")), None)
    if part is None:
        return
    splitter, is_search = part.cv, hasattr(part, "refit") and hasattr(part, "estimator")
    by_group, groups = "Group" in type(splitter).__name__, examples.groups
    if groups is None:
        if by_group:
            raise InvalidRecipe(f"{type(splitter).__name__} needs groups: load the data with some")
        return
    if isinstance(splitter, int) or (splitter is None and is_search):
        folds = splitter or FOLDS
        if folds > len(np.unique(groups)):
            return
        splitter, by_group = GroupKFold(folds), True
        print(f"cross-validation keeps each group in one of {splitter.n_splits} folds", flush=True)
    if by_group:
        rows = np.zeros((len(examples), 1))
        part.cv = list(splitter.split(rows, examples.target, groups))


def _announce(estimator: Any) -> str:
    grid = getattr(estimator, "param_grid", None)
    if grid is None:
        return f"fitting {type(estimator).__name__}"
    from sklearn.model_selection import ParameterGrid

    name = type(estimator.estimator).__name__
    return f"fitting {len(ParameterGrid(grid))} candidates of {name}, cross-validated"


def _refused(estimator: Any, examples: Examples, error: Exception) -> InvalidRecipe:
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in examples.inputs.items())
    reason = " ".join(str(error).split())[:REASON_SHOWN]
    return InvalidRecipe(f"{type(estimator).__name__} does not take the data ({shapes}): {reason}")


def candidates(search: Any) -> list[str]:
    """Format the best candidates of a grid search, one line each.

    A line has score, standard deviation and parameters; both numbers are over the folds. An
    estimator without a search has no lines.
    """
    results = getattr(search, "cv_results_", None)
    if results is None:
        return []
    ranked = np.argsort(results["rank_test_score"], kind="stable")
    lines = []
    for at in ranked[:CANDIDATES_SHOWN]:
        mean, deviation = results["mean_test_score"][at], results["std_test_score"][at]
        settings = ", ".join(f"{name}={value}" for name, value in results["params"][at].items())
        lines.append(f"  {mean:.4f} ± {deviation:.4f}  {settings}")
    return lines


def chosen_parameters(model: Any) -> dict[str, Any]:
    """Return a grid search's best parameters as plain JSON values."""
    best = getattr(model, "best_params_", {})
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in best.items()
    }


def predict(estimator: Any, inputs: Arrays) -> Any:
    """Return an estimator's class probabilities, predicted values, or transformed features.

    Probabilities are (n, classes).
    """
    methods = ("predict_proba", "predict", "transform")
    method = next(getattr(estimator, name) for name in methods if hasattr(estimator, name))
    return method(table(inputs))


def check_classes(estimator: Any, labels: tuple[str, ...]) -> None:
    """Raise InvalidRecipe if a fitted classifier never saw one of the labels.

    Raises:
        InvalidRecipe: the training part lacks a class.
    """
    classes = list(getattr(estimator, "classes_", range(len(labels))))
    missing = [label for number, label in enumerate(labels) if number not in classes]
    if missing:
        raise InvalidRecipe(
            f"the training part has no row of class {missing[0]!r}; "
            "leave the label out, or add rows"
        )
