"""Churn recipe: predict leaving customers from a table with gaps and typos.

The exported graph cleans the table. Test accuracy 78.7 % on 600 held-out customers, mean of 3 seeds
(78.2 to 79.0). Nearest class mean 67.3 %, majority class 58.5 %, best achievable on the clean data
81.3 %. 8 s with export and proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training import networks
from training.data import Dataset, synthetic
from training.export.category_graph import SPECIAL, Categories, CategoryPreprocessor
from training.recipe import NetworkHyperparameters, Range, Recipe

CODES = Categories.of(
    synthetic.CONTRACTS, synthetic.PAYMENTS, synthetic.REGIONS, tuple(synthetic.MEGABYTES)
)
UNKNOWN_CALLS = 999  # code in the data for an unknown number of support calls
EMBEDDING_WIDTH = 8  # largest embedding of a category


@dataclass(frozen=True)
class Churn(NetworkHyperparameters):
    epochs: int = 30  # passes over the training rows
    lr: float = 3e-3
    weight_decay: float = 0.3
    patience: int = 6
    hidden: tuple[int, ...] = (32,)  # widths of the hidden layers
    dropout: float = 0.2  # share of values set to 0 in training


class Cleaner(nn.Module):
    """Network layer that cleans table columns: units and unknown numbers.

    Data use is brought to one unit, and unknown numbers become NaN. The last category is the unit,
    which the codes returned no longer contain.
    """

    factors: Tensor

    def __init__(self) -> None:
        super().__init__()
        no_unit = [torch.nan] * SPECIAL  # codes of a missing and of an unknown unit
        self.register_buffer("factors", torch.tensor([*no_unit, *synthetic.MEGABYTES.values()]))

    def forward(self, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        tenure, fee, calls, used = numbers.unbind(1)
        calls = calls.masked_fill(calls == UNKNOWN_CALLS, torch.nan)
        used = (used * self.factors[codes[:, -1]]).log()
        return torch.stack([tenure, fee, calls, used], 1), codes[:, :-1]


class Table(nn.Module):
    """Multilayer perceptron for a table of numbers, with gaps, and categories.

    Numbers (batch, k) and codes (batch, m) → (batch, outputs). A NaN among the numbers is filled
    with its column's median and marked; columns are scaled to mean 0 and deviation 1, all learned
    from the training inputs `rows` after `clean`. `categories` holds the number of codes of each
    column.
    """

    median: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        clean: nn.Module,
        rows: Mapping[str, NDArray[Any]],
        categories: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.clean = clean
        numbers, _ = clean(*(torch.from_numpy(values) for values in rows.values()))
        median = numbers.nanmedian(0).values.nan_to_num()
        filled = torch.where(numbers.isnan(), median, numbers)
        self.register_buffer("median", median)
        self.register_buffer("mean", filled.mean(0))
        self.register_buffer("deviation", filled.std(0).clamp(min=1e-6))
        widths = [min(count, EMBEDDING_WIDTH) for count in categories]
        self.words = nn.ModuleList(
            nn.Embedding(count, width) for count, width in zip(categories, widths, strict=True)
        )
        columns = 2 * numbers.shape[1] + sum(widths)
        self.layers = networks.mlp(columns, hidden, outputs, dropout)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        numbers, codes = self.clean(numbers, codes)
        gaps = numbers.isnan()
        scaled = (torch.where(gaps, self.median, numbers) - self.mean) / self.deviation
        words = [embedding(codes[:, column]) for column, embedding in enumerate(self.words)]
        answer: Tensor = self.layers(torch.cat([scaled, gaps.to(scaled.dtype), *words], 1))
        return answer


def model(h: Churn, data: Dataset) -> nn.Module:
    return Table(Cleaner(), data.train.inputs, CODES.sizes[:-1], h.hidden, 2, dropout=h.dropout)


recipe = Recipe(
    name="churn",
    description="Whether a customer of a telephone company leaves. Made up, with gaps and slips as "
    "real tables have.",
    task="classification",
    preprocessing={
        "numbers": f"in this order: {', '.join(synthetic.NUMBERS)}; NaN where missing, 999 calls "
        "for unknown",
        "categories": f"in this order: {', '.join(synthetic.CATEGORIES)}; as they were typed, "
        "empty where missing",
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
