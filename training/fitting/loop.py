"""Training loop with validation, checkpoints, early stopping, and resuming at any step.

    history = fit(
        model, data, NetworkHyperparameters(epochs=3),
        device=torch.device("cpu"), loss=losses.cross_entropy,
    )

Data that fit into memory are on the device; larger ones are read batch by batch (steps/feed.py).
The host does not wait for the device within an epoch. The loop is the same on a CPU, on a GPU, and
in the processes that torchrun starts. The optimizer step is in steps/engines.py, the learning rate
in steps/schedule.py.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import Dataset, Examples, lazy
from training.data.spill import Collected
from training.errors import Diverged, InvalidRecipe
from training.fitting import checkpoint, throughput
from training.fitting.checkpoint import Row, RunState
from training.fitting.distributed import Ranks
from training.fitting.losses import Loss
from training.fitting.progress import Progress
from training.fitting.steps import engines, feed
from training.fitting.steps.schedule import rows_per_epoch
from training.hyperparameters import NetworkHyperparameters

SAVE_EVERY_S = 60.0  # most training time lost when a machine dies without SIGTERM
VOTE_EVERY = 20  # steps between two votes of several processes on saving and stopping
CHUNK = 1024  # examples at a time in validation and prediction

Score = Callable[[nn.Module], Row]  # metrics on the validation part; leaves the model unchanged


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
    """Train a network in place and return the metrics of each epoch.

    A row has epoch, loss, validation_loss, the metrics of `score`, and examples_per_s. `watch` gets
    each row and may raise to end the run. `identity`, the settings and the number of processes
    identify a checkpoint. On a CPU, an interrupted and resumed run ends with the same weights as
    one that was never interrupted, bit for bit.

    Raises:
        InvalidRecipe: the data do not fit the model.
        Diverged: the loss is NaN or infinite.
        Interrupted: `stop` was requested; the checkpoint holds the state.
        InvalidCheckpoint: the checkpoint in `checkpoints` cannot be used for this run.
    """
    stop, ranks = stop or checkpoint.Stop(), ranks or Ranks()
    try_out(model, data.train, loss)
    rows = len(data.train)
    if _normalizes_batches(model, data.train, loss):
        rows = rows_per_epoch(rows, settings.batch_size, ranks.count, settings.accumulate)
    model.to(device)
    if device.type == "cuda":  # the memory format that tensor cores convolve fastest
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, target = feed.rows(data.train, device)
    held_out = feed.rows(data.validation, device)
    optimizer = engines.optimizer(model, settings, device)
    state = RunState(
        model=model,
        optimizer=optimizer,
        identity={"settings": asdict(settings), "processes": ranks.count} | (identity or {}),
        folder=checkpoints,
        ranks=ranks,
        loss_sum=torch.zeros((), device=device),
    )
    state.restore()
    objective = engines.objective(model, loss, settings, device, ranks)
    update = engines.Update(
        objective, optimizer, inputs, target, settings, augment, ranks, state.loss_sum
    )
    steps_per_epoch = math.ceil(rows / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    loop = _Loop(
        state=state,
        engine=engines.engine(update, total),
        settings=settings,
        examples=len(target),
        rows=rows,
        steps_per_epoch=steps_per_epoch,
        order_device=torch.device("cpu") if feed.stays_on_host(data.train) else device,
        ranks=ranks,
        stop=stop,
        validate=functools.partial(_validate, model, *held_out, loss, score),
        roof=throughput.roof(model, loss, inputs, target, settings, device, ranks.count),
        progress=Progress(state.epoch * steps_per_epoch + state.step, total, ranks),
    )
    if loop.is_complete and ranks.leads:
        print(
            f"warning: {checkpoint.FILE} holds this run after its end, at epoch {state.epoch}: "
            "nothing is trained; remove it to train anew",
            flush=True,
        )
    while not loop.is_over:
        loop.run_epoch(watch)
    loop.load_best()
    return state.history


@dataclass
class _Loop:
    """Loop over training epochs: steps, validation, checkpoints, early stopping."""

    state: RunState
    engine: engines.Engine
    settings: NetworkHyperparameters
    examples: int  # for training
    rows: int  # examples that an epoch trains
    steps_per_epoch: int
    order_device: torch.device  # place of an epoch's row numbers: beside the rows
    ranks: Ranks
    stop: checkpoint.Stop
    validate: Callable[[], Row]
    roof: throughput.Roof | None
    progress: Progress
    saved_at: float = field(default_factory=time.monotonic)
    is_late: bool = False  # the time limit has ended training

    @property
    def done(self) -> int:
        """Return the number of optimizer steps since the start of training."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    @property
    def is_over(self) -> bool:
        """Return whether training is over: complete, or out of time."""
        return self.is_complete or self.is_late

    @property
    def is_complete(self) -> bool:
        """Return whether all epochs are done, or early stopping has ended training."""
        return self.state.epoch >= self.settings.epochs or self._is_stale

    @property
    def _is_stale(self) -> bool:
        return 0 < self.settings.patience <= self.state.stale

    @property
    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved_at > SAVE_EVERY_S

    def run_epoch(self, watch: Callable[[Row], None] | None) -> None:
        """Train and validate for one epoch, or finish a resumed epoch."""
        state = self.state
        self._start_epoch()
        started, first_row = time.monotonic(), state.step * self.settings.batch_size
        self._run_steps()
        if self.is_late:
            return
        mean_loss = self.ranks.sum(state.loss_sum).item() / self.rows  # waits for the device
        rate = (self.rows - first_row) / max(time.monotonic() - started, 1e-9)
        _check_finite("loss", mean_loss, state.epoch + 1)
        validation = self.ranks.broadcast(self._validate() if self.ranks.leads else None)
        if isinstance(validation, Diverged):
            raise validation
        state.epoch, state.step = state.epoch + 1, 0
        state.loss_sum.zero_()
        row = {"epoch": state.epoch, "loss": mean_loss, **validation, "examples_per_s": rate}
        if self.roof is not None:
            row["roof"] = self.roof.share(rate)
        self._end_epoch(row, watch)

    def _validate(self) -> Row | Diverged:
        """Validate the model, or return the error for all processes."""
        try:
            return self.validate()
        except Diverged as error:
            return error

    def _start_epoch(self) -> None:
        state, seed = self.state, self.settings.seed
        state.seed_epoch(seed)
        order = torch.randperm(self.examples).to(self.order_device)
        state.seed_rank(seed)
        state.restore_generators()
        state.model.train()
        self.engine.start_epoch(order, state.step, self.done)

    def _run_steps(self) -> None:
        while self.state.step < self.steps_per_epoch and not self.is_late:
            self.engine.step()
            self.state.step += 1
            if self.state.step < self.steps_per_epoch:  # after the last step, _end_epoch saves
                self._save_or_stop()
                self.progress.step(self.state, self.done)

    def _save_or_stop(self) -> None:
        """Save a checkpoint when due; stop after SIGTERM or at the limit.

        Processes vote at the same steps: one that stopped alone would leave the others waiting.
        """
        due = self._save_is_due
        stopping = self.stop.requested  # read once: SIGTERM may come between two reads
        late = self.stop.is_late
        if self.ranks.count > 1:
            at_vote = self.state.step % VOTE_EVERY == 0
            due = at_vote and self.ranks.any(due)
            stopping = at_vote and self.ranks.any(stopping)
            late = at_vote and self.ranks.any(late)
        if stopping or late or due:
            self._save()
        if stopping:
            raise self._interrupted(
                f"in epoch {self.state.epoch + 1} after step {self.state.step} "
                f"of {self.steps_per_epoch}"
            )
        self.is_late = late

    def _interrupted(self, place: str) -> checkpoint.Interrupted:
        saved = self.state.folder is not None
        fate = "" if saved else "; all of it is lost: --checkpoint-dir DIR would have saved it"
        return checkpoint.Interrupted(f"stopped {place}{fate}")

    def _end_epoch(self, row: Row, watch: Callable[[Row], None] | None) -> None:
        state, epochs = self.state, self.settings.epochs
        state.history.append(row)
        if self.settings.patience or self.stop.deadline < math.inf:
            state.keep_best(row["validation_loss"])
        stopping = self.ranks.any(self.stop.requested)
        self.is_late = self.ranks.any(self.stop.is_late) and not self.is_complete
        if self.ranks.any(stopping or self.is_over or self._save_is_due):
            self._save()
        self.progress.epoch(row, epochs, self.done)
        if watch is not None:
            watch(row)
        if stopping:
            raise self._interrupted(f"after epoch {state.epoch} of {epochs}")

    def _save(self) -> None:
        self.state.save()
        self.saved_at = time.monotonic()

    def load_best(self) -> None:
        """Load the weights of lowest validation loss after an early end."""
        state = self.state
        if self.is_late and self.ranks.leads:
            print(
                f"time limit: trained for {state.epoch} epochs and {state.step} steps "
                f"of {self.settings.epochs} epochs",
                flush=True,
            )
        if state.best is None or not (self.settings.patience or self.is_late):
            return
        state.model.load_state_dict(state.best)
        if self.ranks.leads:
            print(
                f"the weights of epoch {state.epoch - state.stale} are kept: "
                f"validation_loss={state.best_loss:.4f}"
            )


@torch.no_grad()
def try_out(model: nn.Module, examples: Examples, loss: Loss) -> None:
    """Check on two examples that data, model and loss fit together.

    Raises:
        InvalidRecipe: they do not fit; torch's message, with the shapes of the data.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs, target = _to_device(examples.take(slice(0, 2)), device)
    training = model.training
    model.eval()
    try:
        value = loss(model, inputs, target)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = _shapes(dict(zip(examples.inputs, inputs, strict=True)), target)
        raise InvalidRecipe(
            f"the data do not go through the model ({shapes}): {error}".splitlines()[0]
        ) from error
    finally:
        model.train(training)
    if value.dim():
        raise InvalidRecipe(
            f"the loss has shape {list(value.shape)}; "
            "it has to be the mean of the batch, one number"
        )


@torch.no_grad()
def _normalizes_batches(model: nn.Module, examples: Examples, loss: Loss) -> bool:
    """Return whether BatchNorm keeps a network from training on one row."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return False
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs, target = _to_device(examples.take(slice(0, 1)), device)
    with torch.random.fork_rng(devices=[]):
        try:
            loss(copy.deepcopy(model).train(), inputs, target)
        except ValueError:  # two rows go through the network, as try_out has shown
            return True
    return False


def _shapes(inputs: Mapping[str, Tensor], target: Tensor) -> str:
    shapes = [f"{name} {list(values.shape)}" for name, values in inputs.items()]
    dtype = str(target.dtype).removeprefix("torch.")
    return ", ".join([*shapes, f"target {list(target.shape)} {dtype}"])


def _to_device(examples: Examples, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Copy the inputs and target of a few examples to the device."""
    feed.check_numbers(examples.inputs)
    arrays = (*examples.inputs.values(), examples.target)
    *inputs, target = (feed.to_device(values, device) for values in arrays)
    return tuple(inputs), target


@torch.no_grad()
def _validate(
    model: nn.Module,
    inputs: tuple[feed.Rows, ...],
    target: feed.Rows,
    loss: Loss,
    score: Score | None,
) -> Row:
    """Compute validation loss and metrics, each name prefixed by `validation_`."""
    model.eval()
    loss_sum = torch.zeros((), device=target.device)
    for part in lazy.chunks(*inputs, target, most=CHUNK):
        rows = target[part]
        loss_sum += loss(model, tuple(values[part] for values in inputs), rows).float() * len(rows)
    mean_loss = loss_sum.item() / len(target)
    _check_finite("validation loss", mean_loss)
    metrics = {"loss": mean_loss} | (score(model) if score is not None else {})
    return {f"validation_{name}": value for name, value in metrics.items()}


def _check_finite(name: str, value: float, epoch: int | None = None) -> None:
    if not math.isfinite(value):
        place = f" in epoch {epoch}" if epoch else ""
        raise Diverged(f"diverged: the {name} is {value}{place}: lower lr, or set clip=1")


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Mapping[str, NDArray[Any]], device: torch.device
) -> tuple[NDArray[Any], ...]:
    """Return a network's outputs (n, ...) as arrays for inputs (n, ...).

    It computes CHUNK rows at a time, fewer of large ones.
    """
    model.eval()
    feed.check_numbers(inputs)
    arrays = inputs.values()
    collected = Collected(len(next(iter(arrays))))
    for part in lazy.chunks(*arrays, most=CHUNK):
        outputs = model(*(feed.to_device(values[part], device) for values in arrays))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        collected.put(part, [output.cpu().numpy() for output in outputs])
    return collected.arrays
