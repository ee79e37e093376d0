"""Read models of the llama family from GGUF files, llama.cpp's format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from training.errors import InvalidModelFile
from training.export.graphs import first_line
from training.language import assets
from training.language.checkpoint import (
    Array,
    Checkpoint,
    DecoderSizes,
    Rotary,
    check_layers,
    decoder_names,
    decoder_shapes,
)
from training.language.sources import gguf_tokenizer

# Architecture → whether queries and keys are stored in interleaved order.
ARCHITECTURES = {"llama": True, "qwen2": False}
ROTARY_DIVISORS = "rope_freqs.weight"  # factors of Llama 3's longer context
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return GGUF's name of a weight.

    >>> gguf_name("model.layers.3.self_attn.q_proj.bias"), gguf_name("model.norm.weight")
    ('blk.3.attn_q.bias', 'output_norm.weight')
    """
    stem, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer:
        return f"blk.{layer[1]}.{_NAMES[layer[2]]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def read(path: Path, context: int) -> Checkpoint:
    """Read a GGUF file; at most `context` tokens are served.

    Raises:
        InvalidModelFile: it is no GGUF file, its architecture is unknown, or tensors are missing.
    """
    try:
        reader = _Reader(path)
    except Exception as error:  # the reader has no errors of its own
        raise InvalidModelFile(f"{path} is no readable GGUF file: {first_line(error)}") from error
    metadata = Metadata({name: item.contents for name, item in reader.fields.items()})
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InvalidModelFile(
            f"architecture {architecture!r} is not known; those that can be imported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    weights = _weights(tensors)
    sizes = _sizes(metadata, architecture, tensors, context)
    _check_tensors(sizes, tensors)
    texts = {
        **gguf_tokenizer.assets(metadata, sizes.context),
        "config.json": assets.decoder_config(architecture, sizes),
    }
    return Checkpoint(architecture, sizes, weights, texts)


class _Reader(gguf.GGUFReader):
    """Reader that stops at the end of the file.

    The package's own goes on with empty parts, for as many as a list says that it has.
    """

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends before all that it says that it has")
        return super()._get(offset, dtype, count, override_order)


class Metadata:
    """Metadata of a GGUF file by name, with checked types."""

    def __init__(self, fields: Mapping[str, Callable[[], Any]]) -> None:
        self._fields = fields
        self._values: dict[str, Any] = {}  # lists of a whole vocabulary take seconds to decode

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or `default` if there is none."""
        if name not in self._fields:
            return default
        if name not in self._values:
            try:
                self._values[name] = self._fields[name]()
            except ValueError as error:  # also of a text that is no UTF-8
                raise InvalidModelFile(f"metadata {name!r} is not readable: {error}") from error
        return self._values[name]

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number.

        Raises:
            InvalidModelFile: it is missing without a default, or no number.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidModelFile(f"metadata {name!r} is {_shown(value)}, and has to be a number")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; raise InvalidModelFile as `number` does."""
        value = self.number(name, default)
        if not math.isfinite(value) or value != int(value):
            raise InvalidModelFile(f"metadata {name!r} is {value}, and has to be a whole number")
        return int(value)

    def text(self, name: str) -> str:
        """Return a text; raise InvalidModelFile if there is none."""
        value = self.get(name)
        if not isinstance(value, str):
            raise InvalidModelFile(f"metadata {name!r} is {_shown(value)}, and has to be a text")
        return value

    def items(self, name: str) -> list[Any]:
        """Return a list; raise InvalidModelFile if there is none."""
        value = self.get(name)
        if not isinstance(value, list):
            raise InvalidModelFile(f"metadata {name!r} is {_shown(value)}, and has to be a list")
        return value


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _weights(tensors: Mapping[str, Any]) -> Callable[[str], Array]:
    def weight(name: str) -> Array:
        tensor = tensors[gguf_name(name)]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise InvalidModelFile(
                f"tensor {tensor.name} is of type {kind}, which the package gguf cannot read"
            ) from error
        shape = [int(size) for size in reversed(tensor.shape)]
        return np.asarray(values, np.float32).reshape(shape)

    return weight


def _sizes(
    metadata: Metadata,
    architecture: str,
    tensors: Mapping[str, Any],
    context: int,
) -> DecoderSizes:
    def integer(name: str, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{name}", default)

    width, heads = integer("embedding_length"), integer("attention.head_count")
    if heads < 1:
        raise InvalidModelFile(f"{heads} attention heads: there has to be one at least")
    head_size = integer("attention.key_length", width // heads)
    if integer("rope.dimension_count", head_size) != head_size:
        raise InvalidModelFile("positions rotate a part of each head only, which is not supported")
    _require(tensors, ["token_embd.weight"])
    sizes = DecoderSizes(
        layers=integer("block_count"),
        width=width,
        heads=heads,
        kv_heads=integer("attention.head_count_kv", heads),
        head_size=head_size,
        inner=integer("feed_forward_length"),
        vocabulary=int(tensors["token_embd.weight"].shape[1]),
        context=min(context, integer("context_length")),
        epsilon=metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        rotary=_rotary(metadata, architecture, tensors),
        tied="output.weight" not in tensors,
        biased="blk.0.attn_q.bias" in tensors,
    )
    sizes.check()
    check_layers(sizes.layers, len(tensors))
    return sizes


def _rotary(metadata: Metadata, architecture: str, tensors: Mapping[str, Any]) -> Rotary:
    base = metadata.number(f"{architecture}.rope.freq_base", 10000.0)
    interleaved = ARCHITECTURES[architecture]
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    divisors: tuple[float, ...] = ()
    if ROTARY_DIVISORS in tensors:
        divisors = tuple(map(float, np.ravel(tensors[ROTARY_DIVISORS].data)))
    elif scaling == "linear":
        factor = metadata.number(f"{architecture}.rope.scaling.factor")
        pairs = metadata.integer(f"{architecture}.rope.dimension_count") // 2
        divisors = (factor,) * pairs
    elif scaling != "none":
        raise InvalidModelFile(
            f"rope scaling {scaling!r} is not supported; those that are: none, linear, llama3"
        )
    return Rotary(base, interleaved, divisors)


def _check_tensors(sizes: DecoderSizes, tensors: Mapping[str, Any]) -> None:
    shapes = {gguf_name(name): shape for name, shape in decoder_shapes(sizes).items()}
    _require(tensors, [gguf_name(name) for name in decoder_names(sizes)])
    unknown = sorted(set(tensors) - set(shapes) - {ROTARY_DIVISORS})
    if unknown:
        raise InvalidModelFile(
            f"tensors that a plain decoder does not have: {assets.listed(unknown)}; another "
            "architecture goes by the same name"
        )
    for name, expected in shapes.items():
        shape = tuple(int(size) for size in reversed(tensors[name].shape))
        if shape != expected:
            raise InvalidModelFile(
                f"tensor {name} has the shape {list(shape)}, and the metadata says {list(expected)}"
            )


def _require(tensors: Mapping[str, Any], names: list[str]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InvalidModelFile(f"tensors are missing: {assets.listed(missing)}")
