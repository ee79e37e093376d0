"""The classification extension: the highest values of an output, each with its index and its label."""

import heapq
import math

from functions.core.protocol.signature import TensorSpec
from functions.core.protocol.tensors import Tensor

CLASSES_LIMIT = 1_000_000  # Triton's


def is_classifiable(spec: TensorSpec) -> bool:
    """Whether values of this output can be put in order."""
    return spec.datatype not in ("BOOL", "BYTES")


def classify(spec: TensorSpec, tensor: Tensor, count: int, *, batched: bool) -> Tensor:
    """The `count` highest values of each batch row, or of the whole tensor, as BYTES "value:index[:label]".

    The index counts through a row in row-major order; equal values keep that order and NaN comes last. Floats have
    six decimals, as C++ `to_string` and so Triton writes them.

    >>> import struct
    >>> spec = TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "owl"))
    >>> classify(spec, Tensor("FP32", (1, 3), struct.pack("3f", 0.25, 0.5, 0.125)), 2, batched=True).data
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
            texts.append(_spelled(scores[index], index, spec.labels, index % classes))
    return Tensor("BYTES", (*batch, min(count, size)), texts)


def _highest(scores: list[float], count: int) -> list[int]:
    """Where the `count` highest are, in descending order. Of equal ones the earlier comes first."""
    if any(score != score for score in scores):  # NaN, which no order has a place for
        ranks = [(True, score) if score == score else (False, 0.0) for score in scores]
        return heapq.nlargest(count, range(len(scores)), key=ranks.__getitem__)
    return heapq.nlargest(count, range(len(scores)), key=scores.__getitem__)


def _spelled(value: float, index: int, labels: tuple[str, ...], label: int) -> bytes:
    number = f"{value:.6f}" if isinstance(value, float) else str(value)
    return (
        f"{number}:{index}:{labels[label]}" if label < len(labels) else f"{number}:{index}"
    ).encode()
