"""Decoder of a language model in ONNX Runtime.

See docs/decisions/0051-the-decode-loop.md.
"""

import math
import re
from collections.abc import Sequence
from ctypes import c_void_p

from functions.adapters.language.feeds import Feed
from functions.adapters.language.key_values import KeyValues, Slab, places
from functions.adapters.language.logits import LogitsKernels, NativeLogits
from functions.adapters.onnx.buffers import BoundRuns
from functions.adapters.onnx.capi import ELEMENT_DATATYPES, OrtError
from functions.adapters.onnx.nodes import Node, read_nodes
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel
from functions.core.language.spec import LanguageSpec
from functions.core.protocol.signature import DATATYPES

CHUNK_SECONDS = 0.25  # a prompt's run, after which deadline and caller are looked at
CHUNK_MIN, CHUNK_DEFAULT, CHUNK_MAX = 32, 128, 512  # tokens of a run
LOGITS_BYTES = 32 * 1024 * 1024  # most of a run, where the graph gives logits of each token
CAPACITY_STEP = 64  # tokens
_PROBE_CAPACITY, _PROBE_SECONDS, _PROBE_TOLERANCE = 4, 30.0, 1e-3
_LOGITS = ("FP32", "FP16", "BF16")


class Decoder:
    """Decoder of one model; implements `Decoder` of core.language.generation.

    `shared` tells whether the graph writes new keys and values behind the old ones.
    """

    def __init__(self, runtime: OnnxRuntime, session: OnnxSession, spec: LanguageSpec) -> None:
        """Bind a loaded model.

        Raises:
            InvalidModel: `NOT_A_DECODER` or `UNKNOWN_INPUT`.
        """
        inputs = read_nodes(session.library, session.handle, "Input")
        outputs = read_nodes(session.library, session.handle, "Output")
        self._slabs = find_slabs(inputs, outputs, spec)
        pasts = {slab.past for slab in self._slabs}
        self._feeds = [Feed(node, spec.context) for node in inputs if node.name not in pasts]
        self._logits = _find_logits(outputs)
        self._datatype = ELEMENT_DATATYPES[self._logits.element or 0]
        width = self._logits.shape[-1]
        self._kernels = LogitsKernels(runtime, width if width > 0 else spec.vocabulary)
        self._runs = BoundRuns(
            session,
            [*(feed.name for feed in self._feeds), *(slab.past for slab in self._slabs)],
            [self._logits.name, *(slab.present for slab in self._slabs)],
        )
        self.chunk = self._chunk(spec)
        self.shared = self._probe() if spec.shared_cache is None else spec.shared_cache

    def size_bytes(self, capacity: int) -> int:
        """Return the bytes that keys and values of so many tokens take."""
        return places(self._slabs, _rounded(capacity))[-1] * (1 if self.shared else 2)

    def make(self, capacity: int) -> KeyValues:
        """Return an empty sequence.

        Raises:
            MemoryError: there is not enough.
        """
        return self._make(_rounded(capacity), shared=self.shared)

    def copy(self, entry: KeyValues, length: int, capacity: int) -> KeyValues:
        """Return a sequence with the first tokens of another one.

        Raises:
            MemoryError: there is not enough.
        """
        cache = self.make(capacity)
        cache.copy_from(entry, length)
        return cache

    def run(self, cache: KeyValues, tokens: Sequence[int], timeout_s: float) -> NativeLogits:
        """Add tokens to a sequence; return the next token's logits.

        The logits are FP32 of the shape (vocabulary,), whatever the graph gives. They lie in memory
        of the sequence, which its next run overwrites.

        Raises:
            TimedOut: it was stopped after `timeout_s`; the sequence is as before.
            ExecutionFailed: the model failed on these tokens.
            OrtError: it failed, and not because of them.
            MemoryError: it asked for more memory than there is.
        """
        runs, count = self._runs, len(tokens)
        logits = cache.logits = cache.logits or NativeLogits(self._kernels)
        logits.renew()
        bound = [feed.bind(runs, tokens, len(cache.tokens)) for feed in self._feeds]
        feeds = [value for value, _ in bound]
        direct = count == 1 and self._datatype == "FP32"
        inputs = _handles([*feeds, *cache.inputs()])
        outputs = _handles([self._bind(logits) if direct else None, *cache.outputs(count)])
        try:
            runs.run(inputs, outputs, timeout_s)
            if not direct:
                self._copy_last(outputs[0], logits)
        except BaseException:
            cache.discard(outputs[1:])
            raise
        finally:
            runs.release(*feeds, outputs[0])
        cache.add(tokens, outputs[1:])
        return logits

    def _bind(self, logits: NativeLogits) -> int:
        """Return an output value on the memory of logits."""
        ones = [1] * (len(self._logits.shape) - 1)
        return self._runs.value(logits.address, "FP32", [*ones, self._kernels.width])

    def _copy_last(self, value: int | None, logits: NativeLogits) -> None:
        """Copy the last token's logits from the runtime's memory."""
        address, shape = self._runs.read(value)
        if shape[-1:] != (self._kernels.width,) or not math.prod(shape):
            raise ExecutionFailed(f"the model's logits have the shape {list(shape)}")
        before = math.prod(shape[:-1]) - 1
        row_bytes = self._kernels.width * (DATATYPES[self._datatype] or 0)
        logits.copy(address + before * row_bytes, self._datatype)

    def _make(self, capacity: int, *, shared: bool) -> KeyValues:
        cache = KeyValues(self._runs, self._slabs, capacity, shared=shared)
        cache.prepare()
        return cache

    def _chunk(self, spec: LanguageSpec) -> int:
        """Return how many tokens of a prompt run at once."""
        chunk = int(spec.prefill_rate * CHUNK_SECONDS) or CHUNK_DEFAULT
        last_alone = self._logits.shape[-2:-1] == (1,) or any(feed.last for feed in self._feeds)
        if not last_alone:
            chunk = min(chunk, LOGITS_BYTES // (4 * self._kernels.width))
        return max(CHUNK_MIN, min(CHUNK_MAX, chunk))

    def _probe(self) -> bool:
        """Tell whether runs with shared and with separate buffers agree."""
        answers: list[list[float]] = []
        for shared in (False, True):
            cache = self._make(_PROBE_CAPACITY, shared=shared)
            try:
                for token in (0, 1):
                    logits = self.run(cache, [token], _PROBE_SECONDS)
            except (ExecutionFailed, OrtError):
                if shared:
                    return False
                raise
            answers.append(list(logits.values))
        tolerance = _PROBE_TOLERANCE
        return all(
            math.isclose(*pair, rel_tol=tolerance, abs_tol=tolerance)
            for pair in zip(*answers, strict=True)
        )


def find_slabs(
    inputs: Sequence[Node], outputs: Sequence[Node], spec: LanguageSpec
) -> tuple[Slab, ...]:
    """Return the form of a decoder's keys and values.

    There is a slab for each input past…: keys and values of each layer, (1, kv_heads, tokens,
    head_size), or all in one, (2 x layers, 1, kv_heads, tokens, head_size). Sizes that the graph
    leaves free are those of the spec. Batches have one sequence.

    Raises:
        InvalidModel: `NOT_A_DECODER`, there are none, or an output is missing.
    """
    presents = {re.sub("^present(_key_values)?", "", node.name): node.name for node in outputs}
    slabs = []
    for node in inputs:
        if not node.name.startswith("past"):
            continue
        present = presents.get(re.sub("^past(_key_values)?", "", node.name))
        datatype = ELEMENT_DATATYPES.get(node.element or 0, "")
        if present is None or len(node.shape) not in (4, 5) or datatype not in _LOGITS:
            raise InvalidModel(
                f"input {node.name} ({node.type}, {len(node.shape)} dimensions) of the decoder "
                "needs floats in 4 or 5 dimensions and an output present… of the same name",
                code="NOT_A_DECODER",
            )
        lead = [1, spec.kv_heads] if len(node.shape) == 4 else [2 * spec.layers, 1, spec.kv_heads]
        *sizes, _, size = node.shape
        rows = tuple(
            declared if declared > 0 else usual for declared, usual in zip(sizes, lead, strict=True)
        )
        slabs.append(Slab(node.name, present, datatype, rows, max(size, 0) or spec.head_size))
    if not slabs:
        raise InvalidModel(
            "the model has no inputs past…: export the decoder with keys and values",
            code="NOT_A_DECODER",
        )
    return tuple(slabs)


def _find_logits(outputs: Sequence[Node]) -> Node:
    for node in outputs:
        if node.name == "logits" and ELEMENT_DATATYPES.get(node.element or 0) in _LOGITS:
            return node
    raise InvalidModel("the model has no output logits of floats", code="NOT_A_DECODER")


def _handles(values: Sequence[int | None]) -> "list[int | None]":
    return (c_void_p * len(values))(*values)  # type: ignore[return-value]


def _rounded(capacity: int) -> int:
    return -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
