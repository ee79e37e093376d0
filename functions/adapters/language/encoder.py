"""Encoder of a language model: vectors of texts, or scores of pairs."""

import time
from array import array
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from typing import Any

from functions.adapters.language.pooling import Pooler
from functions.adapters.onnx.buffers import BoundRuns
from functions.adapters.onnx.capi import ELEMENT_DATATYPES
from functions.adapters.onnx.nodes import Node, read_nodes
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.language.batches import batches
from functions.core.language.generation import check_tokens
from functions.core.language.spec import LanguageSpec, Pooling

BATCH_TOKENS = 2048  # a run's, with padding; more is no faster on a CPU and takes more memory
_TOKENS = ("input_ids", "tokens", "text")
_MASK, _TYPES, _POSITIONS = "attention_mask", "token_type_ids", "position_ids"
_CODES = {"INT64": "q", "INT32": "i", "UINT8": "B", "BOOL": "B"}
_FLOATS = ("FP32", "FP16", "BF16")
# Outputs by what they are called, best first; else the first of fitting rank is taken.
_NAMES = ("sentence_embedding", "logits", "last_hidden_state", "token_embeddings")


class Encoder:
    """Encoder of one model."""

    def __init__(
        self,
        runtime: OnnxRuntime,
        session: OnnxSession,
        spec: LanguageSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind a loaded model.

        Raises:
            InvalidModel: `NOT_AN_ENCODER` or `UNKNOWN_INPUT`.
        """
        self._spec = spec
        self._clock = clock
        self._inputs = read_nodes(session.library, session.handle, "Input")
        for node in self._inputs:
            _check_input(node)
        output = _find_output(read_nodes(session.library, session.handle, "Output"), spec)
        names = [node.name for node in self._inputs]
        self._runs = BoundRuns(session, names, [output.name])
        self._pooler = Pooler(
            runtime,
            ELEMENT_DATATYPES[output.element or 0],
            len(output.shape),
            spec.pooling,
            normalised=spec.normalised and not spec.reranker,
        )

    def embed(self, texts: Sequence[Sequence[int]], *, deadline: float) -> "list[Sequence[float]]":
        """Return one vector for the tokens of each text, as TextModel.embed says."""
        for at, text in enumerate(texts):
            check_text(text, self._spec, at)
        vectors: dict[int, Sequence[float]] = {}
        for batch in batches([len(text) for text in texts], BATCH_TOKENS):
            rows = self._embed([texts[at] for at in batch], deadline)
            vectors.update(zip(batch, rows, strict=True))
        return [vectors[at] for at in range(len(texts))]

    def _embed(self, texts: Sequence[Sequence[int]], deadline: float) -> "list[Sequence[float]]":
        """Return the vectors of a batch, in halves if memory is short."""
        timeout_s = deadline - self._clock()
        if timeout_s <= 0:
            raise TimedOut("the time for the texts is over: send fewer at once")
        try:
            return self._run(texts, timeout_s)
        except MemoryError:
            if len(texts) == 1:
                raise
        half = len(texts) // 2
        return [*self._embed(texts[:half], deadline), *self._embed(texts[half:], deadline)]

    def _run(self, texts: Sequence[Sequence[int]], timeout_s: float) -> "list[Sequence[float]]":
        runs, longest = self._runs, max(map(len, texts))
        arrays = [self._array(node, texts, longest) for node in self._inputs]
        values = [
            runs.value(
                numbers.buffer_info()[0],
                ELEMENT_DATATYPES[node.element or 0],
                (len(texts), longest),
            )
            for node, numbers in zip(self._inputs, arrays, strict=True)
        ]
        outputs = (c_void_p * 1)()
        try:
            runs.run((c_void_p * len(values))(*values), outputs, timeout_s)
            _, shape = runs.read(outputs[0])
            vectors = self._pooler.pool(outputs[0] or 0, shape, [len(text) for text in texts])
        finally:
            runs.release(*values, outputs[0])
        if self._spec.reranker:
            return [[_score(row)] for row in vectors]
        return list(vectors)

    def _array(self, node: Node, texts: Sequence[Sequence[int]], longest: int) -> "array[Any]":
        """Return an input's numbers for a batch, padded by 0."""
        numbers = array(_CODES[ELEMENT_DATATYPES[node.element or 0]])
        for text in texts:
            numbers.extend(self._row(node.name, text))
            numbers.extend([0] * (longest - len(text)))
        return numbers

    def _row(self, name: str, text: Sequence[int]) -> Sequence[int]:
        if name == _MASK:
            return [1] * len(text)
        if name == _TYPES:
            return _types(text, self._spec.eos)
        return range(len(text)) if name == _POSITIONS else text


def check_text(text: Sequence[int], spec: LanguageSpec, at: int) -> None:
    """Check the tokens of the text with index `at`.

    Raises:
        InvalidRequest: they are none, too many, or not in the vocabulary.
    """
    if not text:
        raise InvalidRequest(f"text {at} has no tokens: send at least one character")
    if len(text) > spec.context:
        raise InvalidRequest(
            f"text {at} has {len(text)} tokens, and this model's context length is "
            f"{spec.context} tokens: send it in parts",
            code="CONTEXT_LENGTH_EXCEEDED",
        )
    check_tokens(text, spec)


def _types(text: Sequence[int], separators: Sequence[int]) -> list[int]:
    """Return BERT's segments: 1 after the first separator, else 0.

    >>> _types([101, 7, 102, 8, 102], separators=(102,))
    [0, 0, 0, 1, 1]
    """
    ends = [at for at, token in enumerate(text) if token in separators]
    first = ends[0] + 1 if ends else len(text)
    return [0] * first + [1] * (len(text) - first)


def _score(row: Sequence[float]) -> float:
    """Return a pair's log-odds from one or two logits."""
    return row[1] - row[0] if len(row) == 2 else row[0]


def _check_input(node: Node) -> None:
    names = (*_TOKENS, _MASK, _TYPES, _POSITIONS)
    if node.name not in names or ELEMENT_DATATYPES.get(node.element or 0) not in _CODES:
        raise InvalidModel(
            f"input {shown(node.name)} ({node.type}) of the encoder is unknown; export it with "
            f"{_TOKENS[0]}, {_MASK} and {_TYPES} as inputs",
            code="UNKNOWN_INPUT",
        )


def _find_output(outputs: Sequence[Node], spec: LanguageSpec) -> Node:
    rank = 2 if spec.pooling is Pooling.GRAPH or spec.reranker else 3
    fitting = {
        node.name: node
        for node in outputs
        if len(node.shape) == rank and ELEMENT_DATATYPES.get(node.element or 0) in _FLOATS
    }
    if not fitting:
        raise InvalidModel(
            f"the encoder has no output of floats with {rank} dimensions", code="NOT_AN_ENCODER"
        )
    return min(fitting.values(), key=lambda node: (*_NAMES, node.name).index(node.name))
