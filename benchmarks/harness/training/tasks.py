"""Networks, data and targets of the training benchmark.

They have full size for a GPU, and are reduced for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from training import data, networks
from training.data import Dataset, Examples, texts
from training.fitting import augment, losses
from training.fitting.losses import Loss
from training.hyperparameters import NetworkHyperparameters

IMAGES = 60_000
CPU_IMAGES = {"mlp": 2000, "cnn": 1000}
CPU_WINDOWS = 400
HELD_OUT_WINDOWS = 128
ENLARGED_AT_ONCE = 5000  # images per batch of random transformations


@dataclass(frozen=True)
class Task:
    """Benchmark task: network, data, loss, settings and target metric.

    Both training loops get the same task. `target` is an accuracy to reach or, for the GPT, an
    upper limit of bits per byte.
    """

    name: str
    data: Dataset
    model: Callable[[], nn.Module]
    loss: Loss
    settings: NetworkHyperparameters
    target: float

    @property
    def is_gpt(self) -> bool:
        return self.name == "gpt"

    def reached(self, metric: float) -> bool:
        """Return True if the metric of an epoch meets the target."""
        return metric <= self.target if self.is_gpt else metric >= self.target


def tasks(names: Sequence[str], on_gpu: bool) -> list[Task]:
    """Return the named benchmark tasks, in full size on a GPU."""
    return [TASKS[name](on_gpu) for name in names]


def mlp(on_gpu: bool) -> Task:
    """Return the benchmark task of a perceptron, 784-128-10."""
    settings = NetworkHyperparameters(
        epochs=10 if on_gpu else 3, lr=3e-3, batch_size=480 if on_gpu else 64
    )
    return Task(
        name="mlp",
        data=enlarged(IMAGES if on_gpu else CPU_IMAGES["mlp"]),
        model=lambda: networks.mlp(784, (128,), 10),
        loss=losses.cross_entropy,
        settings=settings,
        target=0.97 if on_gpu else 0.8,
    )


def cnn(on_gpu: bool) -> Task:
    """Return the benchmark task of the digits recipe's convolutional network."""
    settings = NetworkHyperparameters(
        epochs=10 if on_gpu else 2,
        lr=4e-3,
        batch_size=1200 if on_gpu else 64,
        engine="compile" if on_gpu else "auto",
    )
    return Task(
        name="cnn",
        data=enlarged(IMAGES if on_gpu else CPU_IMAGES["cnn"]),
        model=_channels_last_cnn,
        loss=losses.cross_entropy,
        settings=settings,
        target=0.99 if on_gpu else 0.8,
    )


def _channels_last_cnn() -> nn.Module:
    network = networks.cnn(10)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def gpt(on_gpu: bool) -> Task:
    """Return the benchmark task of a GPT that predicts bytes.

    It has 113 million parameters on a GPU.
    """
    size = {"width": 64, "heads": 4, "layers": 2}
    if on_gpu:
        size = {"width": 1024, "heads": 8, "layers": 9}
    settings = NetworkHyperparameters(
        epochs=4 if on_gpu else 2,
        lr=6e-4 if on_gpu else 1e-2,
        batch_size=16 if on_gpu else 8,
        clip=1.0,
        engine="compile" if on_gpu else "auto",
    )
    windows = texts.language(1024 if on_gpu else 64, with_docstrings=on_gpu)
    rows = len(windows.train) if on_gpu else CPU_WINDOWS
    rows -= rows % settings.batch_size  # a CUDA graph has one batch size; no smaller last batch
    return Task(
        name="gpt",
        data=replace(
            windows,
            train=windows.train.take(slice(0, rows)),
            validation=windows.validation.take(slice(0, HELD_OUT_WINDOWS)),
        ),
        model=lambda: networks.GPT(**size),
        loss=losses.next_token,
        settings=settings,
        target=2.5 if on_gpu else 4.5,
    )


TASKS: dict[str, Callable[[bool], Task]] = {"mlp": mlp, "cnn": cnn, "gpt": gpt}


def enlarged(rows: int) -> Dataset:
    """Return scikit-learn's digits with the training part enlarged to `rows` images.

    The test part is held out as validation.

    Training images are copies of the training part, turned, scaled and shifted at random.
    """
    digits = data.digits()
    name, images = next(iter(digits.train.inputs.items()))
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    chosen = torch.randint(len(images), (rows,)).numpy()
    parts = [
        augment.affine(torch.from_numpy(images[part]), turn=0.2, zoom=0.1, shift=0.15)
        for part in np.array_split(chosen, max(1, rows // ENLARGED_AT_ONCE))
    ]
    torch.random.set_rng_state(generator)
    train = Examples({name: torch.cat(parts).numpy()}, digits.train.target[chosen])
    held_out = Examples(digits.test.inputs, digits.test.target)
    source = f"{digits.source}?enlarged={rows}"
    return replace(digits, train=train, validation=held_out, test=held_out, source=source)
