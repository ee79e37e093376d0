"""A table as it comes, cleaned inside the graph: gaps, stray blanks and capitals, two units, a number for "unknown".

Test accuracy 78.7 % mean of 3 seeds (78.2 to 79.0) on 600 held-out customers, against 67.3 % of the nearest class mean
and 58.5 % of the majority; who saw the data before they were spoilt could reach 81.3 %. 8 s with export and proof.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training import networks
from training.data import Dataset, synthetic
from training.export.category_graph import SPECIAL, Categories, CategoryPreprocessor
from training.recipe import NetworkHyperparameters, Range, Recipe

CODES = Categories.of(
    synthetic.CONTRACTS, synthetic.PAYMENTS, synthetic.REGIONS, tuple(synthetic.MEGABYTES)
)
NOT_KNOWN = 999  # calls


@dataclass(frozen=True)
class Churn(NetworkHyperparameters):
    epochs: int = 30
    lr: float = 3e-3
    weight_decay: float = 0.3
    patience: int = 6
    hidden: tuple[int, ...] = (32,)
    dropout: float = 0.2


class Cleaner(nn.Module):
    """Numbers and codes as they come → numbers of one unit a column, NaN where not known, and codes but the unit's."""

    factors: Tensor

    def __init__(self) -> None:
        super().__init__()
        unknown = [torch.nan] * SPECIAL  # no unit, or another one
        self.register_buffer("factors", torch.tensor([*unknown, *synthetic.MEGABYTES.values()]))

    def forward(self, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        tenure, fee, calls, used = numbers.unbind(1)
        calls = calls.masked_fill(calls == NOT_KNOWN, torch.nan)
        used = (used * self.factors[codes[:, -1]]).log()
        return torch.stack([tenure, fee, calls, used], 1), codes[:, :-1]


def model(h: Churn, data: Dataset) -> nn.Module:
    return networks.Table(
        Cleaner(), data.train.inputs, CODES.sizes[:-1], h.hidden, 2, dropout=h.dropout
    )


recipe = Recipe(
    name="churn",
    description="Whether a customer of a telephone company leaves. Made up, with gaps and slips as real tables have.",
    task="classification",
    preprocessing={
        "numbers": f"in this order: {', '.join(synthetic.NUMBERS)}; NaN where missing, 999 calls for unknown",
        "categories": f"in this order: {', '.join(synthetic.CATEGORIES)}; as they were typed, empty where missing",
    },
    hyperparameters=Churn,
    data=lambda: synthetic.churn(),
    preprocessor=lambda: CategoryPreprocessor(CODES),
    model=model,
    search={
        "hidden": ((16,), (32,), (32, 32)),
        "lr": Range(3e-4, 1e-2, log=True),
        "dropout": Range(0, 0.5),
    },
)
