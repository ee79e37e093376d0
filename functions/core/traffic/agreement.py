"""Agreement of two versions' answers to the same request."""

from collections.abc import Mapping, Sequence
from itertools import starmap

from functions.core.protocol.signature import TensorSpec
from functions.core.protocol.tensors import FLOATS, Tensor
from functions.core.records import record

ELEMENTS_MAX = 2**18  # compared values of an output: 0.1 s


@record
class Tolerance:
    """Accepted difference of a float: `atol + rtol * abs(expected)`."""

    rtol: float = 1e-3
    atol: float = 1e-5

    def accepts(self, expected: float, actual: float) -> bool:
        """Return True if a float is close enough.

        >>> [Tolerance().accepts(1.0, actual) for actual in (1.0005, 1.01, float("nan"))]
        [True, False, False]
        """
        if expected == actual or (expected != expected and actual != actual):
            return True
        return abs(expected - actual) <= self.atol + self.rtol * abs(expected) < float("inf")


def agrees(
    answer: Mapping[str, Tensor],
    copy: Mapping[str, Tensor],
    outputs: Sequence[TensorSpec],
    tolerance: Tolerance,
) -> bool:
    """Return True if a shadow's answer says the same as the answer.

    Datatypes and shapes have to be equal. Of scores with labels, the highest class of each row is
    compared; of other floats each value, within the tolerance; of all else every byte. Of floats,
    the first ELEMENTS_MAX count.
    """
    return all(
        _tensors_agree(answer[spec.name], copy[spec.name], spec, tolerance)
        for spec in outputs
        if spec.name in answer
    )


def _tensors_agree(answer: Tensor, copy: Tensor, spec: TensorSpec, tolerance: Tolerance) -> bool:
    if (answer.datatype, answer.shape) != (copy.datatype, copy.shape):
        return False
    if answer.data == copy.data:
        return True
    if answer.datatype not in FLOATS:
        return False
    if spec.labels and answer.shape[-1:] == (len(spec.labels),):
        return _classes(answer) == _classes(copy)
    pairs = zip(_values(answer, ELEMENTS_MAX), _values(copy, ELEMENTS_MAX), strict=True)
    return all(starmap(tolerance.accepts, pairs))


def _classes(tensor: Tensor) -> list[int]:
    """Return the index of each row's highest score."""
    width = tensor.shape[-1]
    scores = _values(tensor, max(1, ELEMENTS_MAX // width) * width)
    rows = [scores[start : start + width] for start in range(0, len(scores), width)]
    return [row.index(max(row)) for row in rows]


def _values(tensor: Tensor, limit: int) -> list[float]:
    """Return a tensor's values, at most the first `limit`."""
    size = tensor.size
    if size <= limit:
        return tensor.values()
    part = memoryview(tensor.data)[: len(tensor.data) // size * limit]
    return Tensor(tensor.datatype, (limit,), part).values()
