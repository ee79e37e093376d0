"""Training steps and optimizer parameters: eager, compiled, or as CUDA graph.

docs/decisions/0019-the-training-loop.md gives the reason and the times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from training.errors import InvalidHyperparameter
from training.fitting.distributed import Ranks
from training.fitting.losses import Loss
from training.fitting.steps.feed import HostRows, Rows
from training.fitting.steps.schedule import schedule
from training.hyperparameters import NetworkHyperparameters

WARM_STEPS = 3  # eager steps before the CUDA graph: libraries allocate memory in their first calls


def is_weight(parameter: Tensor) -> bool:
    """Return whether L1 and L2 regularization apply to a parameter.

    They shrink matrices and kernels, and leave biases and norms alone.
    """
    return parameter.dim() > 1


def optimizer(
    model: nn.Module, settings: NetworkHyperparameters, device: torch.device
) -> torch.optim.Optimizer:
    """Create the settings' optimizer, with weight decay on matrices and kernels only.

    On a GPU, AdamW is fused into one kernel.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if is_weight(parameter)]
    rest = [parameter for parameter in parameters if not is_weight(parameter)]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, settings.lr, momentum=momentum, nesterov=momentum > 0)
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, settings.lr, momentum=settings.momentum)
    if settings.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, settings.lr)
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(groups, settings.lr, fused=on_gpu, capturable=on_gpu)


def _scale(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """Return the denominator by which an optimizer divides a steady gradient."""
    steady = 1 - group.get("momentum", 0.0)  # sums of momentum grow to 1 / steady times it
    if "exp_avg_sq" in state:  # AdamW
        mean_square = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
    elif "square_avg" in state:  # RMSprop
        mean_square = state["square_avg"]
    elif "sum" in state:  # Adagrad
        mean_square = state["sum"]
    else:
        return steady
    scale: Tensor = mean_square.sqrt() + group["eps"]
    return scale * steady


class Objective(nn.Module):
    """Module of model and loss, which DistributedDataParallel and compile can wrap.

    A model may have `penalties`, a method whose result is added to the loss in training.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        loss = self._loss(self.model, inputs, target)
        penalties = getattr(self.model, "penalties", None)
        return loss + penalties() if penalties else loss


def objective(
    model: nn.Module,
    loss: Loss,
    settings: NetworkHyperparameters,
    device: torch.device,
    ranks: Ranks,
) -> nn.Module:
    """Combine model and loss into one module, distributed and compiled as configured."""
    module: nn.Module = Objective(model, loss)
    if ranks.count > 1:
        devices = [device] if device.type == "cuda" else None
        module = DistributedDataParallel(module, device_ids=devices)
    if settings.engine == "compile":
        module.compile(dynamic=False)
    return module


@dataclass(frozen=True, eq=False)
class Update:
    """Optimizer step on one batch of training rows, without device synchronization."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: tuple[Rows, ...]  # all training rows, on the device or read when indexed
    target: Rows
    settings: NetworkHyperparameters
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None
    ranks: Ranks
    loss_sum: Tensor  # over this process's rows of the epoch, on the device

    @cached_property
    def _parameters(self) -> list[Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    @cached_property
    def _autocast(self) -> torch.autocast:
        device, precision = self.target.device.type, self.settings.precision
        bf16 = precision == "bf16" or (precision == "auto" and device == "cuda")
        return torch.autocast(device, torch.bfloat16, enabled=bf16)

    def __call__(self, batch: Tensor, rate: float | Tensor) -> None:
        """Run one optimizer step on the training rows numbered in `batch`.

        `rate` is the learning rate. The loss of these rows is added to `loss_sum`.
        """
        mine = batch[self.ranks.rank :: self.ranks.count]
        has_rows = len(mine) > 0
        if not has_rows:  # fewer rows than processes: exchange gradients of weight 0
            mine = batch[:1]
        self.optimizer.zero_grad()
        parts = mine.chunk(self.settings.accumulate)
        for number, rows in enumerate(parts, 1):
            with self._sync(is_last=number == len(parts)):
                self._backward(rows, len(rows) * has_rows * self.ranks.count / len(batch))
        if self.settings.clip:
            clip_grad_norm_(self._parameters, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.settings.l1:
            self._shrink(rate * self.settings.l1)

    def _sync(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context that exchanges gradients only after a batch's last part."""
        if not is_last and isinstance(self.objective, DistributedDataParallel):
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def _backward(self, rows: Tensor, share: float) -> None:
        """Backpropagate the loss of training rows, weighted by their batch share."""
        inputs = tuple(values[rows] for values in self.inputs)
        if self.augment is not None:
            augmented = self.augment(*inputs)
            inputs = augmented if isinstance(augmented, tuple) else (augmented,)
        with self._autocast:
            loss = self.objective(inputs, self.target[rows])
        (loss if share == 1 else loss * share).backward()
        if share:
            self.loss_sum.add_(loss.detach() * len(rows))

    @torch.no_grad()
    def _shrink(self, step: float | Tensor) -> None:
        """Apply L1 regularization as a proximal step: soft-threshold the weights.

        Weights reach zero and stay there, while a subgradient would jump around zero. The threshold
        `step` is divided by the optimizer's denominator, like the gradient, so that the minimum is
        that of loss + l1 * sum(|weights|).
        """
        for group in self.optimizer.param_groups:
            for weight in filter(is_weight, group["params"]):
                threshold = step / _scale(self.optimizer.state[weight], group)
                weight.copy_(weight.sign() * (weight.abs() - threshold).clamp_min(0))


class Engine(Protocol):
    """Interface of engines that run an epoch's optimizer steps one by one."""

    def start_epoch(self, order: Tensor, step: int, done: int) -> None:
        """Start an epoch of optimizer steps, or resume it at `step`.

        `order` holds the row numbers of the whole epoch; `done` counts the steps of the run so far.
        """

    def step(self) -> None:
        """Run the epoch's next optimizer step."""


class Eager:
    """Training engine that runs each optimizer step as ordinary torch calls."""

    def __init__(self, update: Update, rates: list[float], batch_size: int) -> None:
        self._update, self._rates, self._batch_size = update, rates, batch_size

    def start_epoch(self, order: Tensor, step: int, done: int) -> None:
        self._order, self._step, self._done = order, step, done

    def step(self) -> None:
        start = self._step * self._batch_size
        self._update(self._order[start : start + self._batch_size], self._rates[self._done])
        self._step += 1
        self._done += 1


class Graphed:
    """Training engine that replays each optimizer step as one CUDA graph.

    Row numbers and learning rate differ between steps: the graph reads them from device memory and
    advances its own counters. The first WARM_STEPS steps run eagerly, and so does the last batch of
    an epoch where it is smaller than the others.
    """

    def __init__(
        self, update: Update, rates: list[float], batch_size: int, rows: int, device: torch.device
    ) -> None:
        self._update, self._batch_size, self._full_batches = update, batch_size, rows // batch_size
        self._order = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rates = torch.tensor(rates, device=device)
        self._offsets = torch.arange(batch_size, device=device)
        # First row of the next batch.
        self._start = torch.zeros((), dtype=torch.int64, device=device)
        self._done = torch.zeros((), dtype=torch.int64, device=device)
        self._step = self._warm_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def start_epoch(self, order: Tensor, step: int, done: int) -> None:
        self._order.copy_(order)
        self._start.fill_(step * self._batch_size)
        self._done.fill_(done)
        self._step = step

    def step(self) -> None:
        if self._step >= self._full_batches:
            self._update(self._order[self._step * self._batch_size :], self._rate())
            self._done += 1
        elif self._graph is not None:
            self._graph.replay()
        elif self._warm_steps < WARM_STEPS:
            self._warm_steps += 1
            self._warm_up()
        else:
            self._graph = self._record()
            self._graph.replay()
        self._step += 1

    def _warm_up(self) -> None:
        """Run an optimizer step on a side stream, before CUDA-graph recording."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step_on_device()
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step_on_device()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InvalidHyperparameter(
                f"engine: the step cannot be recorded as a CUDA graph ({reason}); something in the "
                "model, the loss or the augmentation waits for the device, e.g. .item(): take it "
                "out, or set engine=eager"
            ) from error
        return graph

    def step_on_device(self) -> None:
        """Run an optimizer step that a CUDA graph can record.

        The step reads a full batch from fixed addresses on the device.
        """
        self._update(self._order.index_select(0, self._offsets + self._start), self._rate())
        self._start += self._batch_size
        self._done += 1

    def _rate(self) -> Tensor:
        # self._rates[self._done] would copy the index to the host and wait for the device.
        return self._rates.index_select(0, self._done)[0]


def engine(update: Update, total: int) -> Engine:
    """Create the eager or CUDA-graph training engine that the settings choose.

    `total` is the number of steps of the run, over which the learning rate is scheduled.

    Raises:
        InvalidHyperparameter: a CUDA graph without a GPU, with several processes, or with rows that
            are read batch by batch.
    """
    settings, device, rows = update.settings, update.target.device, len(update.target)
    one_gpu = device.type == "cuda" and update.ranks.count == 1
    on_device = not isinstance(update.target, HostRows)
    can_record = one_gpu and on_device and settings.optimizer == "adamw"
    if settings.engine == "graph" and not can_record:
        raise InvalidHyperparameter(
            "engine: 'graph' needs one GPU, one process, optimizer=adamw and data in memory "
            "(in_memory_mb); use eager or compile"
        )
    shares = (schedule(step, total, settings.schedule, settings.warm_up) for step in range(total))
    rates = [settings.lr * share for share in shares]
    if can_record and settings.engine != "eager":
        return Graphed(update, rates, settings.batch_size, rows, device)
    return Eager(update, rates, settings.batch_size)
