"""GPT recipe: byte-level language model trained on Python's language reference.

Exported as a decoder with a key-value cache. Test: 2.29 bits a byte on 16 held-out topics; counted
pairs of bytes 3.63. Two minutes on a shared CPU. `python -m training.generate` writes text with the
served model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training import networks
from training.data import Dataset, texts
from training.fitting import losses
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class GPTHyperparameters(NetworkHyperparameters):
    epochs: int = 4  # passes over the training rows
    lr: float = 5e-3
    batch_size: int = 16
    clip: float = 1.0
    width: int = 96  # width of the blocks
    heads: int = 4  # attention heads; they divide the width
    layers: int = 3  # number of blocks
    length: int = 128  # bytes of context; the network is not trained on longer texts
    docstrings: bool = False  # also learn from the library's docstrings: four times as much text


class Decoder(nn.Module):
    """GPT with a key-value cache as input and output.

    tokens (batch, length), past (2 x layers, batch, heads, past, size) → logits (batch, length,
    tokens), present (2 x layers, batch, heads, past + length, size). The cache holds the keys and
    values of each layer in turn; it is empty at first, and `present` is the next call's `past`.
    """

    def __init__(self, gpt: networks.GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, tokens: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gpt = self.gpt
        if past is None:
            past = self.cache(len(tokens), device=tokens.device)
        x, present = gpt.embed(tokens), []
        before, length = past.shape[3], tokens.shape[1]
        rotation = gpt.rotation(torch.arange(length, device=tokens.device) + before)
        for number, block in enumerate(gpt.blocks):
            x, *keys_values = block(x, rotation, past[2 * number : 2 * number + 2])
            present += keys_values
        return gpt.head(gpt.norm(x)), torch.stack(present)

    def sample(self, sizes: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """Generate random tokens and key-value cache of the given sizes."""
        generator = torch.Generator().manual_seed(sum(sizes.values()))
        past = self.cache(sizes["batch"], sizes["past"])
        shape = (sizes["batch"], sizes["length"])
        tokens = torch.randint(self.gpt.embed.num_embeddings, shape, generator=generator)
        return tokens, torch.randn(past.shape, generator=generator)

    def cache(self, batch: int, past: int = 0, device: torch.device | None = None) -> Tensor:
        """Create a key-value cache of zeros for `past` tokens."""
        gpt = self.gpt
        return torch.zeros(2 * len(gpt.blocks), batch, gpt.heads, past, gpt.size, device=device)


def data(_: object, h: GPTHyperparameters) -> Dataset:
    return texts.language(h.length, with_docstrings=h.docstrings)


def model(h: GPTHyperparameters) -> networks.GPT:
    return networks.GPT(width=h.width, heads=h.heads, layers=h.layers)


def student(h: GPTHyperparameters) -> networks.GPT:
    return networks.GPT(width=h.width // 2, heads=h.heads // 2, layers=h.layers)


recipe = Recipe(
    name="gpt",
    description="The next byte of English about Python, and the one after it: a language model in "
    "small.",
    task="generation",
    preprocessing={
        "tokens": "UTF-8 bytes as numbers, those that came since the last answer",
        "past": "`present` of the last answer; before the first, empty: size 0 in the fourth "
        "dimension",
    },
    dynamic={"tokens": {0: "batch", 1: "length"}, "past": {1: "batch", 3: "past"}},
    sizes={"batch": (1, 9), "length": (1, 128), "past": (0, 127)},
    outputs={"logits": "logits", "present": "tensor"},
    hyperparameters=GPTHyperparameters,
    data=data,
    model=model,
    student=student,
    serve=Decoder,
    infer=losses.nats,
    sample=lambda sizes, decoder: decoder.sample(sizes),
    search={"lr": Range(1e-3, 2e-2, log=True), "width": (64, 96, 128), "layers": (2, 3, 4)},
)
