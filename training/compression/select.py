"""The smaller forms of a trained model that --compress asks for, judged on the validation part."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn

from training.compression import distil, prune, quantize
from training.compression.quantize import Compressed
from training.errors import CompressionFailed
from training.evaluation import metrics
from training.export import graphs, model_exporter
from training.export.sample_requests import batches
from training.fitting import loop, losses, trainer
from training.fitting.losses import Loss
from training.fitting.trained import Trained
from training.hyperparameters import NetworkHyperparameters
from training.recipe import Arrays, Recipe

SHARE = 0.5  # of neurons and channels that pruning takes out
EPOCHS, RATE = 0.3, 0.3  # of those of the training, for what pruning left
CALIBRATION = 8  # batches
BATCH = 32


def kinds(text: str, recipe: Recipe[Any]) -> list[str]:
    """The kinds in a comma-separated list, in the order they are tried: other networks first, then other numbers.

    Raises:
        CompressionFailed: one of them does not exist, or not for this recipe.
    """
    wanted = [kind.strip() for kind in text.split(",") if kind.strip()]
    known = ["distil", "prune", *quantize.MAKERS]
    for kind in wanted:
        if kind not in known:
            raise CompressionFailed(f"there is no compression {kind!r}: {', '.join(known)}")
    if "distil" in wanted and recipe.student is None:
        raise CompressionFailed(f"recipe {recipe.name} has no student; --compress distil needs one")
    return sorted(set(wanted), key=known.index)


def smallest(
    run: Trained, graph: onnx.ModelProto, wanted: Sequence[str], budget: float
) -> tuple[Compressed, Trained]:
    """The best of the trained graph and its forms, and the network it was made of, which pruning and distilling change.

    The metric may become worse by `budget`, a share of what it is.

    Raises:
        CompressionFailed: a form cannot be made of this kind of model.
    """
    makers = {
        kind: make
        for kind, make in {"distil": _distilled, "prune": _pruned}.items()
        if kind in wanted
    }
    runs = {"fp32": run}

    def graph_of(kind: str) -> onnx.ModelProto:
        runs[kind] = trainer.calibrate(makers[kind](run))
        return model_exporter.export(runs[kind])

    chosen: dict[str, Callable[[], onnx.ModelProto]] = {
        kind: functools.partial(graph_of, kind) for kind in makers
    }
    if chosen and not isinstance(run.model, nn.Module):
        raise CompressionFailed(
            f"{', '.join(chosen)}: only torch networks; {type(run.model).__name__} is none"
        )
    primary = metrics.PRIMARY[run.recipe.task]
    rows = [slice(at * BATCH, (at + 1) * BATCH) for at in range(CALIBRATION)]
    rows = [part for part in rows if part.stop <= len(run.encoded.train)] or [
        slice(0, len(run.encoded.train))
    ]

    def metric(form: onnx.ModelProto) -> float:
        ask = graphs.runner(form)

        def answer(inputs: Arrays) -> Arrays:
            return ask(run.encode(inputs))

        return run.measure(run.data.validation, answer)[0][
            primary.metric
        ]

    found = quantize.compress(
        graph,
        wanted,
        metric,
        higher_is_better=primary.higher_is_better,
        calibration=batches(run, graph, run.data.train, rows),
        budget=budget,
        made=chosen,
    )
    return found, runs[found.network]


def _pruned(run: Trained) -> Trained:
    settings = _network(run)
    shorter = replace(
        settings,
        epochs=max(1, round(settings.epochs * EPOCHS)),
        lr=settings.lr * RATE,
        patience=0,
        l1=0.0,
    )
    smaller = prune.prune(
        run.model, SHARE, lambda model: _learn(run, model, shorter, _loss(run)), steps=2
    )
    return replace(run, model=smaller, temperature=1.0)


def _distilled(run: Trained) -> Trained:
    settings = _network(run)
    torch.manual_seed(settings.seed)
    student = run.recipe.make_student(settings, run.encoded)
    _learn(run, student, settings, distil.objective(copy.deepcopy(run.model), _loss(run)))
    return replace(run, model=student, temperature=1.0)


def _learn(run: Trained, model: nn.Module, settings: NetworkHyperparameters, loss: Loss) -> None:
    loop.fit(model, run.encoded, settings, device=run.device, loss=loss, augment=run.recipe.augment)


def _loss(run: Trained) -> Loss:
    return losses.choose(run.recipe.task, run.recipe.loss)


def _network(run: Trained) -> NetworkHyperparameters:
    settings: Any = run.settings
    if not isinstance(settings, NetworkHyperparameters):
        raise CompressionFailed("only networks of the torch loop are trained again")
    return settings
