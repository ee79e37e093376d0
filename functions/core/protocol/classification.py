"""Triton classification extension: top-k values of an output with indices and labels.

Source: Triton `docs/protocol/extension_classification.md`.
"""

import heapq
import math

from functions.core.protocol.signature import TensorSpec
from functions.core.protocol.tensors import Tensor

CLASSES_MAX = 1_000_000  # Triton's limit


def is_classifiable(spec: TensorSpec) -> bool:
    """Return True if an output is numeric and so can be ranked."""
    return spec.datatype not in ("BOOL", "BYTES")


def classify(spec: TensorSpec, tensor: Tensor, count: int, *, batched: bool) -> Tensor:
    """Return each row's `count` highest output values as BYTES "value:index[:label]".

    A model without batches counts as one row. The index counts through a row in row-major order;
    equal values keep that order and NaN comes last. Floats have six decimals, as C++ `to_string`
    and so Triton writes them.

    >>> import struct
    >>> spec = TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "owl"))
    >>> scores = Tensor("FP32", (1, 3), struct.pack("3f", 0.25, 0.5, 0.125))
    >>> classify(spec, scores, 2, batched=True).data
    [b'0.500000:1:dog', b'0.250000:0:cat']
    """
    batch = tensor.shape[:1] if batched else ()
    size = math.prod(tensor.shape[len(batch) :])
    classes = tensor.shape[-1] if tensor.shape else 1
    values = tensor.values()
    texts = []
    for row in range(math.prod(batch)):
        scores = values[row * size : (row + 1) * size]
        for index in _highest(scores, count):
            texts.append(_encode(scores[index], index, spec.labels, index % classes))
    return Tensor("BYTES", (*batch, min(count, size)), texts)


def _highest(scores: list[float], count: int) -> list[int]:
    """Return the indices of the `count` highest scores, in descending order.

    The first of equal scores comes first, and NaN comes last.
    """
    if any(score != score for score in scores):  # NaN compares as neither lower nor higher
        ranks = [(True, score) if score == score else (False, 0.0) for score in scores]
        return heapq.nlargest(count, range(len(scores)), key=ranks.__getitem__)
    return heapq.nlargest(count, range(len(scores)), key=scores.__getitem__)


def _encode(value: float, index: int, labels: tuple[str, ...], label: int) -> bytes:
    text = f"{value:.6f}:{index}" if isinstance(value, float) else f"{value}:{index}"
    if label < len(labels):
        text += f":{labels[label]}"
    return text.encode()
