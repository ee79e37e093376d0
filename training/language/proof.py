"""Proof that an exported language model computes what its checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.errors import ExportFailed, InvalidModelFile
from training.export import graphs
from training.export.graphs import first_line
from training.language.checkpoint import Array, DecoderSizes, EncoderSizes, Weights
from training.language.graph.decoder import QuantisedDecoder, decoder_graph
from training.language.reference import Tokens, decoder_logits, encoder_vector, log_softmax

TEXT = """The capital of France is Paris, and the capital of Italy is Rome. Water boils at one
hundred degrees. A mayfly lives for a day, a tortoise for a hundred years and more.
def double(number):
    return 2 * number
Wie spät ist es? Il est 8 h 15. 東京 is 日本's capital; 🙂 needs four bytes."""
LENGTHS = (1, 2, 17, 64)  # tokens of a prompt; the rest of the text follows from the cache
SENTENCES = ("", "Paris", "The capital of France is Paris.", TEXT)
DECODER_ATOL = 1e-4  # share of the largest logit, computed in float32
ROUNDED_RTOL = 0.2  # share of the logits' norm, with inputs rounded to 8 bits
ENCODER_ATOL = 1e-5


def tokenizer(assets: Mapping[str, str]) -> Tokenizer:
    """Load a package's tokenizer.

    Raises:
        InvalidModelFile: it cannot be loaded.
    """
    try:
        return Tokenizer.from_str(assets["tokenizer.json"])
    except Exception as error:  # the library raises nothing more special
        raise InvalidModelFile(f"tokenizer.json cannot be loaded: {first_line(error)}") from error


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        InvalidModelFile: the tokenizer belongs to another model.
    """
    if not tokens:
        raise InvalidModelFile("the tokenizer makes no token of a text")
    if max(tokens) >= vocabulary:
        raise InvalidModelFile(
            f"the tokenizer makes token {max(tokens)}, and the model has {vocabulary} tokens"
        )


# --- decoders


def prove_decoder(
    decoder: QuantisedDecoder, model: onnx.ModelProto, original: Array, tokens: Tokens
) -> list[str]:
    """Compare a decoder with plain forward passes; return the report's lines.

    `original` are the logits (tokens, vocabulary) before quantisation.

    Raises:
        ExportFailed: it is not near enough.
    """
    rounded = decoder_logits(decoder.sizes, decoder.weights, tokens)
    exact = decoder_graph(decoder, accuracy_level=0, every_logit=True)
    lengths = sorted({min(length, len(tokens)) for length in LENGTHS})
    graph = Cached(exact, decoder.sizes)
    off = max(_graph_difference(graph, tokens, length, rounded) for length in lengths)
    if not off <= DECODER_ATOL:
        raise ExportFailed(
            f"the graph differs from a plain forward pass: logits are off by {off:.1e}"
        )
    shipped = Cached(model, decoder.sizes)
    last = np.stack([shipped.run(tokens[:length], restart=True)[-1] for length in lengths])
    noise = _relative(last, rounded[[length - 1 for length in lengths]])
    if not noise <= ROUNDED_RTOL:
        raise ExportFailed(f"with inputs rounded to 8 bits, logits are off by {noise:.0%}")
    sizes = ", ".join(map(str, lengths))
    return [
        f"graph: equals a plain forward pass at {sizes} tokens and from its cache, by {off:.1e} "
        f"of the largest logit; inputs rounded to 8 bits: {noise:.1%}",
        f"rounding: {Loss.of(original, shipped.each(tokens))}; "
        f"by the weights alone: {Loss.of(original, rounded)}",
    ]


@dataclass(frozen=True, slots=True)
class Loss:
    """Difference between the next tokens of a decoder and of its original."""

    places: int
    agreement: float  # share of places with the same likeliest token
    divergence: float  # mean Kullback-Leibler divergence from the original, nats

    @classmethod
    def of(cls, original: Array, rounded: Array) -> Loss:
        """Compare logits (tokens, vocabulary)."""
        same = original.argmax(-1) == rounded.argmax(-1)
        before, after = (log_softmax(logits.astype(np.float64)) for logits in (original, rounded))
        divergences = (np.exp(before) * (before - after)).sum(-1)
        return cls(len(original), float(same.mean()), float(divergences.mean()))

    def __str__(self) -> str:
        return (
            f"the likeliest of {self.places} next tokens stays the same in {self.agreement:.0%}, "
            f"the mean divergence is {self.divergence:.3f} nats"
        )


class Cached:
    """Decoder session that keeps the cache between runs."""

    def __init__(self, model: onnx.ModelProto | bytes, sizes: DecoderSizes) -> None:
        self._session: Any = _open(model)
        self._names = [output.name for output in self._session.get_outputs()]
        self._empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_size), np.float32)
        self._cache: list[Array] = []

    def run(self, tokens: Tokens, *, restart: bool = False) -> Array:
        """Run the next tokens (n,); return logits (n or 1, vocabulary)."""
        inputs = [item.name for item in self._session.get_inputs()][2:]
        if restart or not self._cache:
            self._cache = [self._empty] * len(inputs)
        total = self._cache[0].shape[2] + len(tokens)
        feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, total), np.int64)}
        feeds.update(zip(inputs, self._cache, strict=True))
        logits, *self._cache = self._session.run(self._names, feeds)
        row: Array = logits[0]
        return row

    def each(self, tokens: Tokens) -> Array:
        """Run tokens one by one from the start; return logits (n, vocabulary)."""
        places = range(len(tokens))
        return np.concatenate([self.run(tokens[at : at + 1], restart=not at) for at in places])


def _open(model: onnx.ModelProto | bytes) -> onnxruntime.InferenceSession:
    try:
        return graphs.open_session(model)
    except Exception as error:  # native errors of any kind
        raise ExportFailed(f"ONNX Runtime does not load the graph: {first_line(error)}") from error


def _graph_difference(graph: Cached, tokens: Tokens, length: int, expected: Array) -> float:
    """Return the largest error of logits: prompt, then token by token."""
    parts = [graph.run(tokens[:length], restart=True)]
    rest = tokens[length : length + 4]
    parts += [graph.run(rest[at : at + 1]) for at in range(len(rest))]
    answer = np.concatenate(parts)
    expected = expected[: len(answer)]
    return float(np.abs(answer - expected).max() / np.abs(expected).max())


def _relative(answer: Array, expected: Array) -> float:
    centred = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.linalg.norm(answer - expected) / np.linalg.norm(centred))


# --- encoders


def prove_encoder(
    sizes: EncoderSizes, model: onnx.ModelProto, weights: Weights, tokens: Tokenizer
) -> list[str]:
    """Compare an encoder with plain forward passes, singly and padded.

    Raises:
        ExportFailed: it is not near enough.
    """
    encoded = tokens.encode_batch(list(SENTENCES))
    rows = [np.array(item.ids[: sizes.context], np.int64) for item in encoded]
    rows = [row for row in rows if len(row)]
    expected = np.stack([encoder_vector(sizes, weights, row) for row in rows])
    session = _open(model)
    single = np.concatenate([session.run(None, _batch(session, [row]))[0] for row in rows])
    padded = session.run(None, _batch(session, rows))[0]
    off = max(float(np.abs(answer - expected).max()) for answer in (single, padded))
    limit = ENCODER_ATOL * max(1.0, float(np.abs(expected).max()))
    if not off <= limit:
        raise ExportFailed(f"the graph differs from a plain forward pass by {off:.1e}")
    lengths = ", ".join(str(len(row)) for row in rows)
    return [f"graph: equals a plain forward pass at {lengths} tokens and padded, by {off:.1e}"]


def _batch(session: Any, rows: Sequence[Tokens]) -> dict[str, NDArray[np.int64]]:
    """Return inputs of texts of different lengths, padded by token 0."""
    longest = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    mask = np.stack([np.arange(longest) < len(row) for row in rows]).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {item.name: feeds[item.name] for item in session.get_inputs()}
