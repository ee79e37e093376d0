"""A byte-level GPT that writes on in the words of Python's reference. The graph decodes with a cache (generate.py).

Test: 2.29 bits a byte on 16 held-out topics, against 3.63 of counted pairs of bytes; two minutes on a shared CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from training import networks
from training.data import Dataset, texts
from training.fitting import losses
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class GPTHyperparameters(NetworkHyperparameters):
    epochs: int = 4
    lr: float = 5e-3
    batch_size: int = 16
    clip: float = 1.0
    width: int = 96
    heads: int = 4
    layers: int = 3
    length: int = 128  # bytes that are read at once; beyond it, the network has never been
    docstrings: bool = False  # learn from the library's docstrings, too: four times as much text


def data(_: object, h: GPTHyperparameters) -> Dataset:
    return texts.language(h.length, with_docstrings=h.docstrings)


def model(h: GPTHyperparameters) -> networks.GPT:
    return networks.GPT(width=h.width, heads=h.heads, layers=h.layers)


def student(h: GPTHyperparameters) -> networks.GPT:
    return networks.GPT(width=h.width // 2, heads=h.heads // 2, layers=h.layers)


recipe = Recipe(
    name="gpt",
    description="The next byte of English about Python, and the one after it: a language model in small.",
    task="generation",
    preprocessing={
        "tokens": "UTF-8 bytes as numbers, those that came since the last answer",
        "past": "`present` of the last answer; before the first, empty: size 0 in the fourth dimension",
    },
    dynamic={"tokens": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "past"}},
    sizes={"batch": (1, 9), "length": (1, 128), "past": (0, 127)},
    outputs={"logits": "logits", "present": "tensor"},
    hyperparameters=GPTHyperparameters,
    data=data,
    model=model,
    student=student,
    serve=networks.Decoder,
    infer=losses.nats,
    sample=lambda sizes, decoder: decoder.sample(sizes),
    search={"lr": Range(1e-3, 2e-2, log=True), "width": (64, 96, 128), "layers": (2, 3, 4)},
)
