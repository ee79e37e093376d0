"""Sequence recipe: predict a seasonal series' next value by recurrent network.

RNN, LSTM or GRU. GRU: test RMSE 0.40 on 60 held-out series; the value a season ago 0.60, best
achievable (the noise) 0.32. 40 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from training import networks
from training.data import Dataset, Examples, synthetic
from training.data.dataset import BEST_POSSIBLE
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class Sequence(NetworkHyperparameters):
    epochs: int = 40  # passes over the training rows
    lr: float = 1e-2
    clip: float = 1.0  # gradients through many time steps can explode
    patience: int = 8
    cell: networks.Cell = "gru"  # kind of recurrent layer
    width: int = 32  # width of the recurrent layer
    series: int = 300  # number of series that are generated


def data(_: object, h: Sequence) -> Dataset:
    return synthetic.series(count=h.series)


def times_best_possible(values: NDArray[Any], examples: Examples) -> dict[str, float]:
    """Compute a forecast's RMSE divided by the best achievable RMSE.

    The best achievable RMSE is the noise level, so 1.0 is optimal.
    """
    error = np.square(values.ravel() - examples.target).mean()
    noise = np.square(examples.references[BEST_POSSIBLE].ravel() - examples.target).mean()
    return {"times_best_possible": float(np.sqrt(error / noise))}


class Change(networks.Recurrent):
    """Recurrent network that predicts a series' change from its last value."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] + super().forward(x - x[:, -1:])


def model(h: Sequence) -> nn.Module:
    return Change(h.cell, 1, h.width, 1)


recipe = Recipe(
    name="sequence",
    description="The next value of a series with a season of twelve steps.",
    task="regression",
    preprocessing="the last values, oldest first, at least 12 and at best 48, as they are",
    dynamic={"series": {1: "length"}},
    sizes={"length": (12, 96)},
    hyperparameters=Sequence,
    data=data,
    model=model,
    metric=times_best_possible,
    search={
        "cell": ("rnn", "lstm", "gru"),
        "width": (16, 32, 64),
        "lr": Range(1e-3, 3e-2, log=True),
    },
)
