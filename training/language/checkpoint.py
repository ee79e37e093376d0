"""Language models before export: sizes and named weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidModelFile

Array = NDArray[Any]  # float32

BLOCK = 32  # weights that share a scale; rows of matrices have to be a multiple of it


class Weights(Protocol):
    """Weights by Hugging Face's names, as float32; matrices are (outputs, inputs)."""

    def __call__(self, name: str, /) -> Array: ...


def check_positive(label: str, value: Any) -> float:
    """Return a number, which has to be positive and finite.

    Raises:
        InvalidModelFile: it is not, or no number.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if 0 < float(value) < math.inf:
                return float(value)
    raise InvalidModelFile(f"{label} is {repr(value)[:60]}, and has to be a positive number")


def check_layers(layers: int, tensors: int) -> None:
    """Refuse more layers than tensors, before a name is made for each.

    Raises:
        InvalidModelFile: there are more.
    """
    if layers > tensors:
        raise InvalidModelFile(f"the model has {tensors} tensors, too few for {layers} layers")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding: base, and divisors of its frequencies.

    `interleaved` pairs neighbouring values, as GGUF files of the architecture llama do; otherwise
    value i is paired with value i + size / 2.
    """

    base: float
    interleaved: bool = False
    divisors: tuple[float, ...] = ()  # one for each pair; empty: all 1

    def tables(self, size: int, context: int) -> tuple[Array, Array]:
        """Return cosines and sines, each of shape (context, size / 2)."""
        frequencies = self.base ** (-np.arange(0, size, 2) / size)
        if self.divisors:
            frequencies = frequencies / np.array(self.divisors)
        angles = np.outer(np.arange(context), frequencies)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Sizes of a decoder of the llama family."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    context: int
    epsilon: float
    rotary: Rotary
    tied: bool  # the head is the embedding
    biased: bool  # queries, keys and values have biases

    def check(self) -> None:
        """Refuse sizes that the exported operators cannot have.

        Raises:
            InvalidModelFile: a size is not positive, or does not fit the blocks or the heads.
        """
        positive = ("layers", "width", "heads", "kv_heads", "head_size", "inner", "vocabulary")
        for name in (*positive, "context"):
            if getattr(self, name) < 1:
                raise InvalidModelFile(f"{name} is {getattr(self, name)}, and has to be positive")
        for name, value in {
            "epsilon": self.epsilon,
            "base of the rotation": self.rotary.base,
        }.items():
            check_positive(f"the {name}", value)
        for value in self.rotary.divisors:
            check_positive("a divisor of the rotation", value)
        if self.heads % self.kv_heads:
            raise InvalidModelFile(
                f"{self.heads} attention heads are no multiple of {self.kv_heads} key-value heads"
            )
        queries = self.heads * self.head_size
        sizes = {"width": self.width, "inner size": self.inner, "size of all heads": queries}
        for name, size in sizes.items():
            if size % BLOCK:
                raise InvalidModelFile(f"a {name} of {size} is no multiple of {BLOCK}")
        if self.head_size % 8:
            raise InvalidModelFile(f"a head size of {self.head_size} is no multiple of 8")


@dataclass(frozen=True, slots=True)
class EncoderSizes:
    """Sizes and pooling of an encoder of the BERT family."""

    layers: int
    width: int
    heads: int
    context: int
    epsilon: float
    activation: str  # gelu, gelu_new, relu or silu
    first_position: int = 0  # RoBERTa's positions begin after the padding token's number
    types: bool = True  # has token types (segments)
    pooling: str = "mean"  # mean, cls, or score: a reranker's classifier
    normalised: bool = True
    classifier: str = ""  # form of the reranker's classifier: "bert" or "roberta"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Model to import: sizes, weights, and the package's text files."""

    architecture: str
    sizes: DecoderSizes | EncoderSizes
    weights: Weights
    assets: Mapping[str, str] = field(default_factory=dict)  # file name: content


def decoder_names(sizes: DecoderSizes) -> list[str]:
    """Return the names of all weights of a decoder.

    >>> sizes = DecoderSizes(1, 32, 2, 1, 16, 64, 100, 8, 1e-5, Rotary(1e4), True, False)
    >>> decoder_names(sizes)[:3]
    ['model.embed_tokens.weight', 'model.norm.weight', 'model.layers.0.input_layernorm.weight']
    """
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    if not sizes.tied:
        names.append("lm_head.weight")
    parts = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj"]
    parts += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    projections = [f"self_attn.{part}_proj" for part in "qkv"]
    for layer in range(sizes.layers):
        stem = f"model.layers.{layer}"
        names += [f"{stem}.{part}.weight" for part in (*parts, *projections)]
        if sizes.biased:
            names += [f"{stem}.{part}.bias" for part in projections]
    return names


def decoder_shapes(sizes: DecoderSizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a decoder by its name."""
    width, inner = sizes.width, sizes.inner
    queries, keys = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    matrices = {
        "embed_tokens": (sizes.vocabulary, width),
        "lm_head": (sizes.vocabulary, width),
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    shapes = {}
    for name in decoder_names(sizes):
        part, kind = name.split(".")[-2:]
        shape: tuple[int, ...] = matrices.get(part, (width,))
        shapes[name] = shape[:1] if kind == "bias" else shape
    return shapes
