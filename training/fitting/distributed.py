"""Several processes, one run: started by torchrun, each on its share of every batch."""

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
    """This process among those of the run. Rank 0 says, saves and exports."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process. Over the CPU, so that no device is waited for."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes.item())

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def told(self, value: Any) -> Any:
        """What rank 0 has: decisions must be the same everywhere, to the last bit."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every process has, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


def join(environ: Mapping[str, str], device: torch.device) -> tuple[Ranks, torch.device]:
    """Meet the other processes that torchrun started, if it did; with the device that is this one's.

    They meet at MASTER_ADDR or, without a network, at the file that MAYFLY_RENDEZVOUS names (file:///…).
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


def end(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process with its status; one of several at once, without Python's own end.

    destroy_process_group leaves gloo's threads running where DistributedDataParallel was used. One of them that lets
    go of its last tensor while the interpreter ends aborts the process: "terminate called without an active
    exception" (pytorch issue 190489).
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
