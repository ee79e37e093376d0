"""Sizes of decoders of the llama family from Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.errors import InvalidModelFile
from training.language.checkpoint import (
    DecoderSizes,
    Rotary,
    check_layers,
    check_positive,
    decoder_shapes,
)
from training.language.sources.safetensors_folder import Tensors, check_tensors, integer, number

ARCHITECTURES = ("llama", "qwen2")


def read_decoder(config: Mapping[str, Any], tensors: Tensors, context: int) -> DecoderSizes:
    """Return a decoder's sizes; its tensors have Hugging Face's names anyway.

    Raises:
        InvalidModelFile: config.json is incomplete, or does not fit the tensors.
    """
    width, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if config.get("use_sliding_window"):
        context = min(context, integer(config, "sliding_window"))
    head_size = integer(config, "head_dim", width // max(heads, 1))
    tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in tensors.places
    sizes = DecoderSizes(
        layers=integer(config, "num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=integer(config, "num_key_value_heads", heads),
        head_size=head_size,
        inner=integer(config, "intermediate_size"),
        vocabulary=integer(config, "vocab_size"),
        context=min(context, integer(config, "max_position_embeddings")),
        epsilon=number(config, "rms_norm_eps", 1e-6),
        rotary=_rotary(config, head_size),
        tied=tied,
        biased="model.layers.0.self_attn.q_proj.bias" in tensors.places,
    )
    sizes.check()
    check_layers(sizes.layers, len(tensors.places))
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise InvalidModelFile(f"hidden_act is {activation!r}, and only 'silu' can be imported")
    check_tensors(tensors, decoder_shapes(sizes), ignored=("rotary_emb.inv_freq", "lm_head.weight"))
    return sizes


def _rotary(config: Mapping[str, Any], size: int) -> Rotary:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise InvalidModelFile(f"config.json: the rope scaling is {scaling!r}, and no object")
    base = number({**config, **scaling}, "rope_theta", 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    part = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (None, 1, 1.0):
        raise InvalidModelFile(
            f"config.json: partial_rotary_factor is {part!r}, and only whole heads can be rotated"
        )
    if kind == "default":
        return Rotary(base)
    if kind == "linear":
        return Rotary(base, divisors=(_setting(scaling, "factor"),) * (size // 2))
    if kind == "llama3":
        return Rotary(base, divisors=tuple(_llama3_divisors(base, size, scaling)))
    raise InvalidModelFile(
        f"config.json: rope scaling {kind!r} is not supported; those that are: default, linear, "
        "llama3"
    )


def _llama3_divisors(base: float, size: int, scaling: Mapping[str, Any]) -> list[float]:
    """Return Llama 3.1's divisor of each rotary frequency.

    Slow rotations get slower; fast ones stay.
    """
    factor, low, high, original = (
        _setting(scaling, name)
        for name in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
    )
    if not low < high:
        raise InvalidModelFile(
            f"config.json: low_freq_factor is {low}, and has to be below high_freq_factor, {high}"
        )
    frequencies = base ** (-np.arange(0, size, 2) / size)
    turns = original * frequencies / (2 * np.pi)  # in the context it was trained with first
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return [float(1 / ((1 - part) / factor + part)) for part in smooth]


def _setting(scaling: Mapping[str, Any], name: str) -> float:
    """Return a positive number of the rope scaling."""
    return check_positive(f"config.json: {name!r} of the rope scaling", scaling.get(name))
