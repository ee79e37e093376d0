"""The state of a run on disk: written whole or not at all, and asked for by SIGTERM."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from training.errors import InvalidCheckpoint

FILE = "checkpoint.pt"


class Stop:
    """Whether the run was asked to end. SageMaker leaves 120 s between SIGTERM and SIGKILL."""

    requested = False

    def listen(self) -> Stop:
        """Answer SIGTERM from now on. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


class Interrupted(Exception):
    """When the run stopped at SIGTERM, its state saved. Not a failure: the next attempt goes on from there."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder` in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.tmp"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / FILE)


def restore(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The state that was saved for `run` (recipe and hyperparameters), or None where there is none.

    Raises:
        InvalidCheckpoint: unreadable, or of another run.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises anything on torn bytes, a KeyError of its own included
        raise InvalidCheckpoint(f"{FILE} cannot be read; remove it to start anew") from error
    if state["run"] != run:
        raise InvalidCheckpoint(
            f"{FILE} belongs to a run with other settings; remove it, or use another directory"
        )
    return state
