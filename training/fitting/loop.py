"""The training loop: data resident on the device, no host synchronisation inside an epoch, resumable at any step.

    history = fit(model, data, NetworkHyperparameters(epochs=3), device=torch.device("cpu"), loss=losses.cross_entropy)

The same on one CPU, on a GPU, where a step is one CUDA graph, and on the processes that torchrun starts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import Dataset, Examples
from training.errors import Diverged, InvalidCheckpoint, InvalidRecipe
from training.fitting import checkpoint, engines, throughput
from training.fitting.distributed import Ranks
from training.fitting.losses import Loss
from training.hyperparameters import NetworkHyperparameters

SAVE_EVERY_S = 60.0  # of training that a machine which is switched off may cost; SIGTERM costs none
SAY_EVERY_S = 5.0  # within an epoch
VOTE_EVERY = 20  # steps between two looks of several processes at whether one was told to stop
CHUNK = 1024  # examples at a time where no gradient is needed

Row = dict[str, float]
Score = Callable[
    [nn.Module], Row
]  # metrics of the model on the validation part, which it does not change


@dataclass
class Run:
    """Where a run is. A checkpoint holds all of it, the random generators included."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]  # what a checkpoint must agree with
    folder: Path | None  # of the checkpoint
    ranks: Ranks
    loss: Tensor  # summed over the examples of this epoch that this process saw, on the device
    epoch: int = 0  # completed
    step: int = 0  # completed in this epoch
    history: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = (
        None  # the weights of the epoch with the lowest validation loss
    )
    best_loss: float = math.inf
    stale: int = 0  # epochs since then
    generators: dict[str, Any] | None = (
        None  # to be restored when an epoch is entered in its middle
    )

    def save(self) -> None:
        if self.folder is None:
            return
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        generators = self.ranks.gathered({"cpu": torch.get_rng_state(), "cuda": cuda})
        losses = self.ranks.gathered(self.loss.cpu())
        if self.ranks.leads:
            checkpoint.save(
                self.folder,
                {
                    "run": self.identity,
                    "epoch": self.epoch,
                    "step": self.step,
                    "history": self.history,
                    "losses": losses,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "best": self.best,
                    "best_loss": self.best_loss,
                    "stale": self.stale,
                    "generators": generators,
                },
            )

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one."""
        saved = self._read() if self.folder else None
        if saved is None:
            return
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loss.copy_(saved["losses"][self.ranks.rank])
        self.epoch, self.step, self.history = saved["epoch"], saved["step"], saved["history"]
        self.best, self.best_loss, self.stale = saved["best"], saved["best_loss"], saved["stale"]
        if self.step:
            self.generators = saved["generators"][self.ranks.rank]
        if self.ranks.leads:
            print(f"resumed after {self.epoch} epochs and {self.step} steps", flush=True)

    def _read(self) -> dict[str, Any] | None:
        """Rank 0 reads for all: other hosts may have another disk, or see the file later."""
        found: dict[str, Any] | InvalidCheckpoint | None = None
        if self.ranks.leads and self.folder:
            try:
                found = checkpoint.restore(self.folder, self.identity)
            except InvalidCheckpoint as error:  # told to the others, who would wait forever
                found = error
        found = self.ranks.told(found)
        if isinstance(found, InvalidCheckpoint):
            raise found
        return found

    def enter_epoch(self, seed: int) -> None:
        """Every random draw of an epoch follows from (seed, epoch), wherever in it this run begins."""
        torch.manual_seed((seed * 1_000_003 + self.epoch) % 2**63)

    def part_ways(self, seed: int) -> None:
        """From here on each process draws its own: the order was the same for all, what is done to the rows is not."""
        if self.ranks.rank:
            torch.manual_seed(((seed * 1_000_003 + self.epoch) * 1_009 + self.ranks.rank) % 2**63)

    def restore_generators(self) -> None:
        if self.generators is None:
            return
        torch.set_rng_state(self.generators["cpu"])
        if self.generators["cuda"] and torch.cuda.device_count() == len(self.generators["cuda"]):
            torch.cuda.set_rng_state_all(self.generators["cuda"])
        self.generators = None

    def judge(self, loss: float) -> None:
        """Keep these weights if no epoch had better ones."""
        self.stale += 1
        if loss < self.best_loss:
            self.best_loss, self.stale = loss, 0
            self.best = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }


class Progress:
    """Lines that say how far a run is; the log's readers (metric definitions in job.py) know their words."""

    def __init__(self, done: int, total: int, ranks: Ranks) -> None:
        self._first, self._total, self._silent = done, total, not ranks.leads
        self._started = self._said = time.monotonic()

    def left_s(self, done: int) -> float:
        spent = time.monotonic() - self._started
        return spent / max(done - self._first, 1) * (self._total - done)

    def step(self, run: Run, done: int) -> None:
        """At most one line in SAY_EVERY_S, for epochs that take longer."""
        if not self._silent and time.monotonic() - self._said > SAY_EVERY_S:
            self._said = time.monotonic()
            print(
                f"epoch {run.epoch + 1}  step {run.step}  left={self.left_s(done):.0f}s", flush=True
            )

    def epoch(self, row: Row, epochs: int, done: int) -> None:
        if self._silent:
            return
        self._said = time.monotonic()
        validation = "".join(
            f"  {name}={value:.4f}" for name, value in row.items() if name.startswith("validation_")
        )
        share = f"  roof={row['roof']:.1%}" if "roof" in row else ""
        print(
            f"epoch {row['epoch']}/{epochs}  loss={row['loss']:.4f}{validation}  rate={row['examples_per_s']:.0f}/s"
            f"{share}  left={self.left_s(done):.0f}s",
            flush=True,
        )


def fit(
    model: nn.Module,
    data: Dataset,
    settings: NetworkHyperparameters,
    *,
    device: torch.device,
    loss: Loss,
    score: Score | None = None,
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
    checkpoints: Path | None = None,
    identity: dict[str, Any] | None = None,
    stop: checkpoint.Stop | None = None,
    ranks: Ranks | None = None,
    watch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train `model` in place and return one row an epoch: epoch, loss, validation_loss, what `score` gives, rates.

    `watch` gets each row, and may raise to end the run. On a CPU, a run that was interrupted and goes on from its
    checkpoint ends with the weights of one that never was, bit for bit. `identity` and the settings say whose
    checkpoint it is.

    Raises:
        InvalidRecipe: the data do not go through the model.
        Diverged: the loss is no number any more.
        Interrupted: `stop` was requested; the checkpoint holds the state.
        InvalidCheckpoint: the checkpoint in `checkpoints` cannot be used for this run.
    """
    stop, ranks = stop or checkpoint.Stop(), ranks or Ranks()
    try_out(model, data.train, loss)
    model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what tensor cores convolve fastest
    inputs, target = _resident(data.train, device)
    held_out = _resident(data.validation, device)
    per_epoch = math.ceil(len(target) / settings.batch_size)
    total = per_epoch * settings.epochs
    optimizer = engines.optimizer(model, settings, device)
    run = Run(
        model=model,
        optimizer=optimizer,
        identity={"settings": asdict(settings), "processes": ranks.count} | (identity or {}),
        folder=checkpoints,
        ranks=ranks,
        loss=torch.zeros((), device=device),
    )
    run.restore()
    learn = engines.engine(
        model, optimizer, loss, inputs, target, settings, augment, ranks, run.loss, total
    )
    roof = throughput.roof(model, loss, inputs, target, settings, device, ranks.count)
    progress = Progress(run.epoch * per_epoch + run.step, total, ranks)
    saved_at = time.monotonic()

    while run.epoch < settings.epochs and not _stale(run, settings):
        run.enter_epoch(settings.seed)
        order = torch.randperm(len(target)).to(device)
        run.part_ways(settings.seed)
        run.restore_generators()
        model.train()
        learn.enter(order, run.step, run.epoch * per_epoch + run.step)
        entered_at, entered_step = time.monotonic(), run.step
        while run.step < per_epoch:
            learn.step()
            run.step += 1
            if run.step == per_epoch:
                break  # the end of the epoch stops, and saves where it is time
            due = time.monotonic() - saved_at > SAVE_EVERY_S
            stopping = (
                stop.requested
            )  # read once: SIGTERM may come between two looks, and then nothing were saved
            if ranks.count > 1:  # all at the same step, or some would wait for the others forever
                at_vote = run.step % VOTE_EVERY == 0
                due, stopping = at_vote and ranks.any(due), at_vote and ranks.any(stopping)
            if stopping or due:
                run.save()
                saved_at = time.monotonic()
            if stopping:
                raise checkpoint.Interrupted(
                    f"stopped in epoch {run.epoch + 1} after step {run.step} of {per_epoch}"
                )
            progress.step(run, run.epoch * per_epoch + run.step)

        mean_loss = ranks.total(run.loss).item() / len(target)  # waits for the device
        seen = len(target) - entered_step * settings.batch_size
        rate = seen / max(time.monotonic() - entered_at, 1e-9)
        validation = ranks.told(_validate(model, *held_out, loss, score) if ranks.leads else None)
        run.epoch, run.step = run.epoch + 1, 0
        run.loss.zero_()
        row = {"epoch": run.epoch, "loss": mean_loss, **validation, "examples_per_s": rate}
        if roof is not None:
            row["roof"] = roof.share(rate)  # of the device's peak
        run.history.append(row)
        if not math.isfinite(mean_loss):
            raise Diverged(f"the loss is {mean_loss} in epoch {run.epoch}: lower lr, or set clip=1")
        if settings.patience:
            run.judge(row["validation_loss"])
        stopping = ranks.any(stop.requested)
        over = run.epoch == settings.epochs or _stale(run, settings)
        if ranks.any(
            stopping or over or time.monotonic() - saved_at > SAVE_EVERY_S
        ):  # epochs may take milliseconds
            run.save()
            saved_at = time.monotonic()
        progress.epoch(row, settings.epochs, run.epoch * per_epoch)
        if watch is not None:
            watch(row)
        if stopping:
            raise checkpoint.Interrupted(f"stopped after epoch {run.epoch} of {settings.epochs}")
    if run.best is not None:
        model.load_state_dict(run.best)
        if ranks.leads:
            print(
                f"the weights of epoch {run.epoch - run.stale} are kept: validation_loss={run.best_loss:.4f}"
            )
    return run.history


def _stale(run: Run, settings: NetworkHyperparameters) -> bool:
    return 0 < settings.patience <= run.stale


@torch.no_grad()
def try_out(model: nn.Module, examples: Examples, loss: Loss) -> None:
    """Send two examples through `model` and `loss`.

    Raises:
        InvalidRecipe: they do not fit; in torch's words, with what went in.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs, target = _resident(examples.take(slice(0, 2)), device)
    training = model.training
    model.eval()
    try:
        value = loss(model, inputs, target)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        names = [
            f"{name} {list(tensor.shape)}"
            for name, tensor in zip(examples.inputs, inputs, strict=True)
        ]
        went_in = ", ".join(
            [*names, f"target {list(target.shape)} {str(target.dtype).removeprefix('torch.')}"]
        )
        raise InvalidRecipe(
            f"the data do not go through the model ({went_in}): {error}".splitlines()[0]
        ) from error
    finally:
        model.train(training)
    if value.dim():
        raise InvalidRecipe(
            f"the loss has shape {list(value.shape)}; it has to be the mean of the batch, one number"
        )


def _resident(examples: Examples, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """All of it on the device, once."""
    return _on(device, examples.inputs), torch.from_numpy(np.ascontiguousarray(examples.target)).to(
        device
    )


def _on(device: torch.device, inputs: Mapping[str, NDArray[Any]]) -> tuple[Tensor, ...]:
    for name, values in inputs.items():
        if values.dtype.kind not in "fiub":
            raise InvalidRecipe(
                f"input {name} is text; a network needs a `front` that makes numbers of it"
            )
    return tuple(
        torch.from_numpy(np.ascontiguousarray(values)).to(device) for values in inputs.values()
    )


@torch.no_grad()
def _validate(
    model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, loss: Loss, score: Score | None
) -> Row:
    """The mean loss, and the metrics, each with `validation_` before its name."""
    model.eval()
    summed = torch.zeros((), device=target.device)
    for start in range(0, len(target), CHUNK):
        part = slice(start, start + CHUNK)
        rows = target[part]
        summed += loss(model, tuple(values[part] for values in inputs), rows).float() * len(rows)
    found = {"loss": summed.item() / len(target)} | (score(model) if score is not None else {})
    return {f"validation_{name}": value for name, value in found.items()}


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Mapping[str, NDArray[Any]], device: torch.device, chunk: int = CHUNK
) -> tuple[NDArray[Any], ...]:
    """The model's outputs for inputs (n, ...), in order, each (n, ...)."""
    model.eval()
    resident = _on(device, inputs)
    answers = []
    for start in range(0, len(resident[0]), chunk):
        answer = model(*(values[start : start + chunk] for values in resident))
        answers.append(answer if isinstance(answer, tuple) else (answer,))
    return tuple(torch.cat(parts).cpu().numpy() for parts in zip(*answers, strict=True))
