"""How fast is the training loop on a GPU, beside the loop of the tutorials and beside what the device can do?

    python -m benchmarks.train_gpu [--rounds N] [--only mlp,cnn,gpt] [--no-save]

Three networks, each trained by both loops in turn, on the same device, from the same first weights:
  mlp  784-128-10, 60,000 images      goal: 80 % of its replay floor
  cnn  the digits recipe's, likewise  goal: 10 ms an epoch
  gpt  113 million parameters, bytes  goal: 50 % of the dense bf16 peak
  ours      training/fitting/loop.py: data on the device, bf16, the step as one CUDA graph (cnn and gpt compiled first)
  tutorial  DataLoader, a copy for each batch, Adam in fp32, loss.item() at every step
The images are scikit-learn's 1,797 digits scaled to 28x28; the training part of them is enlarged to 60,000 by turning,
scaling and shifting copies. Held out are 359 that were not enlarged. The text is Python's reference and docstrings.

Seconds are those until the end of the epoch after which the held-out examples reach the target, validation included;
not included is what is done once, recording and compiling, by which the first epoch takes longer than the median of
the others: it is stated beside them. An epoch's time is that of its steps. The replay floor is the smallest step there
is, recorded as a CUDA graph and launched again and again: forward, backward and the fused optimiser on one batch that
never changes. The share of the peak counts 6 operations for each parameter of a matrix and token, and none for
attention itself.

Without a GPU the same runs in small, on the CPU: it shows that everything works, and says nothing about the goals,
which stay open. Only what a GPU did is saved.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: threads that spin while they wait starve the others

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import measure
from benchmarks.harness.measure import Spread
from training import data, networks
from training.data import Dataset, Examples, texts
from training.fitting import augment, engines, loop, losses, throughput
from training.fitting.losses import Loss
from training.hyperparameters import NetworkHyperparameters

NAMES = ("mlp", "cnn", "gpt")
OURS, TUTORIAL = "ours", "tutorial"
IMAGES = 60_000
FLOOR_GOAL, EPOCH_GOAL_MS, PEAK_GOAL = 0.8, 10.0, 0.5
REPLAYS = 500


@dataclass(frozen=True)
class Task:
    """What both loops train. `target` is an accuracy to reach, or the bits a byte to get down to."""

    name: str
    data: Dataset
    model: Callable[[], nn.Module]
    loss: Loss
    settings: NetworkHyperparameters
    target: float

    def reached(self, metric: float) -> bool:
        return metric <= self.target if self.name == "gpt" else metric >= self.target


@dataclass(frozen=True)
class Taken:
    """What one training took: to the target, or to its end; of that what is done once; the steps of an epoch."""

    seconds: float
    once_s: float
    epoch_s: float
    epochs: int  # to the target
    metric: float
    reached: bool

    @classmethod
    def of(
        cls, task: Task, ends: Sequence[float], epochs_s: Sequence[float], found: Sequence[float]
    ) -> Taken:
        """From when each epoch ended, how long its steps took, and the metric after it."""
        good = [at for at, metric in enumerate(found) if task.reached(metric)]
        at = good[0] if good else len(found) - 1
        epoch = statistics.median(epochs_s[1:])
        once = max(0.0, epochs_s[0] - epoch)
        return cls(ends[at] - once, once, epoch, at + 1, found[at], bool(good))


# --- what is trained --------------------------------------------------------------------------------------------------


def tasks(names: Sequence[str], on_gpu: bool) -> list[Task]:
    return [{"mlp": _mlp, "cnn": _cnn, "gpt": _gpt}[name](on_gpu) for name in names]


def enlarged(rows: int) -> Dataset:
    """The digits, the training part turned, scaled and shifted to `rows`; held out are those of the test part."""
    found = data.digits()
    name, images = next(iter(found.train.inputs.items()))
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    chosen = torch.randint(len(images), (rows,))
    parts = [
        augment.affine(torch.from_numpy(images[part]), turn=0.2, zoom=0.1, shift=0.15)
        for part in np.array_split(chosen.numpy(), max(1, rows // 5000))
    ]
    torch.random.set_rng_state(generator)
    train = Examples({name: torch.cat(parts).numpy()}, found.train.target[chosen.numpy()])
    held_out = Examples(found.test.inputs, found.test.target)
    return replace(
        found,
        train=train,
        validation=held_out,
        test=held_out,
        source=f"{found.source}?enlarged={rows}",
    )


def _mlp(on_gpu: bool) -> Task:
    settings = NetworkHyperparameters(
        epochs=10 if on_gpu else 3, lr=3e-3, batch_size=480 if on_gpu else 64
    )
    target = 0.97 if on_gpu else 0.8
    rows = enlarged(IMAGES if on_gpu else 2000)
    return Task(
        "mlp", rows, lambda: networks.mlp(784, (128,), 10), losses.cross_entropy, settings, target
    )


def _cnn(on_gpu: bool) -> Task:
    settings = NetworkHyperparameters(
        epochs=10 if on_gpu else 2,
        lr=4e-3,
        batch_size=1200 if on_gpu else 64,
        engine="compile" if on_gpu else "auto",
    )

    def model() -> nn.Module:
        made: nn.Module = networks.cnn(10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made

    rows = enlarged(IMAGES if on_gpu else 1000)
    return Task("cnn", rows, model, losses.cross_entropy, settings, 0.99 if on_gpu else 0.8)


def _gpt(on_gpu: bool) -> Task:
    size = (
        {"width": 1024, "heads": 8, "layers": 9}
        if on_gpu
        else {"width": 64, "heads": 4, "layers": 2}
    )
    settings = NetworkHyperparameters(
        epochs=4 if on_gpu else 2,
        lr=6e-4 if on_gpu else 1e-2,
        batch_size=16 if on_gpu else 8,
        clip=1.0,
        engine="compile" if on_gpu else "auto",
    )
    found = texts.language(1024 if on_gpu else 64, with_docstrings=on_gpu)
    rows = len(found.train) if on_gpu else 400
    rows -= rows % settings.batch_size  # a last, smaller batch would be no graph
    found = replace(
        found,
        train=found.train.take(slice(0, rows)),
        validation=found.validation.take(slice(0, 128)),
    )
    target = 2.5 if on_gpu else 4.5
    return Task("gpt", found, lambda: networks.GPT(**size), losses.next_token, settings, target)


# --- the two loops ----------------------------------------------------------------------------------------------------


def ours(task: Task, device: torch.device) -> Taken:
    held_out = _on(task.data.validation, device)
    rows: list[loop.Row] = []
    ends: list[float] = []

    def watch(row: loop.Row) -> None:
        rows.append(row)
        ends.append(time.perf_counter() - started)

    def score(model: nn.Module) -> loop.Row:
        return {} if task.name == "gpt" else {"accuracy": accuracy(model, held_out)}

    torch.manual_seed(0)
    model = task.model()
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        loop.fit(
            model, task.data, task.settings, device=device, loss=task.loss, score=score, watch=watch
        )
    found = [
        row["validation_loss"] / math.log(2) if task.name == "gpt" else row["validation_accuracy"]
        for row in rows
    ]
    return Taken.of(
        task, ends, [len(task.data.train) / row["examples_per_s"] for row in rows], found
    )


def tutorial(task: Task, device: torch.device) -> Taken:
    """As the quickstarts have it."""
    held_out = _on(task.data.validation, device)
    inputs, target = _on(task.data.train, torch.device("cpu"))
    torch.manual_seed(0)
    model = task.model()
    started = time.perf_counter()
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.settings.lr)
    loader = DataLoader(
        TensorDataset(*inputs, target), batch_size=task.settings.batch_size, shuffle=True
    )
    epochs, ends, found = [], [], []
    for _ in range(task.settings.epochs):
        model.train()
        entered = time.perf_counter()
        running = 0.0
        for *batch, wanted in loader:
            loss = task.loss(model, tuple(values.to(device) for values in batch), wanted.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if task.settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), task.settings.clip)
            optimizer.step()
            running += loss.item()
        epochs.append(time.perf_counter() - entered)
        found.append(
            bits(model, held_out, task.loss) if task.name == "gpt" else accuracy(model, held_out)
        )
        ends.append(time.perf_counter() - started)
    return Taken.of(task, ends, epochs, found)


Held = tuple[tuple[Tensor, ...], Tensor]


def _on(examples: Examples, device: torch.device) -> Held:
    inputs = tuple(
        torch.from_numpy(np.ascontiguousarray(values)).to(device)
        for values in examples.inputs.values()
    )
    return inputs, torch.from_numpy(np.ascontiguousarray(examples.target)).to(device)


@torch.no_grad()
def accuracy(model: nn.Module, held_out: Held) -> float:
    model.eval()
    inputs, target = held_out
    return float((model(*inputs).argmax(1) == target).float().mean().item())


@torch.no_grad()
def bits(model: nn.Module, held_out: Held, loss: Loss, part: int = 64) -> float:
    """Of a byte."""
    model.eval()
    (tokens,), target = held_out
    found = [loss(model, (tokens[at : at + part],), target[at : at + part]) * len(tokens[at : at + part])
             for at in range(0, len(tokens), part)]  # fmt: skip
    return float(torch.stack(found).sum().item()) / len(tokens) / math.log(2)


# --- what the device can do -------------------------------------------------------------------------------------------


def replay_floor_s(task: Task, device: torch.device) -> float:
    """Seconds of the smallest step: forward, backward and the fused optimiser on one batch, as a CUDA graph."""
    model = task.model().to(device)
    optimizer = engines.optimizer(model, task.settings, device)
    batch = task.data.train.take(slice(0, task.settings.batch_size))
    inputs, target = _on(batch, device)

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
    taken = []
    for _ in range(6):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / REPLAYS)
    return min(taken[1:])


def floor_share(task: Task, epoch_s: float, floor_s: float) -> float:
    """Of an epoch, what its steps would take at the floor."""
    return math.ceil(len(task.data.train) / task.settings.batch_size) * floor_s / epoch_s


def peak_share(task: Task, epoch_s: float, device_name: str) -> float | None:
    """Of the dense bf16 peak, by 6 operations for each parameter of a matrix and token; None where none is known."""
    top = throughput.peak(device_name, bf16=True)
    tokens = next(iter(task.data.train.inputs.values())).size
    matrices = sum(
        module.weight.numel() for module in task.model().modules() if isinstance(module, nn.Linear)
    )
    return 6 * matrices * tokens / epoch_s / top if top else None


def judged(
    task: Task, taken: Sequence[Taken], device: torch.device
) -> tuple[str, dict[str, float]]:
    """A sentence on the goal, and its numbers; on a CPU it stays open."""
    goals = {"mlp": f"{FLOOR_GOAL:.0%} of the replay floor", "cnn": f"{EPOCH_GOAL_MS:.0f} ms an epoch of {IMAGES:,}",
             "gpt": f"{PEAK_GOAL:.0%} of the dense bf16 peak"}  # fmt: skip
    if device.type != "cuda":
        return f"{task.name}: goal {goals[task.name]}: open, for no GPU can be used here", {}
    epoch_s = statistics.median(one.epoch_s for one in taken)
    if task.name == "mlp":
        floor = replay_floor_s(task, device)
        share = floor_share(task, epoch_s, floor)
        met, said, numbers = (
            share >= FLOOR_GOAL,
            f"{share:.1%}",
            {"floor_us": floor * 1e6, "floor_share": share},
        )
    elif task.name == "cnn":
        epoch_ms = epoch_s * 1000 * IMAGES / len(task.data.train)
        met, said, numbers = epoch_ms <= EPOCH_GOAL_MS, f"{epoch_ms:.2f} ms", {"epoch_ms": epoch_ms}
    else:
        reached = peak_share(task, epoch_s, torch.cuda.get_device_name(device))
        if reached is None:
            return f"gpt: goal {goals['gpt']}: open, for the peak of this device is not known", {}
        met, said, numbers = reached >= PEAK_GOAL, f"{reached:.1%}", {"peak_share": reached}
    verdict = "met" if met else "missed"
    return f"{task.name}: {said}, goal {goals[task.name]}: {verdict}", {
        k: round(v, 4) for k, v in numbers.items()
    }


# --- the run ----------------------------------------------------------------------------------------------------------


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The training loop beside the tutorials' and beside the device's roof"
    )
    measure.add_arguments(parser, rounds=3)
    parser.add_argument("--only", type=measure.one_of(NAMES), default=list(NAMES), metavar="NAMES")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    wanted = arguments(words)
    on_gpu = wanted.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    rounds = wanted.rounds if on_gpu else 1
    where = (
        torch.cuda.get_device_name(device)
        if on_gpu
        else "CPU, in small: this says nothing about a GPU"
    )
    print(f"training on {where}, torch {metadata.version('torch')}")
    results: list[dict[str, Any]] = []
    goals = []
    rows = [("to the target", "seconds", "ratio", "once", "an epoch", "epochs", "reached")]
    for task in tasks(wanted.only, on_gpu):
        runs: dict[str, list[Taken]] = {OURS: [], TUTORIAL: []}

        def contender(
            name: str,
            train: Callable[[Task, torch.device], Taken],
            task: Task = task,
            runs: dict[str, list[Taken]] = runs,
        ) -> Callable[[], float]:
            def run() -> float:
                taken = train(task, device)
                runs[name].append(taken)
                return taken.seconds

            return run

        contenders = {OURS: contender(OURS, ours), TUTORIAL: contender(TUTORIAL, tutorial)}
        seconds = measure.interleave(contenders, rounds, what=task.name)
        kept = {name: taken[-rounds:] for name, taken in runs.items()}
        sentence, numbers = judged(task, kept[OURS], device)
        goals.append(sentence)
        for name, taken in kept.items():
            spread = Spread.of(seconds[name], digits=4)
            ratio = measure.ratios(seconds[name], seconds[TUTORIAL])
            once, epoch = (
                statistics.median(values)
                for values in zip(*((one.once_s, one.epoch_s) for one in taken), strict=True)
            )
            last = taken[-1]
            reached = f"{last.metric:.3f}" + (
                "" if all(one.reached for one in taken) else " (not the target)"
            )
            rows.append((f"{task.name} {name}", f"{spread.median:.3f}", f"{ratio.median:.2f}", f"{once:.2f} s",
                         f"{epoch * 1000:.1f} ms", str(last.epochs), reached))  # fmt: skip
            results.append(
                measure.row(spread, what=f"{task.name} {name}")
                | {
                    "target": task.target,
                    "metric": round(last.metric, 4),
                    "reached": all(one.reached for one in taken),
                    "once_s": round(once, 3),
                    "epoch_ms": round(epoch * 1000, 3),
                    "ratio": ratio.to_record(),
                }
                | (numbers if name == OURS else {})
            )
    print(measure.table(rows))
    print("\n".join(goals))
    line = measure.result_line("train_gpu", "s", rounds, results)
    line["versions"]["torch"] = metadata.version("torch")
    line["machine"]["gpu"] = torch.cuda.get_device_name(device) if on_gpu else None
    measure.finish(line, wanted.save and on_gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
