"""Record of a training run: environment, seeds, settings and results."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from training import manifest


def spread(values: Sequence[float]) -> dict[str, float]:
    """Compute mean, deviation and range of a metric over several seeds.

    >>> spread([0.5, 1.0])
    {'mean': 0.75, 'deviation': 0.353553, 'low': 0.5, 'high': 1.0}
    """
    return {
        "mean": round(statistics.fmean(values), 6),
        "deviation": round(statistics.stdev(values), 6) if len(values) > 1 else 0.0,
        "low": min(values),
        "high": max(values),
    }


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Describe the machine and its library versions, without private names.

    Names of people, hosts and folders are left out, so that a record can be shared.
    """
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": manifest.libraries(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cuda": torch.version.cuda if on_gpu else None,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def make(
    *,
    recipe: str,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    metrics: Sequence[Mapping[str, float]],
    histories: Sequence[Sequence[Mapping[str, float]]],
    device: torch.device,
    processes: int,
    duration_s: float,
) -> dict[str, Any]:
    """Build the record of training runs that differ only in seed.

    `metrics` and `histories` have one entry a seed. Throughput leaves out each run's first epoch,
    which warms up, unless it is the only one.
    """
    epochs = [epoch for history in histories for epoch in history[1:] or history]
    rates = [epoch["examples_per_s"] for epoch in epochs]
    shares = [epoch["roof"] for epoch in epochs if "roof" in epoch]
    return {
        "schema": 1,
        "recipe": recipe,
        "code_revision": manifest.code_revision(),
        "environment": environment(device, processes),
        "hyperparameters": dict(settings),
        "seeds": list(seeds),
        "metrics": {name: spread([run[name] for run in metrics]) for name in metrics[0]},
        "metrics_by_seed": [dict(run) for run in metrics],
        "examples_per_s": round(statistics.median(rates), 1) if rates else None,
        "share_of_peak": round(statistics.median(shares), 4) if shares else None,
        "duration_s": round(duration_s, 3),
        "history": [list(history) for history in histories],
    }
