"""Checkpoints of a training run: atomic saving, resuming, and stop on SIGTERM."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import InvalidCheckpoint
from training.fitting.distributed import Ranks

FILE = "checkpoint.pt"
REASON_SHOWN = 200  # characters of torch's message in an error

Row = dict[str, float]  # metrics of one epoch


class Stop:
    """Reasons to end training early: SIGTERM, and a time limit.

    On SIGTERM, training saves a checkpoint and ends; SageMaker leaves 120 s until SIGKILL. At the
    deadline it ends as after the last epoch, and the best weights are exported.
    """

    requested = False
    deadline = math.inf  # in time.monotonic()

    @property
    def is_late(self) -> bool:
        """Return whether the time for training is used up."""
        return time.monotonic() >= self.deadline

    def limit(self, environ: Mapping[str, str], limit_s: float | None) -> Stop:
        """Set the deadline from --max-runtime, or from the limit of a job.

        A job's clock starts with its container, before packages are installed.
        """
        limit_s = limit_s or float(environ.get("MAYFLY_MAX_RUNTIME_S", math.inf))
        spent_s = time.time() - float(environ.get("MAYFLY_STARTED_AT", time.time()))
        if math.isfinite(limit_s):
            self.deadline = time.monotonic() + limit_s - reserve_s(limit_s) - spent_s
        return self

    def listen(self) -> Stop:
        """Install the SIGTERM handler that sets the stop flag.

        Python allows this in the main thread only.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


def reserve_s(limit_s: float) -> float:
    """Return the seconds of a time limit that export and evaluation need.

    >>> reserve_s(60), reserve_s(3600), reserve_s(86400)
    (30.0, 360.0, 900.0)
    """
    return min(max(0.1 * limit_s, 60.0), 900.0, 0.5 * limit_s)


class Interrupted(Exception):
    """Exception for a training run that SIGTERM stopped.

    No failure: the next attempt resumes the run, if a checkpoint holds its state.
    """


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's state to the checkpoint file in `folder` atomically.

    Raises:
        InvalidCheckpoint: it cannot be written; the checkpoint before stays.
    """
    part = folder / f"{FILE}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / FILE)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        full = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
        reason = " ".join(str(error.__context__ if full else error).split())[:200]
        raise InvalidCheckpoint(
            f"no checkpoint can be written to {folder} ({reason}): the one before stays, if any; "
            "make room and run the same command again, which resumes from it"
        ) from error


def restore(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Load a run's checkpoint from `folder`, or return None without a checkpoint.

    `run` identifies the run: its settings, number of processes, recipe and data.

    Raises:
        InvalidCheckpoint: the checkpoint is unreadable, or another run wrote it.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything on torn bytes, also a KeyError
        raise InvalidCheckpoint(f"{FILE} cannot be read; remove it to start anew") from error
    differences = list(_differences(_extended(state["run"], run), run))
    if differences:
        raise InvalidCheckpoint(
            f"{FILE} belongs to a run with other {' and other '.join(differences)}; "
            "remove it to train anew, or use another --checkpoint-dir"
        )
    return state


def _extended(saved: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return a saved identity with the length of a run no shorter."""
    before, now = saved.get("settings"), run.get("settings")
    if not isinstance(before, dict) or not isinstance(now, dict):
        return saved
    if now.get("epochs", 0) < before.get("epochs", 0):
        return saved
    length = {name: now[name] for name in ("epochs", "patience") if name in now}
    return saved | {"settings": before | length}


def _differences(saved: dict[str, Any], run: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of a run's identity in which a checkpoint differs."""
    for name in sorted({*saved, *run}):
        before, now = saved.get(name), run.get(name)
        if before == now:
            continue
        if name == "settings" and isinstance(before, dict) and isinstance(now, dict):
            changes = (
                f"{key} {before.get(key)} → {now.get(key)}"
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key)
            )
            yield f"settings ({', '.join(changes)})"
        else:
            yield "code (the recipe, or what it imports)" if name == "code" else name


@dataclass
class RunState:
    """State of a training run that checkpoints hold, including random generators."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]  # settings and data of the run; a checkpoint with others is refused
    folder: Path | None  # holds the checkpoint; None to save none
    ranks: Ranks
    loss_sum: Tensor  # over this process's examples of the epoch, on the device
    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps of the current epoch
    history: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None  # weights of the epoch with the lowest validation loss
    best_loss: float = math.inf
    stale: int = 0  # epochs since the lowest validation loss
    generators: dict[str, Any] | None = None  # random state to restore in the middle of an epoch

    def save(self) -> None:
        """Write a checkpoint of the run, if it has a checkpoint folder.

        Every process has to call this method, because each adds its random state.
        """
        if self.folder is None:
            return
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        generators = self.ranks.gather({"cpu": torch.get_rng_state(), "cuda": cuda})
        losses = self.ranks.gather(self.loss_sum.cpu())
        if not self.ranks.leads:
            return
        state = {
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
        }
        save(self.folder, state)

    def restore(self) -> None:
        """Resume the run from its checkpoint, if one exists."""
        saved = self._read() if self.folder else None
        if saved is None:
            return
        self._load(saved)
        self.loss_sum.copy_(saved["losses"][self.ranks.rank])
        self.epoch, self.step, self.history = saved["epoch"], saved["step"], saved["history"]
        self.best, self.best_loss, self.stale = saved["best"], saved["best_loss"], saved["stale"]
        if self.step:
            self.generators = saved["generators"][self.ranks.rank]
        if self.ranks.leads:
            print(f"resumed after {self.epoch} epochs and {self.step} steps", flush=True)
            before, now = (run["settings"].get("epochs") for run in (saved["run"], self.identity))
            if before != now:
                print(f"the run is extended from {before} to {now} epochs", flush=True)

    def _load(self, saved: dict[str, Any]) -> None:
        """Load the weights and the optimizer's state of a checkpoint.

        Raises:
            InvalidCheckpoint: they are those of another network.
        """
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:REASON_SHOWN]
            raise InvalidCheckpoint(
                f"{FILE} holds another network than the recipe's ({reason}); "
                "remove it to train anew, or use another --checkpoint-dir"
            ) from error

    def _read(self) -> dict[str, Any] | None:
        """Read the checkpoint in rank 0 and broadcast it to every process.

        Other hosts may have another disk, or see the file later.
        """
        saved: dict[str, Any] | InvalidCheckpoint | None = None
        if self.ranks.leads and self.folder:
            try:
                saved = restore(self.folder, self.identity)
            except InvalidCheckpoint as error:  # broadcast: other processes would wait forever
                saved = error
        saved = self.ranks.broadcast(saved)
        if isinstance(saved, InvalidCheckpoint):
            raise saved
        return saved

    def seed_epoch(self, seed: int) -> None:
        """Seed torch from seed and epoch, so resumed epochs repeat their order."""
        torch.manual_seed((seed * 1_000_003 + self.epoch) % 2**63)

    def seed_rank(self, seed: int) -> None:
        """Seed each training process differently, for its own dropout and augmentation."""
        if self.ranks.rank:
            torch.manual_seed(((seed * 1_000_003 + self.epoch) * 1_009 + self.ranks.rank) % 2**63)

    def restore_generators(self) -> None:
        """Restore the random generators from a checkpoint saved within an epoch."""
        if self.generators is None:
            return
        torch.set_rng_state(self.generators["cpu"])
        if self.generators["cuda"] and torch.cuda.device_count() == len(self.generators["cuda"]):
            torch.cuda.set_rng_state_all(self.generators["cuda"])
        self.generators = None

    def keep_best(self, validation_loss: float) -> None:
        """Copy the model's weights if the validation loss is the lowest yet."""
        self.stale += 1
        if validation_loss < self.best_loss:
            self.best_loss, self.stale = validation_loss, 0
            weights = self.model.state_dict()
            self.best = {name: value.detach().clone() for name, value in weights.items()}


def load_weights(model: nn.Module, path: Path) -> str:
    """Copy weights from a checkpoint or state_dict file into a network.

    Tensors of another name or shape, such as those of a new last layer, keep their first values.
    Returns the file's SHA-256 digest.

    Raises:
        InvalidCheckpoint: there is no such file, or none of its tensors fits.
    """
    path = path / FILE if path.is_dir() else path
    saved, own = _saved_weights(path), model.state_dict()
    fitting = {
        name: value
        for name, value in saved.items()
        if name in own and isinstance(value, Tensor) and value.shape == own[name].shape
    }
    if not fitting:
        raise InvalidCheckpoint(
            f"--weights {path.name}: none of its {len(saved)} tensors has name and shape of one "
            f"of the network's, e.g. {next(iter(own), 'none')}"
        )
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    rest = f"; as initialised: {', '.join(fresh)}" if fresh else ""
    print(f"weights of {path.name}: {len(fitting)} of {len(own)} tensors{rest}", flush=True)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _saved_weights(path: Path) -> dict[str, Any]:
    """Return the best tensors of a checkpoint, or a state_dict file's."""
    refusal = f"--weights {path.name}: no {FILE} and no state_dict that torch.save wrote"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything on torn bytes, also a KeyError
        raise InvalidCheckpoint(refusal) from error
    if not isinstance(saved, dict):
        raise InvalidCheckpoint(refusal)
    return (saved["best"] or saved["model"]) if "run" in saved else saved
