"""Llama-family decoders as ONNX graphs with 4-bit weights and a cache.

Inputs and outputs have the names that onnxruntime-genai and optimum write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from training.language.checkpoint import Array, DecoderSizes, Weights, decoder_names
from training.language.graph.builder import FLOAT, INT64, GraphBuilder, tensor
from training.language.graph.quantization import QuantisedMatrix, to_int4, to_int8

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
OUTLYING = 16  # times the median of all layers


@dataclass(frozen=True, slots=True)
class QuantisedDecoder:
    """Decoder's weights: matrices quantised, the others as they are."""

    sizes: DecoderSizes
    matrices: Mapping[str, QuantisedMatrix]
    vectors: Mapping[str, Array]
    outlying: Collection[int] = ()  # layers whose down projection takes inputs as float32

    def weights(self, name: str) -> Array:
        """Return a weight as float32, rounded as the graph has it."""
        if name in self.vectors:
            return self.vectors[name]
        return self.matrices[name.removesuffix(".weight")].dequantise()


def outlying_layers(peaks: Sequence[float]) -> list[int]:
    """Return layers whose down projection has inputs far above the others'.

    Few layers have values there of a hundred times the others, which 8 bits for each block of
    inputs would round to zero beside them.

    >>> outlying_layers([7.6, 39.3, 5.4, 3064.8, 4.6])
    [3]
    """
    limit = OUTLYING * float(np.median(peaks))
    return [layer for layer, peak in enumerate(peaks) if peak > limit]


def quantise(
    sizes: DecoderSizes, weights: Weights, bits: int = 4, outlying: Collection[int] = ()
) -> QuantisedDecoder:
    """Quantise a decoder's matrices; embedding and head always have 8 bits."""
    matrices, vectors = {}, {}
    for name in decoder_names(sizes):
        values, stem = weights(name), name.removesuffix(".weight")
        if values.ndim == 1:
            vectors[name] = values
        else:
            fit = to_int8 if bits == 8 or stem in (EMBEDDING, HEAD) else to_int4
            matrices[stem] = fit(values)
    return QuantisedDecoder(sizes, matrices, vectors, outlying)


def decoder_graph(
    decoder: QuantisedDecoder, *, accuracy_level: int = 4, every_logit: bool = False
) -> onnx.ModelProto:
    """Return a decoder as an ONNX graph.

    Its logits are those of the last token, (batch, 1, vocabulary): the head is a quarter of all
    the work for a prompt. With `every_logit` they are those of all tokens.
    """
    sizes, graph = decoder.sizes, GraphBuilder(accuracy_level)
    attention_inputs = _attention_inputs(graph, sizes)
    x = graph.rows_of(EMBEDDING, decoder.matrices[EMBEDDING], "input_ids", "embedded")
    y = _first_norm(graph, decoder, x)
    for layer in range(sizes.layers):
        y = _attention(graph, decoder, layer, y, attention_inputs)
        x, y = _add_and_norm(graph, decoder, f"model.layers.{layer}.post_attention_layernorm", x, y)
        y = _feed_forward(graph, decoder, layer, y)
        last = layer + 1 == sizes.layers
        norm = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
        x, y = _add_and_norm(graph, decoder, norm, x, y)
    if not every_logit:
        ends = [graph.ints(-1), graph.ints(np.iinfo(np.int64).max), graph.ints(1)]
        y = graph.add("Slice", [y, *ends], "last")
    head = EMBEDDING if sizes.tied else HEAD
    graph.multiply(y, head, decoder.matrices[head], output="logits")
    length = "sequence_length" if every_logit else 1
    logits = tensor("logits", FLOAT, "batch_size", length, sizes.vocabulary)
    inputs, outputs = _cache(sizes)
    tokens = tensor("input_ids", INT64, "batch_size", "sequence_length")
    mask = tensor("attention_mask", INT64, "batch_size", "total_sequence_length")
    return graph.build("decoder", [tokens, mask, *inputs], [logits, *outputs])


def _cache(
    sizes: DecoderSizes,
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Declare the cache's inputs (past tokens) and outputs (all tokens)."""
    inputs, outputs = [], []
    for layer in range(sizes.layers):
        for part in ("key", "value"):
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            inputs.append(_cached(sizes, past, "past_sequence_length"))
            outputs.append(_cached(sizes, present, "total_sequence_length"))
    return inputs, outputs


def _cached(sizes: DecoderSizes, name: str, length: str) -> onnx.ValueInfoProto:
    return tensor(name, FLOAT, "batch_size", sizes.kv_heads, length, sizes.head_size)


def _attention_inputs(graph: GraphBuilder, sizes: DecoderSizes) -> list[str]:
    """Add what all layers' attention needs: lengths by the mask, and rotations."""
    counts = graph.add("ReduceSum", ["attention_mask", graph.ints(1)], "counts", keepdims=0)
    last = graph.add("Sub", [counts, graph.ints(1)], "last_positions")
    graph.add("Cast", [last], "last_positions_int32", to=TensorProto.INT32)
    shape = graph.add("Shape", ["attention_mask"], "mask_shape")
    axis = graph.weight("axis", np.array(1, np.int64))
    total = graph.add("Gather", [shape, axis], "total_length", axis=0)
    graph.add("Cast", [total], "total_length_int32", to=TensorProto.INT32)
    cos, sin = sizes.rotary.tables(sizes.head_size, sizes.context)
    tables = [graph.weight("cosines", cos), graph.weight("sines", sin)]
    return ["last_positions_int32", "total_length_int32", *tables]


def _attention(
    graph: GraphBuilder, decoder: QuantisedDecoder, layer: int, x: str, more: list[str]
) -> str:
    sizes, stem = decoder.sizes, f"model.layers.{layer}.self_attn"
    parts = [f"{stem}.{part}_proj" for part in "qkv"]
    matrix = _joined([decoder.matrices[part] for part in parts])
    bias = None
    if sizes.biased:
        bias = np.concatenate([decoder.vectors[f"{part}.bias"] for part in parts])
    queries = graph.multiply(x, f"{stem}.qkv_proj", matrix, bias)  # with keys and values
    pasts, presents = (
        [f"{name}.{layer}.{part}" for part in ("key", "value")]
        for name in ("past_key_values", "present")
    )
    attended = graph.add_microsoft(
        "GroupQueryAttention",
        [queries, "", "", *pasts, *more],
        f"{stem}.attended",
        *presents,
        num_heads=sizes.heads,
        kv_num_heads=sizes.kv_heads,
        scale=sizes.head_size**-0.5,
        do_rotary=1,
        rotary_interleaved=int(sizes.rotary.interleaved),
    )
    return graph.multiply(attended, f"{stem}.o_proj", decoder.matrices[f"{stem}.o_proj"])


def _joined(matrices: list[QuantisedMatrix]) -> QuantisedMatrix:
    """Stack matrices with equal columns, to multiply by all at once."""
    if any(matrix.offset for matrix in matrices):
        matrices = [matrix.with_offsets() for matrix in matrices]
    zeros = [matrix.zeros for matrix in matrices if matrix.zeros is not None]
    return QuantisedMatrix(
        np.concatenate([matrix.packed for matrix in matrices]),
        np.concatenate([matrix.scales for matrix in matrices]),
        np.concatenate(zeros) if zeros else None,
        matrices[0].bits,
        matrices[0].columns,
    )


def _feed_forward(graph: GraphBuilder, decoder: QuantisedDecoder, layer: int, x: str) -> str:
    stem = f"model.layers.{layer}.mlp"
    gate, up = (
        graph.multiply(x, f"{stem}.{part}_proj", decoder.matrices[f"{stem}.{part}_proj"])
        for part in ("gate", "up")
    )
    gate = graph.add_microsoft("QuickGelu", [gate], f"{stem}.silu", alpha=1.0)
    product = graph.add("Mul", [gate, up], f"{stem}.gated")
    name, exact = f"{stem}.down_proj", layer in decoder.outlying
    return graph.multiply(product, name, decoder.matrices[name], exact=exact)


def _first_norm(graph: GraphBuilder, decoder: QuantisedDecoder, x: str) -> str:
    name = "model.layers.0.input_layernorm"
    weight = graph.weight(f"{name}.weight", decoder.vectors[f"{name}.weight"])
    epsilon = decoder.sizes.epsilon
    return graph.add(
        "SimplifiedLayerNormalization", [x, weight], f"{name}.normed", axis=-1, epsilon=epsilon
    )


def _add_and_norm(
    graph: GraphBuilder, decoder: QuantisedDecoder, name: str, x: str, y: str
) -> tuple[str, str]:
    """Return x + y, and it normalised."""
    weight = graph.weight(f"{name}.weight", decoder.vectors[f"{name}.weight"])
    last = name == "model.norm"
    total = f"{name}.sum"
    normed = graph.add_microsoft(
        "SkipSimplifiedLayerNormalization",
        [x, y, weight],
        f"{name}.normed",
        *(() if last else ("", "", total)),
        epsilon=decoder.sizes.epsilon,
    )
    return total, normed
