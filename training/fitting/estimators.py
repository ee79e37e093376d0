"""scikit-learn's estimators, pipelines and searches: fitted once, then judged and exported like every other model."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from training.data import Examples
from training.errors import InvalidRecipe
from training.export import sklearn_exporter
from training.fitting.checkpoint import Interrupted, Stop
from training.recipe import Arrays

SHOWN = 5  # candidates of a search


def is_estimator(model: object) -> bool:
    return hasattr(model, "fit") and hasattr(model, "get_params")


def fit(estimator: Any, examples: Examples, *, seed: int, stop: Stop | None = None) -> Any:
    """`estimator`, fitted on `examples`: the columns of all inputs side by side, in order.

    Whatever in it draws random numbers and was given no `random_state` draws them from `seed`.

    Raises:
        ExportFailed: a part of it cannot be converted to ONNX.
        InvalidRecipe: it does not take the data; in scikit-learn's words.
        Interrupted: `stop` was requested; there is no state to go on from.
    """
    sklearn_exporter.check(estimator)
    free = [
        name
        for name, value in estimator.get_params().items()
        if name.endswith("random_state") and value is None
    ]
    estimator.set_params(**dict.fromkeys(free, seed))
    started = time.monotonic()
    print(_announce(estimator), flush=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(sklearn_exporter.table(examples.inputs), examples.target)
    except (ValueError, TypeError) as error:
        shapes = ", ".join(
            f"{name} {list(values.shape)}" for name, values in examples.inputs.items()
        )
        line = " ".join(str(error).split())[:300]
        raise InvalidRecipe(
            f"{type(estimator).__name__} does not take the data ({shapes}): {line}"
        ) from error
    for text in dict.fromkeys(str(one.message).strip().splitlines()[0] for one in caught):
        print(f"warning: {text}", flush=True)
    taken = time.monotonic() - started
    print(f"fitted in {taken:.1f} s  rate={len(examples) / max(taken, 1e-9):.0f}/s", flush=True)
    for line in candidates(estimator):
        print(line, flush=True)
    if stop is not None and stop.requested:
        raise Interrupted("stopped after fitting; the next attempt fits anew")
    return estimator


def _announce(estimator: Any) -> str:
    grid = getattr(estimator, "param_grid", None)
    if grid is None:
        return f"fitting {type(estimator).__name__}"
    from sklearn.model_selection import ParameterGrid

    return f"fitting {len(ParameterGrid(grid))} candidates of {type(estimator.estimator).__name__}, cross-validated"


def candidates(search: Any) -> list[str]:
    """The best settings that a search tried, with mean and deviation of their score over the folds."""
    results = getattr(search, "cv_results_", None)
    if results is None:
        return []
    return [
        f"  {results['mean_test_score'][at]:.4f} ± {results['std_test_score'][at]:.4f}  "
        + ", ".join(f"{name}={value}" for name, value in results["params"][at].items())
        for at in np.argsort(results["rank_test_score"], kind="stable")[:SHOWN]
    ]


def found(estimator: Any) -> dict[str, Any]:
    """What a search settled on, for the manifest: plain values only."""
    best = getattr(estimator, "best_params_", {})
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in best.items()
    }


def predict(estimator: Any, inputs: Arrays) -> Any:
    """Probabilities (n, classes) of a classifier, values of a regressor, features of a transformer."""
    ask = next(
        getattr(estimator, name)
        for name in ("predict_proba", "predict", "transform")
        if hasattr(estimator, name)
    )
    return ask(sklearn_exporter.table(inputs))


def check_classes(estimator: Any, labels: tuple[str, ...]) -> None:
    """The columns of its probabilities are the labels.

    Raises:
        InvalidRecipe: the training part lacks a class.
    """
    classes = list(getattr(estimator, "classes_", range(len(labels))))
    missing = [label for number, label in enumerate(labels) if number not in classes]
    if missing:
        raise InvalidRecipe(
            f"the training part has no row of class {missing[0]!r}; leave the label out, or add rows"
        )
