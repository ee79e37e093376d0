"""Two training loops to compare: ours and PyTorch's tutorial, timed to target."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness.training.tasks import Task
from training.data import Examples
from training.fitting import loop
from training.fitting.checkpoint import Row
from training.fitting.losses import Loss

Tensors = tuple[tuple[Tensor, ...], Tensor]  # inputs and target of examples


@dataclass(frozen=True)
class Training:
    """Duration and metric of one training run, up to the target.

    Without reaching it, up to the end.

    `once_s` is one-time work, such as recording and compiling, and no part of `seconds`. `epoch_s`
    is the median time of an epoch's steps.
    """

    seconds: float
    once_s: float
    epoch_s: float
    epochs: int  # number of epochs until the target
    metric: float
    reached: bool

    @classmethod
    def from_epochs(
        cls,
        task: Task,
        ends_s: Sequence[float],
        epochs_s: Sequence[float],
        metrics: Sequence[float],
    ) -> Training:
        """Summarize a training from end time, duration and metric per epoch."""
        good = [index for index, metric in enumerate(metrics) if task.reached(metric)]
        last = good[0] if good else len(metrics) - 1
        epoch_s = statistics.median(epochs_s[1:])
        once_s = max(0.0, epochs_s[0] - epoch_s)
        return cls(
            ends_s[last] - once_s, once_s, epoch_s, last + 1, metrics[last], reached=bool(good)
        )


def ours(task: Task, device: torch.device) -> Training:
    """Train a task with training/fitting/loop.py; return duration and metric."""
    held_out = to_tensors(task.data.validation, device)
    rows: list[Row] = []
    ends_s: list[float] = []

    def watch(row: Row) -> None:
        rows.append(row)
        ends_s.append(time.perf_counter() - started)

    def score(model: nn.Module) -> Row:
        return {} if task.is_gpt else {"accuracy": accuracy(model, held_out)}

    # Each training compiles anew. Otherwise the later ones reach torch's limit of recompilations of
    # one function (8, for shapes and networks together) and run eagerly, without an error.
    torch.compiler.reset()
    torch.manual_seed(0)
    model = task.model()
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        loop.fit(
            model, task.data, task.settings, device=device, loss=task.loss, score=score, watch=watch
        )
    epochs_s = [len(task.data.train) / row["examples_per_s"] for row in rows]
    metrics = [
        row["validation_loss"] / math.log(2) if task.is_gpt else row["validation_accuracy"]
        for row in rows
    ]
    return Training.from_epochs(task, ends_s, epochs_s, metrics)


def tutorial(task: Task, device: torch.device) -> Training:
    """Train a task with PyTorch's quick-start loop; return duration and metric."""
    held_out = to_tensors(task.data.validation, device)
    inputs, targets = to_tensors(task.data.train, torch.device("cpu"))
    torch.manual_seed(0)
    model = task.model()
    started = time.perf_counter()
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.settings.lr)
    loader = DataLoader(
        TensorDataset(*inputs, targets), batch_size=task.settings.batch_size, shuffle=True
    )
    epochs_s, ends_s, metrics = [], [], []
    for _ in range(task.settings.epochs):
        model.train()
        epoch_started = time.perf_counter()
        running = 0.0
        for *batch, target in loader:
            loss = task.loss(model, tuple(values.to(device) for values in batch), target.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if task.settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), task.settings.clip)
            optimizer.step()
            running += loss.item()
        epochs_s.append(time.perf_counter() - epoch_started)
        metrics.append(evaluate(task, model, held_out))
        ends_s.append(time.perf_counter() - started)
    return Training.from_epochs(task, ends_s, epochs_s, metrics)


def evaluate(task: Task, model: nn.Module, held_out: Tensors) -> float:
    """Return a network's accuracy or, for the GPT, bits per byte."""
    return bits(model, held_out, task.loss) if task.is_gpt else accuracy(model, held_out)


def to_tensors(examples: Examples, device: torch.device) -> Tensors:
    """Copy examples to a device as tensors of inputs and target."""
    inputs = tuple(
        torch.from_numpy(np.ascontiguousarray(values)).to(device)
        for values in examples.inputs.values()
    )
    return inputs, torch.from_numpy(np.ascontiguousarray(examples.target)).to(device)


@torch.no_grad()
def accuracy(model: nn.Module, held_out: Tensors) -> float:
    """Return a classifier's share of correctly classified examples."""
    model.eval()
    inputs, target = held_out
    return float((model(*inputs).argmax(1) == target).float().mean().item())


@torch.no_grad()
def bits(model: nn.Module, held_out: Tensors, loss: Loss, batch_size: int = 64) -> float:
    """Return a language model's mean loss in bits per byte."""
    model.eval()
    (tokens,), target = held_out
    losses = []
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)
        losses.append(loss(model, (tokens[part],), target[part]) * len(tokens[part]))
    return float(torch.stack(losses).sum().item()) / len(tokens) / math.log(2)
