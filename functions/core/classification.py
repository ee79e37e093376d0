"""The classification extension: the highest values of an output, each with its index and its label."""

import math

import numpy as np

from functions.core.signature import TensorSpec
from functions.core.tensors import numeric

CLASSES_LIMIT = 1_000_000  # Triton's


def is_classifiable(spec: TensorSpec) -> bool:
    """Whether values of this output can be put in order."""
    return spec.datatype not in ("BOOL", "BYTES")


def classify(spec: TensorSpec, array: np.ndarray, count: int, *, batched: bool) -> np.ndarray:
    """The `count` highest values of each batch row, or of the whole array, as BYTES "value:index[:label]".

    The index counts through a row in row-major order; equal values keep that order and NaN comes last. Floats have
    six decimals, as C++ `to_string` and so Triton writes them.

    >>> spec = TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "owl"))
    >>> classify(spec, np.array([[0.25, 0.5, 0.125]], np.float32), 2, batched=True).tolist()
    [[b'0.500000:1:dog', b'0.250000:0:cat']]
    """
    values = numeric(spec.datatype, array)
    batch = array.shape[:1] if batched else ()
    size = math.prod(array.shape[len(batch) :])
    top = min(count, size)
    rows = values.reshape(math.prod(batch), size)
    keys = -rows if rows.dtype.kind == "f" else ~rows  # descending; unsigned integers cannot be negated
    order = np.argsort(keys, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(rows, order, axis=1)
    classes = array.shape[-1] if array.ndim else 1
    texts = [
        _spelled(value, index, spec.labels, index % classes)
        for value, index in zip(best.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    result = np.empty(len(texts), np.object_)
    result[:] = texts
    return result.reshape(*batch, top)


def _spelled(value: float, index: int, labels: tuple[str, ...], label: int) -> bytes:
    number = f"{value:.6f}" if isinstance(value, float) else str(value)
    return (f"{number}:{index}:{labels[label]}" if label < len(labels) else f"{number}:{index}").encode()
