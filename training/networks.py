"""Networks for recipes: perceptrons, convolutions, recurrences, attention; for texts, sounds, tables and tastes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.errors import InvalidHyperparameter

Cell = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
WIDEST = 8  # numbers for a category


def mlp(inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """(batch, ...) with `inputs` numbers each → (batch, outputs); ReLU between the layers."""
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
    """(batch, channels, side, side) → (batch, outputs): conv, pool, conv, pool, dense; `kernel` is odd."""
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
    """(batch, time, features) → (batch, outputs), read off the last state of a vanilla RNN, an LSTM or a GRU."""

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
    """Causal self-attention and a feed-forward part, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attend = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], past: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, length, width) → the same, keys and values (batch, heads, past + length, width / heads)."""
        batch, length, width = x.shape
        q, k, v = (
            self.attend(self.norm(x))
            .view(batch, length, 3, self.heads, width // self.heads)
            .unbind(2)
        )
        q, k, v = (
            _turned(q.transpose(1, 2), turns),
            _turned(k.transpose(1, 2), turns),
            v.transpose(1, 2),
        )
        if past is None:
            heard = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            places = torch.arange(k.shape[2], device=x.device)
            seen = places[None] <= places[past.shape[3] :, None]
            heard = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(heard.transpose(1, 2).reshape(batch, length, width))
        return x + self.think(x), k, v


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary places: halves of (batch, heads, length, width) as real and imaginary parts, turned by their place."""
    cos, sin = (turn.to(x.dtype) for turn in turns)
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


class GPT(nn.Module):
    """Numbers of bytes or tokens (batch, length) → logits of the next one (batch, length, tokens)."""

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
        self.register_buffer(
            "speeds", 1e-4 ** torch.linspace(0, 1, self.size // 2), persistent=False
        )
        self.speeds: Tensor
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                last = name.endswith(
                    ("out.weight", "think.3.weight")
                )  # of a block: what is added begins small
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        turns = self.turns(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x, _, _ = block(x, turns)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def turns(self, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places[:, None] * self.speeds
        return angles.cos(), angles.sin()


class Decoder(nn.Module):
    """A GPT that is served: what it keeps of the bytes before comes in as `past`, and goes out as `present` with more.

    tokens (batch, length), past (2 x layers, batch, heads, past, size), keys and values of each layer in turn, empty
    at first → logits (batch, length, tokens), present (2 x layers, batch, heads, past + length, size).
    """

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, tokens: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gpt = self.gpt
        if past is None:
            past = self.empty(len(tokens), device=tokens.device)
        x, present = gpt.embed(tokens), []
        before, length = past.shape[3], tokens.shape[1]
        turns = gpt.turns(torch.arange(length, device=tokens.device) + before)
        for number, block in enumerate(gpt.blocks):
            x, *kept = block(x, turns, past[2 * number : 2 * number + 2])
            present += kept
        return gpt.head(gpt.norm(x)), torch.stack(present)

    def sample(self, sizes: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """Made-up inputs, with which a recipe proves the graph; sizes of batch, length and past."""
        generator = torch.Generator().manual_seed(sum(sizes.values()))
        past = self.empty(sizes["batch"], sizes["past"])
        tokens = torch.randint(
            self.gpt.embed.num_embeddings, (sizes["batch"], sizes["length"]), generator=generator
        )
        return tokens, torch.randn(past.shape, generator=generator)

    def empty(self, batch: int, past: int = 0, device: torch.device | None = None) -> Tensor:
        """A past of that many bytes, all zeros."""
        return torch.zeros(
            2 * len(self.gpt.blocks), batch, self.gpt.heads, past, self.gpt.size, device=device
        )


class Pieces(nn.Module):
    """Texts as bytes (batch, length), padded by 0 → vectors of length 1 (batch, width): a weighted sum over pieces.

    A piece is 3 to 5 letters or digits in a row, with the edge of its word where it reaches it; upper case counts as
    lower. Read as a number, modulo `buckets`, it says which vector and weight are its own: no word is unknown. A text
    without a piece is all zeros.
    """

    def __init__(self, buckets: int, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.vectors, self.weights = nn.Embedding(buckets, width), nn.Embedding(buckets, 1)
        nn.init.normal_(self.vectors.weight, std=width**-0.5)
        self.dropout = nn.Dropout(dropout)
        letters = torch.zeros(256, dtype=torch.int64)  # 0: none, so between words
        for number, letter in enumerate("0123456789abcdefghijklmnopqrstuvwxyz", 1):
            letters[[ord(letter), ord(letter.upper())]] = number
        self.register_buffer("letters", letters, persistent=False)
        self.letters: Tensor

    def numbers(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Of the pieces at each place (batch, 3 x (length + 1)), and which of them are inside one word."""
        letters = functional.pad(self.letters[text], (1, 4))
        found, inside = [], []
        for length in (3, 4, 5):
            window = [letters[:, at : at + text.shape[1] + 1] for at in range(length)]
            number, whole = (
                torch.full_like(window[0], length),
                torch.ones_like(window[0], dtype=torch.bool),
            )
            for letter in window:
                number = 37 * number + letter
            for letter in window[1:-1]:
                whole = whole & (letter > 0)
            found.append(number % len(self.vectors.weight))
            inside.append(whole)
        return torch.cat(found, 1), torch.cat(inside, 1)

    @torch.no_grad()
    def weigh(self, *texts: Tensor) -> None:
        """Begin with the logarithm of how rare each piece is in `texts`, each (n, length)."""
        seen = torch.ones(len(self.vectors.weight))
        for text in (row for rows in texts for row in rows):
            numbers, inside = self.numbers(text[None])
            seen[numbers[inside].unique()] += 1  # type: ignore[no-untyped-call]
        rarity = (sum(map(len, texts)) / seen).log()
        self.weights.weight.copy_(rarity.clamp(min=0.05).log()[:, None])

    def forward(self, text: Tensor) -> Tensor:
        numbers, inside = self.numbers(text)
        weights = self.dropout(self.weights(numbers).squeeze(-1).exp() * inside)
        if self.training:  # the same, and quicker; exported, it would be a loop
            summed = functional.embedding_bag(
                numbers, self.vectors.weight, per_sample_weights=weights, mode="sum"
            )
        else:
            summed = (weights.unsqueeze(1) @ self.vectors(numbers)).squeeze(1)
        length: Tensor = summed.norm(dim=-1, keepdim=True)
        return summed / length.clamp(min=1e-12)


class Encoder(nn.Module):
    """Self-attention over numbers of words (batch, length[, pieces]), where 0 is padding → (batch, outputs).

    A word of several pieces is their sum. Outputs are read off the mean word, as it came and as its neighbours changed
    it. `length` is the longest that it takes; padding is neither attended to nor counted.
    """

    def __init__(
        self, words: int, length: int, outputs: int, *, width: int = 64, heads: int = 4, layers: int = 1,
        dropout: float = 0.3, scale: float = 0.1,
    ) -> None:  # fmt: skip
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


class Evidence(nn.Module):
    """Complement naive Bayes (Rennie et al. 2003): numbers (batch, ...), 0 is none → (batch, classes).

    Each number speaks for each class as loudly as it is rare, by how seldom the other classes have it: counted in
    `numbers` (n, ...) of the classes `target` (n,), not trained. So it overrates no word that a class has by chance.
    """

    rarity: Tensor
    weights: Tensor

    def __init__(
        self, numbers: NDArray[Any], target: NDArray[Any], *, smoothing: float = 0.4
    ) -> None:
        super().__init__()
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.naive_bayes import ComplementNB

        flat = numbers.reshape(len(numbers), -1)
        row, place = np.nonzero(flat)
        counts = csr_matrix(
            (np.ones(len(row)), (row, flat[row, place] - 1)), (len(flat), flat.max())
        )
        loudness = TfidfTransformer().fit(counts)
        heard = ComplementNB(alpha=smoothing).fit(loudness.transform(counts), target)
        weights = heard.feature_log_prob_ - heard.feature_log_prob_.mean(axis=0)
        self.register_buffer(
            "weights", torch.from_numpy(np.pad(weights.T, [(1, 0), (0, 0)])).float()
        )
        self.register_buffer("rarity", torch.from_numpy(np.pad(loudness.idf_, (1, 0))).float())

    def forward(self, numbers: Tensor) -> Tensor:
        flat = numbers.flatten(1)
        loud = self.rarity[flat]
        said = (loud.unsqueeze(1) @ self.weights[flat]).squeeze(1)
        answer: Tensor = said / loud.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return answer


class LogMel(nn.Module):
    """Audio (batch, samples) → log power in bands as wide as hearing has them (batch, bands, frames), mean 0 in each.

    The Fourier transform of each window is a convolution with fixed waves, so that it is part of any graph. Loudness
    is a constant in the logarithm, which taking the mean away removes.
    """

    waves: Tensor
    triangles: Tensor

    def __init__(
        self, rate: int, *, bands: int = 32, window: int = 256, hop: int = 80, lowest: float = 60.0
    ) -> None:
        super().__init__()
        frequency = torch.arange(window // 2 + 1, dtype=torch.float64)
        angle = (
            2 * math.pi / window * frequency[:, None] * torch.arange(window, dtype=torch.float64)
        )
        waves = torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(
            window, dtype=torch.float64
        )
        mels = torch.linspace(_mel(lowest), _mel(rate / 2), bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        hertz = frequency * rate / window
        triangles = torch.minimum(
            (hertz - low) / (centre - low), (high - hertz) / (high - centre)
        ).clamp(min=0)
        self.register_buffer("waves", waves[:, None].float(), persistent=False)
        self.register_buffer("triangles", triangles.float(), persistent=False)
        self.hop = hop

    def forward(self, audio: Tensor) -> Tensor:
        cosine, sine = functional.conv1d(audio.unsqueeze(1), self.waves, stride=self.hop).chunk(
            2, 1
        )
        bands = (self.triangles @ (cosine**2 + sine**2) + 1e-6).log()
        return bands - bands.mean((1, 2), keepdim=True)


def _mel(hertz: float) -> float:
    """Pitch as it is heard; O'Shaughnessy's formula."""
    return 2595 * math.log10(1 + hertz / 700)


class Listener(nn.Module):
    """Audio (batch, samples) of any length from a tenth of a second → (batch, outputs): three convolutions over time.

    What they find is pooled by mean and maximum.
    """

    def __init__(
        self, rate: int, outputs: int, *, bands: int = 32, width: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [LogMel(rate, bands=bands)]
        for channels in (bands, width):
            layers += [
                nn.Conv1d(channels, width, 5, padding=2),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.MaxPool1d(2),
            ]
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(
            *layers, nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, audio: Tensor) -> Tensor:
        heard = self.layers(audio)
        answer: Tensor = self.head(torch.cat([heard.mean(2), heard.amax(2)], 1))
        return answer


class Table(nn.Module):
    """Numbers (batch, k), NaN where there is none, and codes of categories (batch, m) → (batch, outputs).

    `clean` is asked first. What it takes to fill a gap (the median), to mark it, and to bring a column to mean 0 and
    deviation 1 is learned from `rows`, inputs of the training part. `categories` says how many codes each column has.
    """

    median: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, clean: nn.Module, rows: Mapping[str, NDArray[Any]], categories: Sequence[int], hidden: Sequence[int],
        outputs: int, *, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.clean = clean
        numbers, _ = clean(*(torch.from_numpy(values) for values in rows.values()))
        median = numbers.nanmedian(0).values.nan_to_num()
        filled = torch.where(numbers.isnan(), median, numbers)
        self.register_buffer("median", median)
        self.register_buffer("mean", filled.mean(0))
        self.register_buffer("deviation", filled.std(0).clamp(min=1e-6))
        widths = [min(count, WIDEST) for count in categories]
        self.words = nn.ModuleList(
            nn.Embedding(count, width) for count, width in zip(categories, widths, strict=True)
        )
        self.layers = mlp(2 * numbers.shape[1] + sum(widths), hidden, outputs, dropout)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        numbers, codes = self.clean(numbers, codes)
        gaps = numbers.isnan()
        scaled = (torch.where(gaps, self.median, numbers) - self.mean) / self.deviation
        words = [embedding(codes[:, column]) for column, embedding in enumerate(self.words)]
        answer: Tensor = self.layers(torch.cat([scaled, gaps.to(scaled.dtype), *words], 1))
        return answer


class TwoTowers(nn.Module):
    """What a user took (batch, taken), numbers of items with 0 for none, and its ratings → scores (batch, items + 1).

    One tower makes a point of a user's history, the other has one for each item; near is liked. What was taken already
    scores -1e9, and so does item 0. Numbers that no item has count as none.
    """

    def __init__(
        self, items: int, *, width: int = 32, hidden: int = 64, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.items, self.width = items, width
        self.taken = nn.Embedding(items + 1, width, padding_idx=0)
        self.user = nn.Sequential(
            nn.Linear(2 * width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.item = nn.Embedding(items + 1, width)
        self.popularity = nn.Parameter(torch.zeros(items + 1))
        for embedding in (self.taken, self.item):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, history: Tensor, ratings: Tensor) -> Tensor:
        known = (history > 0) & (history <= self.items)
        history = torch.where(known, history, torch.zeros_like(history))
        kept = known.unsqueeze(-1).to(ratings.dtype)
        words = self.taken(history) * kept
        count = kept.sum(1).clamp(min=1)
        liked = (words * (ratings.unsqueeze(-1) - 3)).sum(1) / count
        user = self.user(torch.cat([words.sum(1) / count, liked], 1))
        scores = user @ self.item.weight.T + self.popularity
        none = torch.zeros_like(scores)
        seen = none.scatter(1, history, torch.ones_like(ratings)) + none.scatter(
            1, torch.zeros_like(history), 1.0
        )
        masked: Tensor = scores.masked_fill(seen > 0, -1e9)
        return masked


class After(nn.Module):
    """`model`, and then something done to what it answers. Exporters see the arguments of `model`, by their names."""

    def __init__(
        self, model: nn.Module, then: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    ) -> None:
        super().__init__()
        self.model = model
        self.forward = functools.wraps(model.forward)(lambda *inputs: then(self.model(*inputs)))


def softmax(temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """From logits (batch, classes) their probabilities, the less sure the higher the temperature."""
    if temperature == 1:
        return nn.Softmax(dim=-1)
    return lambda logits: functional.softmax(logits / temperature, dim=-1)


def best(count: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From scores (batch, items) the numbers and scores of the `count` highest, highest first, (batch, count) each."""

    def choose(scores: Tensor) -> tuple[Tensor, Tensor]:
        found = scores.topk(count)
        return found.indices, found.values

    return choose
