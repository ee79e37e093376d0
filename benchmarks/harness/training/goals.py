"""Performance goals of the training benchmark, relative to GPU limits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.harness.training.loops import to_tensors
from benchmarks.harness.training.tasks import IMAGES, Task
from training.fitting import throughput
from training.fitting.steps import engines

FLOOR_GOAL, EPOCH_GOAL_MS, PEAK_GOAL = 0.8, 10.0, 0.5
GOALS = {
    "mlp": f"{FLOOR_GOAL:.0%} of the replay floor",
    "cnn": f"{EPOCH_GOAL_MS:.0f} ms an epoch of {IMAGES:,}",
    "gpt": f"{PEAK_GOAL:.0%} of the dense bf16 peak",
}
REPLAYS = 500  # graph replays per timed block
BLOCKS = 6  # the first block is discarded
OPERATIONS = 6  # operations of a matrix product per parameter and token, forward and backward


@dataclass(frozen=True)
class Judgement:
    """Verdict on a performance goal: sentence and measured numbers."""

    sentence: str
    numbers: dict[str, float]


def judge(task: Task, epoch_s: float, device: torch.device) -> Judgement:
    """Judge a task's median epoch time against its performance goal.

    On a CPU the goal stays open.
    """
    if device.type != "cuda":
        return _open(task, "no GPU can be used here")
    if task.name == "mlp":
        return judge_floor(task, epoch_s, replay_floor_s(task, device))
    if task.name == "cnn":
        return judge_epoch(task, epoch_s)
    return judge_peak(task, epoch_s, torch.cuda.get_device_name(device))


def judge_floor(task: Task, epoch_s: float, floor_s: float) -> Judgement:
    """Judge an epoch's time against the replay floor of its steps."""
    share = floor_share(task, epoch_s, floor_s)
    numbers = {"floor_us": floor_s * 1e6, "floor_share": share}
    return _closed(task, f"{share:.1%}", share >= FLOOR_GOAL, numbers)


def judge_epoch(task: Task, epoch_s: float) -> Judgement:
    """Judge an epoch's time, scaled to IMAGES, against the goal."""
    epoch_ms = epoch_s * 1000 * IMAGES / len(task.data.train)
    numbers = {"epoch_ms": epoch_ms}
    return _closed(task, f"{epoch_ms:.2f} ms", epoch_ms <= EPOCH_GOAL_MS, numbers)


def judge_peak(task: Task, epoch_s: float, device_name: str) -> Judgement:
    """Judge an epoch's operations per second against the GPU's peak."""
    share = peak_share(task, epoch_s, device_name)
    if share is None:
        return _open(task, "the peak of this device is not known")
    return _closed(task, f"{share:.1%}", share >= PEAK_GOAL, {"peak_share": share})


def _open(task: Task, reason: str) -> Judgement:
    return Judgement(f"{task.name}: goal {GOALS[task.name]}: open, for {reason}", {})


def _closed(task: Task, result: str, met: bool, numbers: dict[str, float]) -> Judgement:
    verdict = "met" if met else "missed"
    sentence = f"{task.name}: {result}, goal {GOALS[task.name]}: {verdict}"
    return Judgement(sentence, {name: round(value, 4) for name, value in numbers.items()})


def floor_share(task: Task, epoch_s: float, floor_s: float) -> float:
    """Return the share of epoch time that the replay floor explains.

    The floor is that of a step, times the number of steps.
    """
    return math.ceil(len(task.data.train) / task.settings.batch_size) * floor_s / epoch_s


def peak_share(task: Task, epoch_s: float, device_name: str) -> float | None:
    """Return the share of a GPU's dense bf16 peak that training uses.

    None if the peak is unknown.

    Counts OPERATIONS per matrix parameter and token; attention's own products are left out.
    """
    peak = throughput.peak(device_name, bf16=True)
    if not peak:
        return None
    tokens = next(iter(task.data.train.inputs.values())).size
    matrices = [module for module in task.model().modules() if isinstance(module, nn.Linear)]
    parameters = sum(module.weight.numel() for module in matrices)
    return OPERATIONS * parameters * tokens / epoch_s / peak


def replay_floor_s(task: Task, device: torch.device) -> float:
    """Measure the shortest possible training step in seconds (replay floor).

    It is forward, backward and the fused optimizer on one fixed batch, recorded as a CUDA graph.
    """
    model = task.model().to(device)
    optimizer = engines.optimizer(model, task.settings, device)
    batch = task.data.train.take(slice(0, task.settings.batch_size))
    inputs, target = to_tensors(batch, device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = task.loss(model, inputs, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(engines.WARM_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return min([_replay_s(graph) for _ in range(BLOCKS)][1:])


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    """Return a CUDA graph's mean replay time in seconds, over REPLAYS runs."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / REPLAYS
