"""One update of the weights, and what runs it: plain calls, or on a GPU one CUDA graph, launched again and again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from training.errors import InvalidHyperparameter
from training.fitting.distributed import Ranks
from training.fitting.losses import Loss
from training.hyperparameters import NetworkHyperparameters

WARM_STEPS = 3  # before a graph is recorded: libraries allocate what they need in their first calls


def schedule(step: int, total: int, kind: str = "cosine", warm_up: float = 0.1) -> float:
    """Learning rate at `step` as a share of its highest: a straight warm-up, then down to zero, or constant."""
    rising = max(1, round(total * warm_up)) if warm_up else 0
    if step < rising:
        return (step + 1) / rising
    spent = (step - rising) / max(1, total - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * spent)), "linear": 1 - spent, "constant": 1.0}[
        kind
    ]


def is_weight(parameter: Tensor) -> bool:
    """Whether L1 and L2 shrink it: matrices and kernels; no biases, no scales of norms."""
    return parameter.dim() > 1


def optimizer(
    model: nn.Module, settings: NetworkHyperparameters, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel on a GPU."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [one for one in parameters if is_weight(one)],
            "weight_decay": settings.weight_decay,
        },
        {"params": [one for one in parameters if not is_weight(one)], "weight_decay": 0.0},
    ]
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], settings.lr, fused=on_gpu, capturable=on_gpu
    )


class Objective(nn.Module):
    """The loss as a module, so that what wraps a module (compiling, several processes) wraps any recipe's loss."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self._loss(self.model, inputs, target)


class Update:
    """New weights from the rows of one batch. Nothing in it waits for the device."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        settings: NetworkHyperparameters,
        augment: Callable[..., Tensor | tuple[Tensor, ...]] | None,
        ranks: Ranks,
        summed: Tensor,
    ) -> None:
        self._objective, self._optimizer, self._augment, self._ranks = (
            objective,
            optimizer,
            augment,
            ranks,
        )
        self._inputs, self._target, self._settings, self._summed = inputs, target, settings, summed
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        kind = target.device.type
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and kind == "cuda")
        self._autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16)

    def __call__(self, batch: Tensor, rate: float | Tensor) -> None:
        """One step with the rows numbered in `batch`, at this learning rate; the loss is added to the sum."""
        mine = batch[self._ranks.rank :: self._ranks.count]
        counted = len(mine) > 0
        if not counted:  # fewer rows than processes: the gradients are exchanged all the same
            mine = batch[:1]
        self._optimizer.zero_grad()
        parts = mine.chunk(self._settings.accumulate)
        for number, rows in enumerate(parts, 1):
            with self._local(number < len(parts)):
                self._backward(rows, len(rows) * counted * self._ranks.count / len(batch))
        if self._settings.clip:
            clip_grad_norm_(self._parameters, self._settings.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self._settings.l1:
            self._shrink(rate * self._settings.l1)

    def _local(self, more: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged once a batch, with its last part."""
        if more and isinstance(self._objective, DistributedDataParallel):
            return self._objective.no_sync()
        return contextlib.nullcontext()

    def _backward(self, rows: Tensor, share: float) -> None:
        inputs = tuple(values[rows] for values in self._inputs)
        if self._augment is not None:
            changed = self._augment(*inputs)
            inputs = changed if isinstance(changed, tuple) else (changed,)
        with self._autocast:
            loss = self._objective(inputs, self._target[rows])
        (loss if share == 1 else loss * share).backward()
        if share:
            self._summed += loss.detach() * len(rows)

    @torch.no_grad()
    def _shrink(self, by: float | Tensor) -> None:
        """L1 as a proximal step, which reaches zero and stays there, where its gradient would jump around it.

        `by` is divided by what AdamW divided the gradient by: the minimum is that of loss + l1 * sum(|weights|).
        """
        for group in self._optimizer.param_groups:
            for weight in filter(is_weight, group["params"]):
                state = self._optimizer.state[weight]
                mean_square = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
                limit = by / (mean_square.sqrt() + group["eps"])
                weight.copy_(weight.sign() * (weight.abs() - limit).clamp_min(0))


class Engine(Protocol):
    """Runs the steps of an epoch, one call each."""

    def enter(self, order: Tensor, step: int, done: int) -> None:
        """Begin, or go on, at `step` of an epoch whose rows come in this order, `done` steps into the run."""

    def step(self) -> None:
        """The next one."""


class Eager:
    """Call after call, as Python reads."""

    def __init__(self, update: Update, rates: list[float], size: int) -> None:
        self._update, self._rates, self._size = update, rates, size

    def enter(self, order: Tensor, step: int, done: int) -> None:
        self._order, self._step, self._done = order, step, done

    def step(self) -> None:
        at = self._step * self._size
        self._update(self._order[at : at + self._size], self._rates[self._done])
        self._step += 1
        self._done += 1


class Graphed:
    """A whole step as one CUDA graph: what differs between steps, it reads from the device and counts on by itself.

    The first steps run as they are, to warm up, and so does an epoch's last batch where it is smaller.
    """

    def __init__(
        self, update: Update, rates: list[float], size: int, rows: int, device: torch.device
    ) -> None:
        self._update, self._size, self._full = update, size, rows // size
        self._order = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rates = torch.tensor(rates, device=device)
        self._offsets = torch.arange(size, device=device)
        self._at, self._done = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self._step = self._warmed = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def enter(self, order: Tensor, step: int, done: int) -> None:
        self._order.copy_(order)
        self._at.fill_(step * self._size)
        self._done.fill_(done)
        self._step = step

    def step(self) -> None:
        if self._step >= self._full:
            self._update(self._order[self._step * self._size :], self._rate())
            self._done += 1
        elif self._graph is not None:
            self._graph.replay()
        elif self._warmed < WARM_STEPS:
            self._warmed += 1
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.self_contained()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            self._graph = self._recorded()
            self._graph.replay()
        self._step += 1

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.self_contained()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InvalidHyperparameter(
                f"engine: the step cannot be recorded as a CUDA graph ({reason}); something in the model, the loss or "
                "the augmentation waits for the device, e.g. .item(): take it out, or set engine=eager"
            ) from error
        return graph

    def self_contained(self) -> None:
        """A step whose every input lies on the device, at an address that stays."""
        self._update(self._order.index_select(0, self._offsets + self._at), self._rate())
        self._at += self._size
        self._done += 1

    def _rate(self) -> Tensor:
        return self._rates.index_select(0, self._done)[
            0
        ]  # self._rates[self._done] would wait for the device


def engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    settings: NetworkHyperparameters,
    augment: Callable[..., Tensor | tuple[Tensor, ...]] | None,
    ranks: Ranks,
    summed: Tensor,
    total: int,
) -> Engine:
    """What runs the steps on the device of the data, as the settings want it.

    Raises:
        InvalidHyperparameter: the engine does not exist there.
    """
    device, wanted = target.device, settings.engine
    on_gpu = device.type == "cuda"
    if wanted == "graph" and (not on_gpu or ranks.count > 1):
        raise InvalidHyperparameter(
            "engine: 'graph' needs one GPU and one process; use eager or compile"
        )
    objective: nn.Module = Objective(model, loss)
    if ranks.count > 1:
        objective = DistributedDataParallel(objective, device_ids=[device] if on_gpu else None)
    if wanted == "compile":
        objective.compile(dynamic=False)
    update = Update(objective, optimizer, inputs, target, settings, augment, ranks, summed)
    rates = [
        settings.lr * schedule(step, total, settings.schedule, settings.warm_up)
        for step in range(total)
    ]
    if on_gpu and ranks.count == 1 and wanted != "eager":
        return Graphed(update, rates, settings.batch_size, len(target), device)
    return Eager(update, rates, settings.batch_size)
