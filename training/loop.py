"""The training loop: data resident on the device, no host synchronisation inside an epoch, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
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


def fit(
    model: nn.Module,
    data: Dataset,
    settings: Hyperparameters,
    *,
    device: torch.device,
    augment: Callable[[Tensor], Tensor] | None = None,
    checkpoints: Path | None = None,
    run: dict[str, Any] | None = None,
    stop: checkpoint.Stop | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and return one row an epoch: loss, validation accuracy, examples a second.

    Every random draw of an epoch follows from (seed, epoch), and a checkpoint holds the generators' state, so that on
    a CPU an interrupted run that goes on ends with the weights of one that was never interrupted, bit for bit.

    Raises:
        Interrupted: `stop` was requested; the checkpoint holds the state.
        InvalidCheckpoint: the checkpoint in `checkpoints` cannot be used for `run`.
    """
    stop = stop or checkpoint.Stop()
    identity = {"settings": asdict(settings)} | (run or {})
    model.to(device)
    x, y = torch.from_numpy(data.train.x).to(device), torch.from_numpy(data.train.y).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    steps = math.ceil(len(x) / settings.batch_size)
    total = steps * settings.epochs

    first_epoch, first_step, history = 0, 0, list[dict[str, float]]()
    loss_sum = torch.zeros((), device=device)
    generators: dict[str, Any] | None = None
    saved = checkpoint.restore(checkpoints, identity) if checkpoints else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first_epoch, first_step, history = saved["epoch"], saved["step"], saved["history"]
        loss_sum, generators = saved["loss_sum"].to(device), saved["generators"]
        print(f"resumed at epoch {first_epoch + 1}, step {first_step} of {steps}", flush=True)

    def save(epoch: int, step: int) -> None:
        if checkpoints:
            checkpoint.save(checkpoints, {
                "run": identity, "epoch": epoch, "step": step, "history": history, "loss_sum": loss_sum.cpu(),
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "generators": _generators()})

    started = last_said = last_saved = time.monotonic()
    done_before = first_epoch * steps + first_step
    for epoch in range(first_epoch, settings.epochs):
        torch.manual_seed(_mix(settings.seed, epoch))
        order = torch.randperm(len(x)).to(device)
        if generators is not None:  # back to the middle of this epoch
            _restore_generators(generators)
            generators = None
        model.train()
        epoch_started = time.monotonic()
        for step in range(first_step, steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * schedule(epoch * steps + step, total)
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            batch = x[rows] if augment is None else augment(x[rows])
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = functional.cross_entropy(model(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(rows)

            now = time.monotonic()
            if stop.requested or now - last_saved > SAVE_EVERY_S:
                save(epoch, step + 1)
                last_saved = now
            if stop.requested:
                raise checkpoint.Interrupted(f"stopped at epoch {epoch + 1}, step {step + 1} of {steps}")
            if now - last_said > SAY_EVERY_S:
                last_said = now
                left = (now - started) / (epoch * steps + step + 1 - done_before) * (total - epoch * steps - step - 1)
                print(f"epoch {epoch + 1}/{settings.epochs}  step {step + 1}/{steps}  left={left:.0f}s", flush=True)

        mean_loss = loss_sum.item() / len(x)
        elapsed = time.monotonic() - epoch_started
        rate = (len(x) - first_step * settings.batch_size) / max(elapsed, 1e-9)
        correct = float(np.mean(predict(model, data.validation, device) == data.validation.y))
        history.append({"epoch": epoch + 1, "loss": mean_loss, "validation_accuracy": correct, "examples_per_s": rate})
        first_step = 0
        loss_sum = torch.zeros((), device=device)
        save(epoch + 1, 0)
        last_said = last_saved = time.monotonic()
        left = (last_said - started) / ((epoch + 1) * steps - done_before) * (total - (epoch + 1) * steps)
        print(f"epoch {epoch + 1}/{settings.epochs}  loss={mean_loss:.4f}  validation_accuracy={correct:.4f}  "
              f"rate={rate:.0f}/s  left={left:.0f}s", flush=True)
        if stop.requested:
            raise checkpoint.Interrupted(f"stopped after epoch {epoch + 1}")
    return history


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
    batches = [model(torch.from_numpy(examples.x[start : start + batch_size]).to(device)).argmax(dim=1).cpu()
               for start in range(0, len(examples), batch_size)]
    return torch.cat(batches).numpy().astype(np.int64)


def _mix(seed: int, epoch: int) -> int:
    """One generator seed an epoch; distinct for any seed below 2⁴³ and a million epochs."""
    return (seed * 1_000_003 + epoch) % 2**63


def _generators() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
