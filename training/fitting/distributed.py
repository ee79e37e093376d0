"""Data-parallel training: joining and communication of the processes that torchrun starts."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of this process in distributed training, and number of processes.

    Rank 0 prints, saves and exports.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Return whether this process is rank 0."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any of the training processes.

        The flags are exchanged over the CPU, so that no device has to finish its work first.
        """
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes.item())

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all training processes, in place."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def broadcast(self, value: Any) -> Any:
        """Send rank 0's value to every process and return it.

        Decisions have to be equal in all processes, to the last bit.
        """
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Gather one value from each process into a list by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave torch's process group at the end of distributed training."""
        if self.count > 1:
            dist.destroy_process_group()


def join(environ: Mapping[str, str], device: torch.device) -> tuple[Ranks, torch.device]:
    """Join torchrun's process group, and return this process's rank and device.

    Without torchrun, there is one process on `device`. Several processes meet at MASTER_ADDR or,
    without a network, at the file in MAYFLY_RENDEZVOUS (file:///…).
    """
    count = int(environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    rank = int(environ["RANK"])
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=environ.get("MAYFLY_RENDEZVOUS"), rank=rank, world_size=count
    )
    return Ranks(rank, count), device


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Run a training entry point and exit the process with its status.

    One of several processes exits without finalizing the interpreter. destroy_process_group leaves
    gloo's threads running after DistributedDataParallel; a thread that releases its last tensor
    during finalization aborts the process: "terminate called without an active exception"
    (pytorch issue 190489).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(main())
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
