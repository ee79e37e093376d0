"""Training loop: time to a target metric, compared with PyTorch's tutorial loop.

    python -m benchmarks.train_gpu [--rounds N] [--only mlp,cnn,gpt] [--device auto|cpu] [--no-save]

Two loops train each network in turn, on the same device and from the same first weights:
ours      training/fitting/loop.py: data on the device, bf16, each step as one CUDA graph (cnn and
          gpt are compiled first).
tutorial  DataLoader, a copy to the device for each batch, Adam in fp32, loss.item() at every step.

Networks and goals:
mlp  784-128-10, 60,000 images; 80 % of the replay floor.
cnn  The digits recipe's network, 60,000 images; 10 ms an epoch.
gpt  113 million parameters, bytes; 50 % of the dense bf16 peak.

The images are scikit-learn's 1,797 digits, scaled to 28x28. The training part is enlarged to
60,000 by turning, scaling and shifting copies. The 359 held-out images are not enlarged. The text
is Python's reference and docstrings.

The time to the target ends with the first epoch after which the held-out examples reach the
target, and includes validation. One-time work, recording and compiling, is subtracted and reported
separately: it is the time by which the first epoch exceeds the median of the others. An epoch's
time is that of its steps. The replay floor is the shortest possible step: forward, backward and the
fused optimizer on one fixed batch, recorded as a CUDA graph and launched again and again. The share
of the peak counts 6 operations per matrix parameter and token.

Not measured: attention's own products, data loading from storage, several GPUs. Without a GPU a
reduced form runs on the CPU. It shows that everything works, says nothing about the goals and is
not saved.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any

# Set before torch is imported: OpenMP threads that spin while they wait starve the others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.harness import measure, options
from benchmarks.harness.measure import Spread
from benchmarks.harness.training.goals import judge
from benchmarks.harness.training.loops import Training, ours, tutorial
from benchmarks.harness.training.tasks import TASKS, Task, tasks

OURS, TUTORIAL = "ours", "tutorial"
LOOPS: dict[str, Callable[[Task, torch.device], Training]] = {OURS: ours, TUTORIAL: tutorial}
HEADING = ("to the target", "seconds", "ratio", "once", "an epoch", "epochs", "reached")


def compare(task: Task, device: torch.device, rounds: int) -> dict[str, list[Training]]:
    """Train a task with each loop per round; return times and metrics."""
    contenders = {name: partial(train, task, device) for name, train in LOOPS.items()}
    return measure.interleave(contenders, rounds, label=task.name)


def results(task: Task, trainings: dict[str, list[Training]]) -> list[dict[str, Any]]:
    """Return one result entry per loop, with time ratio to the tutorial."""
    seconds = {name: [training.seconds for training in runs] for name, runs in trainings.items()}
    entries = []
    for name, runs in trainings.items():
        spread = Spread.from_values(seconds[name], digits=4)
        entry = measure.row(spread, what=f"{task.name} {name}") | {
            "target": task.target,
            "metric": round(runs[-1].metric, 4),
            "reached": all(training.reached for training in runs),
            "once_s": round(statistics.median(training.once_s for training in runs), 3),
            "epoch_ms": round(_epoch_s(runs) * 1000, 3),
            "ratio": measure.ratios(seconds[name], seconds[TUTORIAL]).to_record(),
        }
        entries.append(entry)
    return entries


def _epoch_s(trainings: Sequence[Training]) -> float:
    return statistics.median(training.epoch_s for training in trainings)


def cells(entry: dict[str, Any], epochs: int) -> tuple[str, ...]:
    """Format a training result entry as a table row."""
    return (
        entry["what"],
        f"{entry['median']:.3f}",
        f"{entry['ratio']['median']:.2f}",
        f"{entry['once_s']:.2f} s",
        f"{entry['epoch_ms']:.1f} ms",
        str(epochs),
        f"{entry['metric']:.3f}" + ("" if entry["reached"] else " (not the target)"),
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the training benchmark."""
    parser = options.make_parser("train_gpu", __doc__, rounds=3)
    names = list(TASKS)
    parser.add_argument("--only", type=options.choice_of(names), default=names, metavar="NAMES")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    chosen = arguments(words)
    on_gpu = chosen.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    gpu = torch.cuda.get_device_name(device) if on_gpu else None
    rounds = chosen.rounds if on_gpu else 1
    device_text = gpu or "CPU, in small: this says nothing about a GPU"
    print(f"training on {device_text}, torch {metadata.version('torch')}")
    entries: list[dict[str, Any]] = []
    sentences: list[str] = []
    rows: list[Sequence[str]] = [HEADING]
    for task in tasks(chosen.only, on_gpu):
        trainings = compare(task, device, rounds)
        judgement = judge(task, _epoch_s(trainings[OURS]), device)
        sentences.append(judgement.sentence)
        task_entries = results(task, trainings)
        task_entries[0] |= judgement.numbers  # the first entry is that of our loop
        epochs = [runs[-1].epochs for runs in trainings.values()]
        rows += map(cells, task_entries, epochs)
        entries += task_entries
    print(measure.table(rows))
    print("\n".join(sentences))
    line = measure.result_line("train_gpu", "s", rounds, entries)
    line["versions"]["torch"] = metadata.version("torch")
    line["machine"]["gpu"] = gpu
    measure.finish(line, chosen.save and on_gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
