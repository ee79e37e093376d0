"""Training and calibration of a recipe's model: torch, Keras or scikit-learn.

    trained = fit(recipe, settings, recipe.load_data({}, settings), device=torch.device("cpu"))

Networks go through loop.py, estimators through estimators.py, compiled Keras models through keras/.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import Dataset, Examples, lazy
from training.errors import InvalidRecipe
from training.evaluation import calibration
from training.evaluation.metrics import PRIMARY
from training.fitting import checkpoint, estimators, loop, losses
from training.fitting.checkpoint import Row, Stop
from training.fitting.distributed import Ranks
from training.fitting.keras import network as keras_network
from training.fitting.keras.backend import is_keras
from training.fitting.keras.network import KerasNetwork
from training.fitting.losses import Loss
from training.fitting.trained import Trained
from training.hyperparameters import FitHyperparameters, Hyperparameters, NetworkHyperparameters
from training.recipe import LABELLED, Arrays, Preprocessor, Recipe
from training.recipe_loading import code_digest

LABELS_SHOWN = 80  # characters of the list of labels in an error


def fit(
    recipe: Recipe[Any],
    settings: Hyperparameters,
    data: Dataset,
    *,
    device: torch.device,
    checkpoints: Path | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
    watch: Callable[[Row], None] | None = None,
    weights: Path | None = None,
) -> Trained:
    """Train a recipe's model on a data set, and calibrate classifiers.

    The keyword arguments are those of `loop.fit`. `weights` is a file or folder of weights that a
    network starts from.

    Raises:
        TrainingError: recipe, settings and data do not fit together.
        Interrupted: `stop` was requested; the checkpoint holds the state.
    """
    ranks = ranks or Ranks()
    labels = recipe.label_names(data)
    preprocessor = recipe.make_preprocessor(settings, data)
    encoded = _encode(preprocessor, data) if preprocessor else data
    torch.manual_seed(settings.seed)
    random.seed(settings.seed)  # Keras draws the seeds of its layers from it
    model = recipe.make_model(settings, encoded)
    untrained = Trained(recipe, settings, data, encoded, labels, preprocessor, model, [], device)
    untrained = replace(untrained, model=adapted(untrained, model))
    model = untrained.model
    if isinstance(model, nn.Module):
        _check_lengths(untrained)
        start = checkpoint.load_weights(model, weights) if weights is not None else ""
        if isinstance(model, KerasNetwork) and model.is_compiled:
            return _fit_compiled(untrained, start, checkpoints, stop, ranks, watch)
        return _fit_network(untrained, start, checkpoints, stop, ranks, watch)
    if weights is not None:
        raise InvalidRecipe(f"recipe {recipe.name}: --weights are for a torch network")
    return _fit_estimator(untrained, stop, ranks)


def _encode(preprocessor: Preprocessor, data: Dataset) -> Dataset:
    train, validation, test = (
        replace(part, inputs=preprocessor.encode(part.inputs))
        for part in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def _fit_network(
    untrained: Trained,
    start: str,  # digest of the weights that training starts from, or ""
    checkpoints: Path | None,
    stop: Stop | None,
    ranks: Ranks,
    watch: Callable[[Row], None] | None,
) -> Trained:
    recipe, settings, data = untrained.recipe, untrained.settings, untrained.encoded
    if not isinstance(settings, NetworkHyperparameters):
        raise InvalidRecipe(
            f"recipe {recipe.name}: hyperparameters of a torch model, and of a Keras model that is "
            "not compiled, extend NetworkHyperparameters"
        )
    if recipe.task in LABELLED and recipe.loss is None:
        _check_width(untrained.model, data.train, untrained.labels)
    objective = weigh(untrained)
    history = loop.fit(
        untrained.model,
        objective.data,
        settings,
        device=untrained.device,
        loss=objective.loss,
        score=_score(untrained),
        augment=objective.augment,
        checkpoints=checkpoints,
        identity=_identity(recipe, data) | {"weights": start} if checkpoints else None,
        stop=stop,
        ranks=ranks,
        watch=watch,
    )
    return _calibrate_and_print(replace(untrained, history=history), ranks)


def _fit_compiled(
    untrained: Trained,
    start: str,  # digest of the weights that training starts from, or ""
    checkpoints: Path | None,
    stop: Stop | None,
    ranks: Ranks,
    watch: Callable[[Row], None] | None,
) -> Trained:
    """Train a compiled Keras model by its own `fit`."""
    from training.fitting.keras import own_fit

    recipe, data = untrained.recipe, untrained.encoded
    settings = _fit_settings(recipe, untrained.settings, ranks)
    if recipe.task in LABELLED:
        _check_width(untrained.model, data.train, untrained.labels)
    by_class = losses.class_weights(recipe.class_weights, untrained.labels, data.train.target)
    weighted = by_class is not None or data.train.weights is not None
    score = _score(untrained)
    history = own_fit.fit(
        untrained.model,
        data,
        _row_weights(data, by_class) if weighted else {},
        settings,
        device=untrained.device,
        score=(lambda: score(untrained.model)) if score else dict,
        callbacks=recipe.make_callbacks(settings, data),
        checkpoints=checkpoints,
        identity=_identity(recipe, data) | {"weights": start} if checkpoints else None,
        stop=stop,
        watch=watch,
    )
    return _calibrate_and_print(replace(untrained, history=history), ranks)


def _fit_settings(
    recipe: Recipe[Any], settings: Hyperparameters, ranks: Ranks
) -> FitHyperparameters:
    """Return the settings of Keras's own `fit`.

    Raises:
        InvalidRecipe: the recipe sets what `fit` does not read.
    """
    if not isinstance(settings, FitHyperparameters):
        raise InvalidRecipe(
            f"recipe {recipe.name}: a compiled Keras model is trained by its own fit, so its "
            "hyperparameters extend FitHyperparameters (epochs, batch_size, patience); leave "
            "compile() out to train it by this project's loop"
        )
    for name, advice in (
        ("augment", "put layers such as keras.layers.RandomRotation into the model"),
        ("loss", "the model was compiled with one"),
    ):
        if getattr(recipe, name) is not None:
            raise InvalidRecipe(f"recipe {recipe.name}: leave {name} out: {advice}")
    if ranks.count > 1:
        raise InvalidRecipe(
            f"recipe {recipe.name}: a compiled Keras model is trained in one process; leave "
            "compile() out to train it in several"
        )
    return settings


def adapted(trained: Trained, model: Any) -> Any:
    """Return a recipe's model; wrap a Keras model as torch module.

    Raises:
        InvalidRecipe: the data do not fit it, or Keras runs on another backend than torch.
    """
    if not is_keras(model):
        return model
    return keras_network.adapt(
        model, trained.encoded.train.inputs, trained.recipe.task, trained.labels
    )


@dataclass(frozen=True)
class Objective:
    """Loss, data and augmentation; `weighted` inputs end with row weights."""

    loss: Loss
    data: Dataset
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None
    weighted: bool


def weigh(trained: Trained) -> Objective:
    """Return a recipe's training objective, with its weights of rows and classes.

    Raises:
        InvalidRecipe: its loss has no weighted form, or its class weights do not fit its labels.
    """
    recipe, data = trained.recipe, trained.encoded
    by_class = losses.class_weights(recipe.class_weights, trained.labels, data.train.target)
    if by_class is None and data.train.weights is None:
        return Objective(losses.choose(recipe.task, recipe.loss), data, recipe.augment, False)
    loss = losses.weighted(recipe.task, recipe.loss)
    return Objective(loss, _with_weights(data, by_class), _beside_weights(recipe.augment), True)


def _with_weights(data: Dataset, by_class: NDArray[np.float64] | None) -> Dataset:
    """Append row weights to the inputs."""
    weights = _row_weights(data, by_class)
    train, validation = (
        replace(part, inputs={**part.inputs, "row weights": weights[name]})
        for name, part in (("train", data.train), ("validation", data.validation))
    )
    return replace(data, train=train, validation=validation)


def _row_weights(
    data: Dataset, by_class: NDArray[np.float64] | None
) -> dict[str, NDArray[np.float32]]:
    """Return weights of training and validation rows, training mean 1."""
    mean = _weights(data.train, by_class).mean()
    parts = {"train": data.train, "validation": data.validation}
    return {
        name: (_weights(part, by_class) / mean).astype(np.float32) for name, part in parts.items()
    }


def _weights(part: Examples, by_class: NDArray[np.float64] | None) -> NDArray[np.float64]:
    weights = losses.row_weights(part, by_class)
    return np.ones(len(part)) if weights is None else weights


def _beside_weights(
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None,
) -> Callable[..., tuple[Tensor, ...]] | None:
    """Return an augmentation that leaves the last input, the weights, alone."""
    if augment is None:
        return None

    def augmented(*inputs: Tensor) -> tuple[Tensor, ...]:
        *own, weights = inputs
        changed = augment(*own)
        return (*(changed if isinstance(changed, tuple) else (changed,)), weights)

    return augmented


def _identity(recipe: Recipe[Any], data: Dataset) -> dict[str, Any]:
    """Return what a checkpoint belongs to, beside the settings."""
    split = json.dumps(dict(data.split), default=str)  # a recipe's own may hold NumPy's numbers
    return {
        "recipe": recipe.name,
        "code": code_digest(recipe),
        "data": data.sha256,
        "split": split,
    }


def _score(trained: Trained) -> loop.Score | None:
    """Return a function that measures the primary metric on the validation part."""
    task = trained.recipe.task
    if task == "generation":
        return None  # the loss is the same number, and computing it again takes large logits
    primary = PRIMARY[task].metric

    def score(_: nn.Module) -> Row:
        metrics, _outcome = trained.measure(trained.data.validation)
        return {primary: metrics[primary]} if primary in metrics else {}

    return score


def _check_width(model: nn.Module, examples: Examples, labels: tuple[str, ...]) -> None:
    two = examples.take(slice(0, 2)).inputs
    try:
        width = loop.predict(model, two, torch.device("cpu"))[0].shape[1]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return  # the loop tries two examples as well and names the shapes that do not fit
    if width != len(labels):
        shown = ", ".join(labels)[:LABELS_SHOWN]
        raise InvalidRecipe(
            f"the model answers {width} numbers a row, and there are {len(labels)} labels: {shown}"
        )


def _check_lengths(trained: Trained) -> None:
    """Check before training that a network takes short inputs.

    Raises:
        InvalidRecipe: it does not.
    """
    dynamic, inputs = trained.dynamic, trained.encoded.train.take(slice(0, 2)).inputs
    if isinstance(trained.model, KerasNetwork) and _lengths(dynamic):
        trained.model.check_free_lengths()
    if not dynamic or set(dynamic) - set(inputs) or _problem(trained.model, inputs):
        return  # inputs of the exported graph alone; or the loop names what does not fit
    bounds = {name: trained.sizes.get(name, (1, 2)) for name in _lengths(dynamic)}
    for extra in (0, 1):
        sizes = {name: min(low + extra, high) for name, (low, high) in bounds.items()}
        resized = {
            name: _resized(values, dynamic.get(name, {}), sizes) for name, values in inputs.items()
        }
        problem = _problem(trained.model, resized)
        if problem:
            named = ", ".join(f"{name} {list(values.shape)}" for name, values in resized.items())
            raise InvalidRecipe(
                f"the network does not take {named}, and requests may be so short: {problem}; "
                "pool over the length, or set the shortest one with sizes="
            )


def _lengths(dynamic: Mapping[str, Mapping[int, str]]) -> set[str]:
    """Return the names of free axes other than the batch."""
    return {name for axes in dynamic.values() for axis, name in axes.items() if axis}


def _resized(
    values: NDArray[Any], axes: Mapping[int, str], sizes: Mapping[str, int]
) -> NDArray[Any]:
    for axis, name in axes.items():
        if axis:
            values = np.asarray(values).take(range(sizes[name]), axis=axis, mode="wrap")
    return values


def _problem(model: nn.Module, inputs: Arrays) -> str:
    """Return why a network refuses inputs, or an empty string."""
    try:
        loop.predict(model, inputs, torch.device("cpu"))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _fit_estimator(untrained: Trained, stop: Stop | None, ranks: Ranks) -> Trained:
    name, model = untrained.recipe.name, untrained.model
    if not estimators.is_estimator(model):
        raise InvalidRecipe(
            f"recipe {name}: model() returns a {type(model).__name__}, which is no torch "
            "module, no Keras model and no scikit-learn estimator"
        )
    if untrained.recipe.task in ("multilabel", "segmentation"):
        raise InvalidRecipe(f"recipe {name}: {untrained.recipe.task} takes a torch module")
    if ranks.count > 1:
        raise InvalidRecipe(f"recipe {name}: a scikit-learn estimator is fitted in one process")
    data, seed = untrained.encoded, untrained.settings.seed
    if any(map(lazy.is_lazy, data.train.inputs.values())):
        print("scikit-learn takes all rows at once: they are read into memory", flush=True)
    by_class = losses.class_weights(
        untrained.recipe.class_weights, untrained.labels, data.train.target
    )
    weights = losses.row_weights(data.train, by_class)
    estimators.fit(model, data.train, seed=seed, stop=stop, columns=data.columns, weights=weights)
    estimators.check_classes(model, untrained.labels)
    trained = _calibrate_and_print(untrained, ranks)
    metrics, _ = trained.measure(trained.data.validation)
    line = "  ".join(f"validation_{metric}={value:.4f}" for metric, value in metrics.items())
    print(line, flush=True)
    return trained


def calibrate(trained: Trained) -> Trained:
    """Return a classifier's copy with a softmax temperature fitted on validation logits.

    Other models, and recipes with a `serve` of their own, are returned as they are.
    """
    recipe, part = trained.recipe, trained.encoded.validation
    if recipe.task != "classification" or recipe.serve is not None or not len(part):
        return trained
    if isinstance(trained.model, nn.Module):
        logits = loop.predict(trained.model, part.inputs, trained.device)[0]
    else:
        logits = calibration.logits(estimators.predict(trained.model, part.inputs))
    by_row = trained.data.split.get("by", "row") in ("row", "time")
    groups = None if by_row else part.groups
    return replace(trained, temperature=calibration.temperature(logits, part.target, groups))


def _calibrate_and_print(trained: Trained, ranks: Ranks) -> Trained:
    calibrated = calibrate(trained)
    if calibrated.temperature != 1 and ranks.leads:
        before, after = (
            model.measure(model.data.validation)[0]["log_loss"] for model in (trained, calibrated)
        )
        print(
            f"at temperature {calibrated.temperature:.2f}, "
            f"validation log loss {before:.4f} → {after:.4f}",
            flush=True,
        )
    return calibrated
