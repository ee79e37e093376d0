"""Rows on the device, all at once or batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Examples, lazy
from training.errors import InvalidRecipe


@dataclass(frozen=True, eq=False)
class HostRows:
    """Rows on the host, copied to the device when indexed.

    From pinned memory the copy does not wait for a GPU: while it computes a batch, the host reads
    the next one.
    """

    values: NDArray[Any]
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all rows."""
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the tensors."""
        return torch.from_numpy(np.empty(0, self.values.dtype)).dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        numbers = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        batch = torch.from_numpy(np.ascontiguousarray(self.values[numbers]))
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device)


Rows = Tensor | HostRows  # an input or a target; indexed by row numbers, it gives a tensor


def stays_on_host(examples: Examples) -> bool:
    """Return whether rows are read when used, not before."""
    return any(map(lazy.is_lazy, (*examples.inputs.values(), examples.target)))


def rows(examples: Examples, device: torch.device) -> tuple[tuple[Rows, ...], Rows]:
    """Return inputs and target as device tensors or as HostRows.

    Raises:
        InvalidRecipe: an input is text.
    """
    check_numbers(examples.inputs)
    arrays = (*examples.inputs.values(), examples.target)
    on_host = stays_on_host(examples)
    *inputs, target = (
        HostRows(values, device) if on_host else to_device(values, device) for values in arrays
    )
    return tuple(inputs), target


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy rows to the device, reading those that are not in memory."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def check_numbers(inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise InvalidRecipe if an input is text."""
    for name, values in inputs.items():
        if values.dtype.kind not in "fiub":
            raise InvalidRecipe(
                f"input {name} is text; a network needs a `preprocessor` that makes numbers of it: "
                "CategoryPreprocessor (as in training/recipes/churn.py) or TextPreprocessor (as in "
                "topics.py); or return a scikit-learn pipeline"
            )
