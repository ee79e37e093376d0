"""BERT-family encoders as ONNX graphs with pooling: one vector a text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from training.language.checkpoint import EncoderSizes, Weights
from training.language.graph.builder import FLOAT, INT64, GraphBuilder, tensor
from training.language.reference import classifier_names

LOWEST = float(np.finfo(np.float32).min)  # bias of a masked token's attention


def encoder_graph(sizes: EncoderSizes, weights: Weights) -> onnx.ModelProto:
    """Return an encoder as an ONNX graph with float32 weights.

    Its output is `sentence_embedding` (batch, width), or a reranker's `logits` (batch, 1).
    """
    graph = GraphBuilder()
    layers = _Layers(graph, sizes, weights)
    x = layers.embed()
    graph.add("Cast", ["attention_mask"], "mask_int32", to=TensorProto.INT32)
    for layer in range(sizes.layers):
        x = layers.layer(f"encoder.layer.{layer}", x)
    output = layers.score(x) if sizes.pooling == "score" else layers.pool(x)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if sizes.types else [])]
    inputs = [tensor(name, INT64, "batch_size", "sequence_length") for name in names]
    columns = 1 if sizes.pooling == "score" else sizes.width
    return graph.build("encoder", inputs, [tensor(output, FLOAT, "batch_size", columns)])


class _Layers:
    """Layers of an encoder, added to a graph one after another."""

    def __init__(self, graph: GraphBuilder, sizes: EncoderSizes, weights: Weights) -> None:
        self._graph, self._sizes, self._weights = graph, sizes, weights

    def embed(self) -> str:
        graph, sizes = self._graph, self._sizes
        words = self._rows("word_embeddings", "input_ids")
        shape = graph.add("Shape", ["input_ids"], "ids_shape", start=1)
        first = graph.ints(sizes.first_position)
        end = graph.add("Add", [shape, first], "end_position")
        table = self._weight("embeddings.position_embeddings.weight")
        positions = graph.add("Slice", [table, first, end, graph.ints(0)], "positions")
        x = graph.add("Add", [words, positions], "placed")
        if sizes.types:
            types = self._rows("token_type_embeddings", "token_type_ids")
            x = graph.add("Add", [x, types], "typed")
        return self._norm("embeddings.LayerNorm", x)

    def _rows(self, name: str, numbers: str) -> str:
        table = self._weight(f"embeddings.{name}.weight")
        return self._graph.add("Gather", [table, numbers], f"{name}.rows", axis=0)

    def layer(self, stem: str, x: str) -> str:
        graph = self._graph
        parts = [f"{stem}.attention.self.{part}" for part in ("query", "key", "value")]
        q, k, v = (self._linear(part, x) for part in parts)
        attended = graph.add_microsoft(
            "MultiHeadAttention",
            [q, k, v, "", "mask_int32"],
            f"{stem}.attended",
            num_heads=self._sizes.heads,
            mask_filter_value=LOWEST,
        )
        y = self._linear(f"{stem}.attention.output.dense", attended)
        x = self._norm(f"{stem}.attention.output.LayerNorm", self._sum(stem, x, y))
        y = self._activate(stem, self._linear(f"{stem}.intermediate.dense", x))
        y = self._linear(f"{stem}.output.dense", y)
        return self._norm(f"{stem}.output.LayerNorm", self._sum(f"{stem}.output", x, y))

    def _sum(self, stem: str, x: str, y: str) -> str:
        return self._graph.add("Add", [x, y], f"{stem}.sum")

    def _activate(self, stem: str, x: str) -> str:
        graph, output = self._graph, f"{stem}.activated"
        kind = self._sizes.activation
        if kind == "relu":
            return graph.add("Relu", [x], output)
        if kind == "silu":
            return graph.add_microsoft("QuickGelu", [x], output, alpha=1.0)
        approximation = "tanh" if kind == "gelu_new" else "none"
        return graph.add("Gelu", [x], output, approximate=approximation)

    def pool(self, x: str) -> str:
        graph = self._graph
        output = "sentence_embedding"
        pooled = "pooled" if self._sizes.normalised else output
        if self._sizes.pooling == "cls":
            self._first(x, pooled)
        else:
            mask = graph.add("Cast", ["attention_mask"], "mask_float", to=FLOAT)
            mask = graph.add("Unsqueeze", [mask, graph.ints(-1)], "mask_column")
            kept = graph.add("Mul", [x, mask], "kept")
            total = graph.add("ReduceSum", [kept, graph.ints(1)], "total", keepdims=0)
            count = graph.add("ReduceSum", [mask, graph.ints(1)], "count", keepdims=0)
            graph.add("Div", [total, count], pooled)
        if self._sizes.normalised:
            graph.add("LpNormalization", [pooled], output, axis=-1, p=2)
        return output

    def _first(self, x: str, output: str) -> str:
        first = self._graph.weight("first", np.array(0, np.int64))
        return self._graph.add("Gather", [x, first], output, axis=1)

    def score(self, x: str) -> str:
        first, last = classifier_names(self._sizes)
        y = self._linear(first, self._first(x, "first_token"))
        return self._linear(last, self._graph.add("Tanh", [y], "tanh"), output="logits")

    def _linear(self, name: str, x: str, output: str = "") -> str:
        graph, weights = self._graph, self._weights
        matrix = graph.weight(f"{name}.weight", weights(f"{name}.weight").T)
        product = graph.add("MatMul", [x, matrix], f"{name}.product")
        bias = self._weight(f"{name}.bias")
        return graph.add("Add", [product, bias], output or f"{name}.biased")

    def _norm(self, name: str, x: str) -> str:
        inputs = [x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        epsilon = self._sizes.epsilon
        return self._graph.add(
            "LayerNormalization", inputs, f"{name}.normed", axis=-1, epsilon=epsilon
        )

    def _weight(self, name: str) -> str:
        return self._graph.weight(name, self._weights(name))
