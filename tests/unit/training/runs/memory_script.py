"""Train on a small file, then on a large one, and print how much more memory that took.

    python -m tests.unit.training.runs.memory_script SMALL LARGE MODEL_DIR

It is the peak of anonymous memory (RssAnon): pages of a mapped file are the system's to drop.
"""

import sys
import threading
from pathlib import Path

import torch
from torch import nn

import training
from training.data import files
from training.recipe import NetworkHyperparameters, Recipe

EVERY_S = 0.02


class Peak(threading.Thread):
    """Thread that follows the anonymous memory of its process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.kb = 0

    def run(self) -> None:
        while not self.ended.wait(EVERY_S):
            self.kb = max(self.kb, anonymous_kb())


def anonymous_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise OSError("no RssAnon in /proc/self/status")


def main(small: str, large: str, model_dir: str) -> None:
    recipe = Recipe(
        name="wide", description="", task="classification",
        hyperparameters=NetworkHyperparameters,
        data=lambda channels: files.arrays(channels["train"], target="y"),
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 2)),
    )  # fmt: skip
    torch.set_num_threads(1)
    peaks = []
    for data in (small, large):  # the first brings what imports and exporters take
        peak = Peak()
        peak.start()
        training.run(
            recipe, data={"train": data}, model_dir=model_dir, epochs=1, lr=0.01, batch_size=512
        )
        peak.ended.set()
        peak.join()
        peaks.append(peak.kb)
    print(f"peaks_kb={peaks[0]},{peaks[1]}")


WIDTH = 1500

if __name__ == "__main__":
    main(*sys.argv[1:])
