"""Loss functions of torch models: cross entropy, squared error, Huber, contrastive.

A `Loss` takes (model, inputs, target) and returns the mean over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.data import Examples
from training.errors import InvalidRecipe
from training.recipe import Run

Loss = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
IGNORED = -1  # target that does not count in the loss, e.g. padding
PART = 32  # texts whose logits are in memory at a time


def cross_entropy(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the cross entropy of logits (batch, classes) and class numbers (batch,)."""
    return functional.cross_entropy(model(*inputs), target)


def binary(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the binary cross entropy of logits (batch, labels)."""
    logits = model(*inputs)
    return functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def pixels(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the cross entropy of pixels, leaving out IGNORED ones.

    Logits are (batch, classes, height, width), class numbers (batch, height, width).
    """
    return _unignored(model(*inputs), target)


def mse(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the mean squared error of a model's outputs."""
    return functional.mse_loss(_like(model(*inputs), target), target)


def huber(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the mean Huber loss of a model's outputs.

    Squared up to an error of 1, linear beyond: outliers weigh less than in the squared error.
    """
    return functional.huber_loss(_like(model(*inputs), target), target)


def next_token(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Compute the cross entropy of next-token logits (batch, length, tokens).

    `target` (batch, length) holds the token after each position, IGNORED where there is none.
    """
    return _unignored(model(*inputs).flatten(0, -2), target.flatten())


def _unignored(logits: Tensor, target: Tensor) -> Tensor:
    """Average the cross entropy of targets that count; 0 where none does."""
    total = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp(min=1)


def nats(run: Run, examples: Examples) -> NDArray[np.float32]:
    """Compute a language model's cost of each byte in nats (n, length).

    For a generation recipe's `infer`. The model is run on PART texts at a time: logits are large.
    """
    inputs, costs = examples.inputs, []
    for start in range(0, len(examples), PART):
        part = slice(start, start + PART)
        outputs = run({name: values[part] for name, values in inputs.items()})
        logits = torch.from_numpy(outputs["logits"]).transpose(1, 2)
        target = torch.from_numpy(examples.target[part]).clamp(min=0)
        costs.append(functional.cross_entropy(logits, target, reduction="none").numpy())
    return np.concatenate(costs)


def contrastive(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """Compute the symmetric InfoNCE loss of paired unit vectors.

    Both are (batch, width). Row i of `first` matches row i of `second` and no other row. For a
    recipe's own loss: `contrastive(model(a), model(b))`.
    """
    similarity = first @ second.T / temperature
    pairs = torch.arange(len(first), device=first.device)
    return (
        functional.cross_entropy(similarity, pairs) + functional.cross_entropy(similarity.T, pairs)
    ) / 2


def _like(prediction: Tensor, target: Tensor) -> Tensor:
    """Reshape predictions to the target's shape, e.g. (batch, 1) to (batch,)."""
    # Without this, broadcasting would compare every row with every other row.
    return prediction.reshape(target.shape)


def by_row(losses: Tensor) -> Tensor:
    """Average losses (batch, ...) to one number a row."""
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


# Losses of rows (batch,), for weighted means.
ROWS: Mapping[str, Loss] = {
    "cross_entropy": lambda model, inputs, target: by_row(
        functional.cross_entropy(model(*inputs), target, reduction="none")
    ),
    "binary": lambda model, inputs, target: by_row(
        functional.binary_cross_entropy_with_logits(
            model(*inputs), target.float(), reduction="none"
        )
    ),
    "mse": lambda model, inputs, target: by_row(
        functional.mse_loss(_like(model(*inputs), target), target, reduction="none")
    ),
    "huber": lambda model, inputs, target: by_row(
        functional.huber_loss(_like(model(*inputs), target), target, reduction="none")
    ),
}


def weighted(task: str, loss: str | Loss | None) -> Loss:
    """Return a task's loss as a mean weighted by the last input.

    Raises:
        InvalidRecipe: the loss has no weighted form.
    """
    name = next((name for name, function in NAMED.items() if function is choose(task, loss)), "")
    if name not in ROWS:
        raise InvalidRecipe(
            f"weights of rows or classes need one of the losses {', '.join(ROWS)}; a loss of your "
            "own weighs rows itself"
        )
    rows = ROWS[name]

    def mean(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        *own, weights = inputs
        return (rows(model, tuple(own), target) * weights).mean()

    return mean


def row_weights(
    part: Examples, class_weights: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return row weights times class weights (n,), or None."""
    if class_weights is None:
        return None if part.weights is None else part.weights.astype(np.float64)
    own = 1.0 if part.weights is None else part.weights
    weights: NDArray[np.float64] = own * class_weights[part.target]
    return weights


def class_weights(
    chosen: str | Mapping[str, float] | None, labels: Sequence[str], target: NDArray[Any]
) -> NDArray[np.float64] | None:
    """Return a recipe's weight of each class, or None.

    Raises:
        InvalidRecipe: they are no weights of these labels.
    """
    if chosen is None:
        return None
    if target.ndim != 1 or not labels:
        raise InvalidRecipe("class_weights are for a classifier of one class a row")
    if isinstance(chosen, str):
        if chosen != "balanced":
            raise InvalidRecipe(f"class_weights {chosen!r}: give 'balanced', or weights by label")
        counts = np.bincount(target, minlength=len(labels))
        return len(target) / (len(labels) * np.maximum(counts, 1))
    unknown = sorted(set(chosen) - set(labels))
    if unknown or any(not weight >= 0 for weight in chosen.values()):
        raise InvalidRecipe(
            f"class_weights: {unknown[0]!r} is none of the labels {', '.join(labels)[:200]}"
            if unknown
            else "class_weights are 0 or more"
        )
    return np.array([chosen.get(label, 1.0) for label in labels], np.float64)


NAMED: Mapping[str, Loss] = {
    "cross_entropy": cross_entropy,
    "binary": binary,
    "pixels": pixels,
    "mse": mse,
    "huber": huber,
    "next_token": next_token,
}
BY_TASK = {
    "classification": cross_entropy,
    "multilabel": binary,
    "segmentation": pixels,
    "regression": mse,
    "generation": next_token,
}


def choose(task: str, loss: str | Loss | None) -> Loss:
    """Choose a loss function: the recipe's own, by name, or by task.

    Raises:
        InvalidRecipe: the name is unknown, or the task has no loss of its own.
    """
    if loss is None and task not in BY_TASK:
        raise InvalidRecipe(
            f"a {task} recipe brings its own loss: loss=lambda model, inputs, target: …"
        )
    if isinstance(loss, str):
        if loss not in NAMED:
            raise InvalidRecipe(f"loss {loss!r} is none of {', '.join(NAMED)}")
        return NAMED[loss]
    return loss or BY_TASK[task]
