"""Compression of a trained model: parse --compress, make and choose variants."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn

from training.compression import distil, prune
from training.compression.quantize import CONVERTERS
from training.compression.variants import Compressed, Evaluate, Networks, compress
from training.errors import CompressionFailed
from training.evaluation.metrics import PRIMARY
from training.export import graphs, model_exporter
from training.export.sample_requests import batches
from training.fitting import loop, trainer
from training.fitting.keras.network import KerasNetwork
from training.fitting.trained import Trained
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Arrays, Recipe

EPOCHS, RATE = 0.3, 0.3  # epochs and learning rate after pruning, as shares of those in training
CALIBRATION = 8  # most calibration batches
BATCH = 32


def kinds(text: str, recipe: Recipe[Any]) -> list[str]:
    """Parse a comma-separated list of compressions into the order to try them.

    Smaller networks come before converted weights, which are then made from them.

    Raises:
        CompressionFailed: a compression does not exist, or not for this recipe.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    order = [*NETWORKS, *CONVERTERS]
    unknown = [name for name in names if name not in order]
    if unknown:
        raise CompressionFailed(f"there is no compression {unknown[0]!r}: {', '.join(order)}")
    if "distil" in names and recipe.student is None:
        raise CompressionFailed(f"recipe {recipe.name} has no student; --compress distil needs one")
    if "distil" in names and recipe.task in ("multilabel", "segmentation"):
        raise CompressionFailed(
            f"recipe {recipe.name}: --compress distil learns one class a row, and the task is "
            f"{recipe.task}; use prune, or a smaller model()"
        )
    return sorted(set(names), key=order.index)


def smallest(
    trained: Trained, graph: onnx.ModelProto, selected: Sequence[str], budget: float
) -> tuple[Compressed, Trained]:
    """Compress a trained graph; return the best variant and its network.

    The network is a new one if pruning or distillation was best. On the validation part, the
    metric may get worse by the share `budget`.

    Raises:
        CompressionFailed: a variant cannot be made of this kind of model.
    """
    networks = {"fp32": trained}

    def export(kind: str) -> onnx.ModelProto:
        networks[kind] = trainer.calibrate(NETWORKS[kind](trained))
        return model_exporter.export(networks[kind])

    smaller: Networks = {
        kind: functools.partial(export, kind) for kind in NETWORKS if kind in selected
    }
    if smaller and not isinstance(trained.model, nn.Module):
        model = type(trained.model).__name__
        raise CompressionFailed(f"{', '.join(smaller)}: only torch networks; {model} is none")
    compressed = compress(
        graph,
        selected,
        _evaluator(trained),
        higher_is_better=PRIMARY[trained.recipe.task].higher_is_better,
        calibration=batches(trained, graph, trained.data.train, _calibration_rows(trained)),
        budget=budget,
        networks=smaller,
    )
    return compressed, networks[compressed.network]


def _evaluator(trained: Trained) -> Evaluate:
    """Return a function that computes a graph's primary metric on validation data."""
    metric = PRIMARY[trained.recipe.task].metric

    def evaluate(graph: onnx.ModelProto) -> float:
        run = graphs.runner(graph)

        def answer(inputs: Arrays) -> Arrays:
            return run(trained.encode(inputs))

        return trained.measure(trained.data.validation, answer)[0][metric]

    return evaluate


def _calibration_rows(trained: Trained) -> list[slice]:
    """Return the training rows of each calibration batch, as slices.

    There is at least one batch.
    """
    rows = len(trained.encoded.train)
    count = min(CALIBRATION, rows // BATCH)
    return [slice(n * BATCH, (n + 1) * BATCH) for n in range(count)] or [slice(0, rows)]


def _distilled(trained: Trained) -> Trained:
    settings = _network_settings(trained)
    torch.manual_seed(settings.seed)
    student = trainer.adapted(trained, trained.recipe.make_student(settings, trained.encoded))
    objective = trainer.weigh(trained)
    teacher = copy.deepcopy(trained.model)
    loss = distil.objective(teacher, objective.loss, weighted=objective.weighted)
    _learn(trained, student, settings, replace(objective, loss=loss))
    return replace(trained, model=student, temperature=1.0)


def _pruned(trained: Trained) -> Trained:
    if isinstance(trained.model, KerasNetwork):
        raise CompressionFailed(
            "a Keras model is not pruned: compress it by int8, int4, fp16 or distil"
        )
    settings = _network_settings(trained)
    shorter = replace(
        settings,
        epochs=max(1, round(settings.epochs * EPOCHS)),
        lr=settings.lr * RATE,
        patience=0,
        l1=0.0,
    )

    objective = trainer.weigh(trained)

    def tune(model: nn.Module) -> None:
        _learn(trained, model, shorter, objective)

    smaller = prune.prune(trained.model, prune.SHARE, tune, steps=prune.STEPS)
    return replace(trained, model=smaller, temperature=1.0)


# Makers of smaller networks, in the order they are tried.
NETWORKS = {"distil": _distilled, "prune": _pruned}


def _learn(
    trained: Trained,
    model: nn.Module,
    settings: NetworkHyperparameters,
    objective: trainer.Objective,
) -> None:
    loop.fit(
        model,
        objective.data,
        settings,
        device=trained.device,
        loss=objective.loss,
        augment=objective.augment,
    )


def _network_settings(trained: Trained) -> NetworkHyperparameters:
    settings: Any = trained.settings
    if not isinstance(settings, NetworkHyperparameters):
        raise CompressionFailed("only networks of the torch loop are trained again")
    return settings
