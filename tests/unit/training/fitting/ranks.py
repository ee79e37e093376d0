"""Process of a distributed training run, as torchrun starts it.

For tests/unit/training/fitting/test_ranks.py: python -m tests.unit.training.fitting.ranks FOLDER
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from training.data import Dataset, Examples
from training.fitting import checkpoint, distributed, loop, losses
from training.hyperparameters import NetworkHyperparameters

CPU = torch.device("cpu")
# 101 examples: the last batch of 5 is split into 3 and 2 and, with accumulation, into 2 and 1.
SETTINGS = NetworkHyperparameters(
    epochs=4, lr=0.02, batch_size=16, l1=1e-3, clip=0.5, patience=3, accumulate=2
)


def make_data() -> Dataset:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((161, 6), np.float32)
    y = (x[:, 0] > x[:, 1] * x[:, 2]).astype(np.int64)
    parts = [
        Examples({"x": x[rows]}, y[rows])
        for rows in (slice(0, 101), slice(101, 131), slice(131, 161))
    ]
    return Dataset(*parts, source="made", sha256="0", split={})  # type: ignore[arg-type, misc]


def make_model(dropout: float = 0.0) -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 2)
    )


def fit(model: Any, ranks: distributed.Ranks | None = None, **more: Any) -> list[dict[str, float]]:
    settings = more.pop("settings", SETTINGS)
    return loop.fit(
        model, make_data(), settings, device=CPU, loss=losses.cross_entropy, ranks=ranks, **more
    )


class StopAt(checkpoint.Stop):
    """Stop that is requested after it was checked `looks` times, as if by SIGTERM."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


def main() -> int:
    folder = Path(sys.argv[1])
    ranks, _ = distributed.join(os.environ, CPU)
    model = make_model()
    history = fit(model, ranks)
    others = ranks.gather(model.state_dict())
    if ranks.leads:
        torch.save(
            {"model": model.state_dict(), "history": history, "others": others}, folder / "plain.pt"
        )

    drawing = replace(SETTINGS, accumulate=1, epochs=3)
    whole = make_model(0.3)
    fit(whole, ranks, settings=drawing)
    loop.VOTE_EVERY = 2
    stopped = False
    try:  # only the second process gets SIGTERM, in the middle of an epoch
        fit(make_model(0.3), ranks, settings=drawing, checkpoints=folder / "state",
            stop=StopAt(3 if ranks.rank == 1 else 10_000))  # fmt: skip
    except checkpoint.Interrupted:
        stopped = True
    resumed = make_model(0.3)
    fit(resumed, ranks, settings=drawing, checkpoints=folder / "state")
    stops = ranks.gather(stopped)
    if ranks.leads:
        torch.save({"whole": whole.state_dict(), "resumed": resumed.state_dict(), "stops": stops},
                   folder / "resumed.pt")  # fmt: skip
    ranks.close()
    return 0


if __name__ == "__main__":
    distributed.run_and_exit(main)
