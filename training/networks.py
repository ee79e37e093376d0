"""PyTorch network architectures: perceptron, convolutional, recurrent, GPT, text encoder.

An architecture that one recipe alone uses is in that recipe's file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import InvalidHyperparameter

Cell = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def mlp(inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU: (batch, ...) → (batch, outputs).

    `inputs` counts the numbers of a row, whatever its shape.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def cnn(
    outputs: int,
    *,
    channels: int = 1,
    side: int = 28,
    kernel: int = 3,
    widths: tuple[int, int] = (32, 64),
) -> nn.Sequential:
    """Return a convolutional network: (batch, channels, side, side) → (batch, outputs).

    Two convolutions of odd width `kernel`, each followed by ReLU and 2x2 max pooling, and a dense
    layer.
    """
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (side // 4) ** 2, outputs),
    )


class Recurrent(nn.Module):
    """Recurrent network (RNN, LSTM or GRU): (batch, time, features) → (batch, outputs).

    The outputs are computed from the last hidden state.
    """

    def __init__(
        self, cell: Cell, features: int, width: int, outputs: int, *, layers: int = 1
    ) -> None:
        super().__init__()
        self.cells = CELLS[cell](features, width, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(x)
        answer: Tensor = self.head(states[:, -1])
        return answer


class Block(nn.Module):
    """Transformer block: causal self-attention and a feed-forward part, both residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attend = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the transformer block; return hidden states, attention keys and attention values.

        `x` and the hidden states are (batch, length, width). `past` holds the keys and values of
        earlier tokens, (2, batch, heads, past, width / heads). The returned keys and values include
        them: (batch, heads, past + length, width / heads).
        """
        batch, length, width = x.shape
        qkv = self.attend(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        if past is None:
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            positions = torch.arange(k.shape[2], device=x.device)
            mask = positions[None] <= positions[past.shape[3] :, None]
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.think(x), k, v


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary position embedding to attention queries or keys (arXiv:2104.09864).

    Source: Su et al. 2021. The halves of (batch, heads, length, width) are real and imaginary
    parts, rotated by an angle that grows with the position.
    """
    cos, sin = (part.to(x.dtype) for part in rotation)
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


class GPT(nn.Module):
    """Decoder-only transformer, GPT: token ids (batch, length) → logits (batch, length, tokens)."""

    def __init__(self, *, width: int, heads: int, layers: int, tokens: int = 256) -> None:
        super().__init__()
        if width % (2 * heads):
            raise InvalidHyperparameter(
                f"width: {width} is not divisible by twice the {heads} heads"
            )
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.heads, self.size = heads, width // heads
        speeds = 1e-4 ** torch.linspace(0, 1, self.size // 2)  # radians a position
        self.register_buffer("speeds", speeds, persistent=False)
        self.speeds: Tensor
        self._init_weights(layers)

    def _init_weights(self, layers: int) -> None:
        """Initialize weight matrices: normal, deviation 0.02, smaller into the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                is_residual = name.endswith(("out.weight", "think.3.weight"))
                deviation = 0.02 / math.sqrt(2 * layers) if is_residual else 0.02
                nn.init.normal_(parameter, std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rotation = self.rotation(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x, _, _ = block(x, rotation)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotary embedding's angles at token positions."""
        angles = positions[:, None] * self.speeds
        return angles.cos(), angles.sin()


class Encoder(nn.Module):
    """Transformer encoder for text: token ids (batch, length) → (batch, outputs).

    Token 0 is padding: neither attended to nor counted. Tokens (batch, length, pieces) are words of
    several pieces, whose vectors are added. The head reads the mean word vector before and after
    the layers. `length` is the longest text it takes.
    """

    def __init__(
        self,
        words: int,
        length: int,
        outputs: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.3,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        with torch.no_grad():
            self.words.weight[1:].normal_(std=scale)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Dropout(dropout), nn.Linear(2 * width, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.words(tokens)
        if tokens.dim() == 3:
            vectors, tokens = vectors.sum(2), tokens[:, :, 0]
        padding = tokens == 0
        words = self.dropout(vectors + self.places[: tokens.shape[1]])
        states = self.layers(words, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(states.dtype)
        mean = (torch.cat([words, states], 2) * kept).sum(1) / kept.sum(1).clamp(min=1)
        answer: Tensor = self.head(mean)
        return answer


class After(nn.Module):
    """Network module followed by a function applied to its output.

    `forward` keeps the model's argument names, because exporters name the graph's inputs after
    them.
    """

    def __init__(
        self, model: nn.Module, then: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    ) -> None:
        super().__init__()
        self.model = model
        self.forward = functools.wraps(model.forward)(lambda *inputs: then(self.model(*inputs)))


def softmax(temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return a function that computes softmax of logits divided by `temperature`.

    Logits and probabilities are (batch, classes).
    """
    if temperature == 1:
        return nn.Softmax(dim=-1)
    return lambda logits: functional.softmax(logits / temperature, dim=-1)


def pixel_softmax(logits: Tensor) -> Tensor:
    """Compute class probabilities of pixels, with the classes as last axis.

    Logits are (batch, classes, height, width), probabilities (batch, height, width, classes).
    """
    return functional.softmax(logits, dim=1).movedim(1, -1)


def best(count: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function that picks the `count` items of highest score.

    It maps scores (batch, items) to items and scores, both (batch, count), highest score first.
    """

    def choose(scores: Tensor) -> tuple[Tensor, Tensor]:
        top = scores.topk(count)
        return top.indices, top.values

    return choose
