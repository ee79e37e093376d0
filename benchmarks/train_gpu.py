"""Training loop: time to a target metric, compared with PyTorch's tutorial loop.

    python -m benchmarks.train_gpu [--rounds N] [--only mlp,cnn,gpt] [--limit SECONDS]
                                   [--device auto|cpu] [--no-save]

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

Networks share the time limit. Rounds that do not fit into a network's share are left out, and where
none does after the warm-up, the warm-up is the measurement. A network that fails is reported, the
others are measured and saved, also after SIGTERM.

Not measured: attention's own products, data loading from storage, several GPUs. Without a GPU a
reduced form runs on the CPU. It shows that everything works, says nothing about the goals and is
not saved.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any, NoReturn

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


LIMIT_S = 450.0  # a device lent for eight minutes, less its start


def compare(
    task: Task, device: torch.device, rounds: int, deadline_s: float = math.inf
) -> dict[str, list[Training]]:
    """Train a task with each loop per round; return times and metrics.

    After `deadline_s`, a value of time.monotonic(), no round is to end.
    """
    contenders = {name: partial(train, task, device) for name, train in LOOPS.items()}
    started = time.monotonic()
    trainings = measure.interleave(contenders, 1, warm_up=0, label=f"{task.name} warm-up")
    round_s = time.monotonic() - started
    for number in range(rounds):
        if time.monotonic() + round_s > deadline_s:
            break
        contenders = dict(reversed(contenders.items()))  # none has the better place
        label = f"{task.name} {number + 1} of {rounds}"
        more = measure.interleave(contenders, 1, warm_up=0, label=label)
        trainings = more if number == 0 else {n: trainings[n] + more[n] for n in LOOPS}
    return {name: trainings[name] for name in LOOPS}


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
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    return parser.parse_args(words)


class Report:
    """Rows, goals and failures of the tasks measured so far."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}
        self._rows: list[Sequence[str]] = [HEADING]
        self._sentences: list[str] = []

    def add(self, task: Task, trainings: dict[str, list[Training]], device: torch.device) -> None:
        """Add a task's trainings, and judge them by its goal."""
        entries = results(task, trainings)
        epochs = [runs[-1].epochs for runs in trainings.values()]
        self._rows += map(cells, entries, epochs)
        self.entries += entries  # kept even where the goal cannot be judged
        judgement = judge(task, _epoch_s(trainings[OURS]), device)
        entries[0] |= judgement.numbers  # the first entry is that of our loop
        self._sentences.append(judgement.sentence)

    def lines(self) -> list[str]:
        """Return the table, the goals and the failures."""
        failures = [f"{name}: FAILED: {reason}" for name, reason in self.failures.items()]
        return [measure.table(self._rows), *self._sentences, *failures]


def main(words: Sequence[str] | None = None) -> int:
    chosen = arguments(words)
    on_gpu = chosen.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    gpu = torch.cuda.get_device_name(device) if on_gpu else None
    rounds = chosen.rounds if on_gpu else 1
    device_text = gpu or "CPU, in small: this says nothing about a GPU"
    print(f"training on {device_text}, torch {metadata.version('torch')}")
    report = Report()
    before = signal.signal(signal.SIGTERM, _terminate)  # sent by a time limit outside
    try:
        _measure(report, chosen.only, device, rounds, time.monotonic() + chosen.limit)
    finally:
        signal.signal(signal.SIGTERM, before)
        print("\n".join(report.lines()))
        line = measure.result_line("train_gpu", "s", rounds, report.entries)
        line["versions"]["torch"] = metadata.version("torch")
        line["machine"]["gpu"] = gpu
        if report.failures:
            line["failures"] = report.failures
        measure.finish(line, chosen.save and on_gpu and bool(report.entries))
    return 1 if report.failures else 0


def _measure(
    report: Report, names: Sequence[str], device: torch.device, rounds: int, deadline_s: float
) -> None:
    for number, name in enumerate(names):
        now_s = time.monotonic()
        share_s = (deadline_s - now_s) / (len(names) - number)
        try:
            (task,) = tasks([name], device.type == "cuda")
            report.add(task, compare(task, device, rounds, now_s + share_s), device)
        except Exception as error:  # one network must not cost the others their measurement
            report.failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
