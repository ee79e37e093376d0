"""Small torch networks that exporters get wrong, with their export specifications."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from training.export.torch_exporter import Dim, Spec


def numbers(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def integers(high: int, *shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).integers(0, high, shape))


class Recurrent(nn.Module):
    """Recurrent network: word ids (batch, length) → (batch, 3)."""

    def __init__(self, cell: type[nn.RNNBase], *, bidirectional: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.cells = cell(6, 8, batch_first=True, bidirectional=bidirectional)  # type: ignore[arg-type]
        self.head = nn.Linear(16 if bidirectional else 8, 3)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.cells(self.words(tokens))[0].mean(1))


class Heard(nn.Module):
    """Convolution and GRU: raw audio (batch, samples) → (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=4), nn.ReLU(), nn.Conv1d(8, 8, 5, stride=4), nn.ReLU()
        )
        self.cells = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, samples: Any) -> Any:
        return self.head(self.cells(self.front(samples[:, None]).transpose(1, 2))[0][:, -1])


class Encoder(nn.Module):
    """Self-attention: word ids (batch, length), 0 for padding → (batch, 3)."""

    def __init__(self, words: int = 20, length: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 16, padding_idx=0)
        self.places = nn.Parameter(torch.randn(length, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Any) -> Any:
        padding = tokens == 0
        states = self.layers(
            self.words(tokens) + self.places[: tokens.shape[1]], src_key_padding_mask=padding
        )
        kept = (~padding).unsqueeze(-1).to(states.dtype)
        return self.head((states * kept).sum(1) / kept.sum(1).clamp(min=1))


class Decoder(nn.Module):
    """Causal block: bytes (batch, length) and a key-value cache → logits and new cache.

    The cache has shape (2, batch, 2, past, 16).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, 32), nn.Embedding(64, 32)
        self.norm, self.attend, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.think = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)
        )
        self.head = nn.Linear(32, 256, bias=False)

    def forward(self, tokens: Any, past: Any) -> Any:
        batch, length, before = *tokens.shape, past.shape[3]
        x = self.bytes(tokens) + self.places(torch.arange(length) + before)
        q, k, v = (
            self.attend(self.norm(x)).view(batch, length, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        )
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        seen = torch.arange(before + length)[None] <= torch.arange(length)[:, None] + before
        weights = (q @ k.transpose(-1, -2) / 4).masked_fill(~seen, float("-inf")).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, 32))
        return self.head(x + self.think(x)), torch.stack([k, v])


class Recommender(nn.Module):
    """Recommender: users (batch,) and their seen items → the best 5 items and their scores.

    The seen items are BOOL (batch, 40).
    """

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(40, 8)

    def forward(self, user: Any, seen: Any) -> Any:
        best = (self.users(user) @ self.items.weight.T).masked_fill(seen, -1e9).topk(5)
        return best.values, best.indices


def _texts(sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Return random word ids; the second half of each row is padding."""
    tokens = integers(19, sizes["batch"], sizes["length"]) + 1
    tokens[:, (sizes["length"] + 1) // 2 :] = 0
    return (tokens,)


def _words(sizes: Mapping[str, int]) -> tuple[Any, ...]:
    return (integers(20, sizes["batch"], sizes["length"]),)


def spec(family: str) -> Spec:
    """Return a new network of `family` with the specification of its export."""
    torch.manual_seed(0)
    text = {"tokens": {0: "batch", 1: "length"}}
    dims = {"batch": Dim(1, 17), "length": Dim(1, 40)}
    match family:
        case "rnn":
            return Spec(Recurrent(nn.RNN), text, ["y"], dims, _words)
        case "bidirectional lstm":
            return Spec(Recurrent(nn.LSTM, bidirectional=True), text, ["y"], dims, _words)
        case "convolution into gru":
            sizes = {"batch": Dim(1, 9), "samples": Dim(40, 400)}
            axes = {"samples": {0: "batch", 1: "samples"}}
            return Spec(Heard(), axes, ["y"], sizes, lambda s: (numbers(s["batch"], s["samples"]),))
        case "encoder":
            return Spec(Encoder(), text, ["y"], dims | {"length": Dim(1, 64)}, _texts)
        case "decoder":
            sizes = {"batch": Dim(1, 5), "length": Dim(1, 24), "past": Dim(0, 40)}
            axes = text | {"past": {1: "batch", 3: "past"}}

            def tokens_and_past(s: Mapping[str, int]) -> tuple[Any, ...]:
                return integers(256, s["batch"], s["length"]), numbers(
                    2, s["batch"], 2, s["past"], 16
                )

            return Spec(Decoder(), axes, ["logits", "present"], sizes, tokens_and_past)
        case "recommender":
            rows = {"user": {0: "batch"}, "seen": {0: "batch"}}

            def users(s: Mapping[str, int]) -> tuple[Any, ...]:
                return integers(50, s["batch"]), integers(2, s["batch"], 40) > 0

            return Spec(Recommender(), rows, ["scores", "items"], {"batch": Dim(1, 17)}, users)
        case "perceptron":
            layers = nn.Sequential(
                nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10), nn.Softmax(-1)
            )
            return Spec(
                layers,
                {"x": {0: "batch"}},
                ["y"],
                {"batch": Dim()},
                lambda s: (numbers(s["batch"], 64),),
            )
    raise KeyError(family)
