"""The training loop: data resident on the device, no host synchronisation inside an epoch, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training import checkpoint
from training.data import Dataset, Examples
from training.recipe import Hyperparameters

WARM_UP = 0.1  # share of all steps
SAVE_EVERY_S = 60.0  # within an epoch; at its end the state is saved anyway
SAY_EVERY_S = 5.0  # within an epoch


@dataclass
class Run:
    """Where a run is. A checkpoint holds all of it, the random generators included."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]  # what a checkpoint must agree with
    folder: Path | None  # of the checkpoint
    loss: Tensor  # summed over the examples of this epoch, on the device
    epoch: int = 0  # completed
    step: int = 0  # completed in this epoch
    history: list[dict[str, float]] = field(default_factory=list)
    generators: dict[str, Any] | None = None  # to be restored when an epoch is entered in its middle

    def save(self) -> None:
        if self.folder is None:
            return
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint.save(
            self.folder,
            {
                "run": self.identity,
                "epoch": self.epoch,
                "step": self.step,
                "history": self.history,
                "loss": self.loss.cpu(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generators": {"cpu": torch.get_rng_state(), "cuda": cuda},
            },
        )

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one."""
        saved = checkpoint.restore(self.folder, self.identity) if self.folder else None
        if saved is None:
            return
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loss = saved["loss"].to(self.loss.device)
        self.epoch, self.step, self.history = saved["epoch"], saved["step"], saved["history"]
        if self.step:
            self.generators = saved["generators"]
        print(f"resumed after {self.epoch} epochs and {self.step} steps", flush=True)

    def enter_epoch(self, seed: int) -> None:
        """Every random draw of an epoch follows from (seed, epoch), wherever in it this run begins."""
        torch.manual_seed((seed * 1_000_003 + self.epoch) % 2**63)

    def restore_generators(self) -> None:
        if self.generators is None:
            return
        torch.set_rng_state(self.generators["cpu"])
        if self.generators["cuda"] and torch.cuda.device_count() == len(self.generators["cuda"]):
            torch.cuda.set_rng_state_all(self.generators["cuda"])
        self.generators = None


class Progress:
    """Lines that say how far a run is; the log's readers (metric definitions in job.py) know their words."""

    def __init__(self, done: int, total: int) -> None:
        self._first, self._total = done, total
        self._started = self._said = time.monotonic()

    def left_s(self, done: int) -> float:
        spent = time.monotonic() - self._started
        return spent / max(done - self._first, 1) * (self._total - done)

    def step(self, run: Run, done: int) -> None:
        """At most one line in SAY_EVERY_S, for epochs that take longer."""
        if time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            print(f"epoch {run.epoch + 1}  step {run.step}  left={self.left_s(done):.0f}s", flush=True)

    def epoch(self, row: dict[str, float], epochs: int, done: int) -> None:
        self._said = time.monotonic()
        print(
            f"epoch {row['epoch']}/{epochs}  loss={row['loss']:.4f}  "
            f"validation_accuracy={row['validation_accuracy']:.4f}  rate={row['examples_per_s']:.0f}/s  "
            f"left={self.left_s(done):.0f}s",
            flush=True,
        )


def fit(
    model: nn.Module,
    data: Dataset,
    settings: Hyperparameters,
    *,
    device: torch.device,
    augment: Callable[[Tensor], Tensor] | None = None,
    checkpoints: Path | None = None,
    identity: dict[str, Any] | None = None,
    stop: checkpoint.Stop | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and return one row an epoch: epoch, loss, validation_accuracy, examples_per_s.

    On a CPU, a run that was interrupted and goes on from its checkpoint ends with the weights of one that never was,
    bit for bit. `identity` and the settings say whose checkpoint it is.

    Raises:
        Interrupted: `stop` was requested; the checkpoint holds the state.
        InvalidCheckpoint: the checkpoint in `checkpoints` cannot be used for this run.
    """
    stop = stop or checkpoint.Stop()
    model.to(device)
    (images,) = data.train.inputs.values()
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(data.train.target).to(device)
    steps = math.ceil(len(x) / settings.batch_size)
    total = steps * settings.epochs
    run = Run(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay),
        identity={"settings": asdict(settings)} | (identity or {}),
        folder=checkpoints,
        loss=torch.zeros((), device=device),
    )
    run.restore()
    progress = Progress(run.epoch * steps + run.step, total)
    saved_at = time.monotonic()

    while run.epoch < settings.epochs:
        run.enter_epoch(settings.seed)
        order = torch.randperm(len(x)).to(device)
        run.restore_generators()
        model.train()
        entered_at, entered_step = time.monotonic(), run.step
        while run.step < steps:
            done = run.epoch * steps + run.step
            rows = order[run.step * settings.batch_size : (run.step + 1) * settings.batch_size]
            batch = x[rows] if augment is None else augment(x[rows])
            run.loss += _learn(model, run.optimizer, batch, y[rows], settings.lr * schedule(done, total)) * len(rows)
            run.step += 1
            if run.step == steps:
                break  # the end of the epoch saves and stops
            stopping = stop.requested  # read once: SIGTERM may come between two looks, and then nothing were saved
            if stopping or time.monotonic() - saved_at > SAVE_EVERY_S:
                run.save()
                saved_at = time.monotonic()
            if stopping:
                raise checkpoint.Interrupted(f"stopped in epoch {run.epoch + 1} after step {run.step} of {steps}")
            progress.step(run, done + 1)

        mean_loss = run.loss.item() / len(x)  # waits for the device
        seen = len(x) - entered_step * settings.batch_size
        correct = float(np.mean(predict(model, data.validation, device) == data.validation.target))
        run.epoch, run.step, run.loss = run.epoch + 1, 0, torch.zeros((), device=device)
        run.history.append(
            {
                "epoch": run.epoch,
                "loss": mean_loss,
                "validation_accuracy": correct,
                "examples_per_s": seen / max(time.monotonic() - entered_at, 1e-9),
            }
        )
        stopping = stop.requested
        run.save()
        saved_at = time.monotonic()
        progress.epoch(run.history[-1], settings.epochs, run.epoch * steps)
        if stopping:
            raise checkpoint.Interrupted(f"stopped after epoch {run.epoch} of {settings.epochs}")
    return run.history


def _learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """One step; the mean loss of its batch, left on the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        loss = functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def schedule(step: int, total: int) -> float:
    """Learning rate at `step` as a share of its highest: a straight warm-up, then half a cosine down to zero."""
    warm_up = max(1, round(total * WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


@torch.no_grad()
def predict(model: nn.Module, examples: Examples, device: torch.device, batch_size: int = 1024) -> NDArray[np.int64]:
    """The most likely class number of each example, (n,)."""
    model.eval()
    (x,) = examples.inputs.values()
    batches = [
        model(torch.from_numpy(x[start : start + batch_size]).to(device)).argmax(dim=1).cpu()
        for start in range(0, len(examples), batch_size)
    ]
    return torch.cat(batches).numpy().astype(np.int64)
