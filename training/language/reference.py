"""Plain numpy forward passes, with which exported graphs are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from training.language.checkpoint import Array, DecoderSizes, EncoderSizes, Rotary, Weights

Tokens = NDArray[np.int64]


def decoder_logits(
    sizes: DecoderSizes, weights: Weights, tokens: Tokens, peaks: list[float] | None = None
) -> Array:
    """Return a decoder's logits (tokens, vocabulary) for one row of tokens.

    `peaks` receives the largest input of each layer's down projection.
    """
    x: Array = weights("model.embed_tokens.weight")[tokens]
    for layer in range(sizes.layers):
        stem = f"model.layers.{layer}"
        y = _rms_norm(x, weights(f"{stem}.input_layernorm.weight"), sizes.epsilon)
        x = x + _attend(sizes, weights, f"{stem}.self_attn", y)
        y = _rms_norm(x, weights(f"{stem}.post_attention_layernorm.weight"), sizes.epsilon)
        gate = y @ weights(f"{stem}.mlp.gate_proj.weight").T
        up = y @ weights(f"{stem}.mlp.up_proj.weight").T
        gated = _silu(gate) * up
        if peaks is not None:
            peaks.append(float(np.abs(gated).max()))
        x = x + gated @ weights(f"{stem}.mlp.down_proj.weight").T
    x = _rms_norm(x, weights("model.norm.weight"), sizes.epsilon)
    head = weights("model.embed_tokens.weight" if sizes.tied else "lm_head.weight")
    return x @ head.T


def _attend(sizes: DecoderSizes, weights: Weights, stem: str, x: Array) -> Array:
    heads = []
    for part, count in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
        y = x @ weights(f"{stem}.{part}_proj.weight").T
        if sizes.biased:
            y = y + weights(f"{stem}.{part}_proj.bias")
        heads.append(y.reshape(len(x), count, sizes.head_size).transpose(1, 0, 2))
    q, k, v = heads
    q, k = _rotate(sizes.rotary, q), _rotate(sizes.rotary, k)
    shared = sizes.heads // sizes.kv_heads  # query heads that share a key-value head
    k, v = k.repeat(shared, axis=0), v.repeat(shared, axis=0)
    causal = np.triu(np.full((len(x), len(x)), -np.inf, np.float32), 1)
    y = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(sizes.head_size) + causal) @ v
    y = y.transpose(1, 0, 2).reshape(len(x), -1)
    result: Array = y @ weights(f"{stem}.o_proj.weight").T
    return result


def _rotate(rotary: Rotary, x: Array) -> Array:
    """Rotate queries or keys (heads, tokens, size) by their positions."""
    cos, sin = rotary.tables(x.shape[2], x.shape[1])
    if rotary.interleaved:
        first, second = x[..., ::2], x[..., 1::2]
    else:
        first, second = np.split(x, 2, axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    if rotary.interleaved:
        return np.stack(turned, axis=-1).reshape(x.shape)
    return np.concatenate(turned, axis=-1)


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    result: Array = x / scale * weight
    return result


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return result


def log_softmax(x: Array) -> Array:
    """Return the logarithm of the softmax over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def _gelu(x: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    result: Array = x * (1 + erf(x / math.sqrt(2))) / 2
    return result


def _gelu_new(x: Array) -> Array:
    inside = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    result: Array = x * (1 + np.tanh(inside)) / 2
    return result


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "relu": _relu,
    "silu": _silu,
}


def encoder_vector(
    sizes: EncoderSizes, weights: Weights, tokens: Tokens, types: Tokens | None = None
) -> Array:
    """Return an encoder's vector or score for one row of tokens."""
    positions = np.arange(len(tokens)) + sizes.first_position
    x = weights("embeddings.word_embeddings.weight")[tokens]
    x = x + weights("embeddings.position_embeddings.weight")[positions]
    if sizes.types:
        table = weights("embeddings.token_type_embeddings.weight")
        x = x + table[np.zeros_like(tokens) if types is None else types]
    x = _layer_norm(sizes, weights, "embeddings.LayerNorm", x)
    for layer in range(sizes.layers):
        x = _encoder_layer(sizes, weights, f"encoder.layer.{layer}", x)
    return _pool(sizes, weights, x)


def _encoder_layer(sizes: EncoderSizes, weights: Weights, stem: str, x: Array) -> Array:
    size = sizes.width // sizes.heads
    q, k, v = (
        _linear(weights, f"{stem}.attention.self.{part}", x)
        .reshape(len(x), sizes.heads, size)
        .transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    y = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(size)) @ v
    y = y.transpose(1, 0, 2).reshape(len(x), -1)
    y = _linear(weights, f"{stem}.attention.output.dense", y)
    x = _layer_norm(sizes, weights, f"{stem}.attention.output.LayerNorm", x + y)
    y = ACTIVATIONS[sizes.activation](_linear(weights, f"{stem}.intermediate.dense", x))
    y = _linear(weights, f"{stem}.output.dense", y)
    return _layer_norm(sizes, weights, f"{stem}.output.LayerNorm", x + y)


def _pool(sizes: EncoderSizes, weights: Weights, x: Array) -> Array:
    if sizes.pooling == "score":
        first, last = classifier_names(sizes)
        return _linear(weights, last, np.tanh(_linear(weights, first, x[0])))
    vector = x[0] if sizes.pooling == "cls" else x.mean(axis=0)
    result: Array = vector / np.linalg.norm(vector) if sizes.normalised else vector
    return result


def classifier_names(sizes: EncoderSizes) -> tuple[str, str]:
    """Return names of a reranker's last two layers, around a tanh."""
    if sizes.classifier == "roberta":
        return "classifier.dense", "classifier.out_proj"
    return "pooler.dense", "classifier"


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights(f"{name}.weight").T + weights(f"{name}.bias")


def _layer_norm(sizes: EncoderSizes, weights: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(sizes.epsilon))
    result: Array = centred / scale * weights(f"{name}.weight") + weights(f"{name}.bias")
    return result
