"""Vectors of texts from an encoder's outputs, by ONNX Runtime."""

import struct
from array import array
from collections.abc import Sequence
from ctypes import c_void_p

from functions.adapters.onnx.buffers import BoundRuns, Buffer
from functions.adapters.onnx.runs import ELEMENTS
from functions.adapters.onnx.sessions import OnnxRuntime
from functions.core.language.spec import Pooling
from functions.core.package.onnx_writer import (
    FLOAT,
    INT64,
    Constant,
    Operation,
    Value,
    encode_model,
)

_TIMEOUT_S = 60.0  # for a step that takes milliseconds
_EPSILON = 1e-12  # the length of a vector of zeros, as torch has it


def _pooling_model(element: int, rank: int, *, normalised: bool) -> bytes:
    """Return a model: hidden states and weights → vectors.

    Hidden states are (batch, length, size), weights (batch, length). Hidden states of rank 2 are
    the vectors, without weights.
    """
    operations = [Operation("Cast", ("hidden",), ("floats",), {"to": FLOAT})]
    inputs = [Value("hidden", element, rank)]
    vectors = "floats"
    if rank == 3:
        inputs.append(Value("weights", FLOAT, 2))
        operations += [
            Operation("Unsqueeze", ("weights", "middle"), ("row",)),
            Operation("MatMul", ("row", "floats"), ("sums",)),
            Operation("Squeeze", ("sums", "middle"), ("pooled",)),
        ]
        vectors = "pooled"
    if normalised:
        operations += [
            Operation("ReduceL2", (vectors, "last"), ("norm",), {"keepdims": 1}),
            Operation("Max", ("norm", "epsilon"), ("length",)),
            Operation("Div", (vectors, "length"), ("vectors",)),
        ]
    else:
        operations.append(Operation("Identity", (vectors,), ("vectors",)))
    constants = [
        Constant("middle", INT64, (1,), struct.pack("<q", 1)),
        Constant("last", INT64, (1,), struct.pack("<q", -1)),
        Constant("epsilon", FLOAT, (1,), struct.pack("<f", _EPSILON)),
    ]
    return encode_model(operations, inputs, [Value("vectors", FLOAT, 2)], constants)


class Pooler:
    """Pooling of an encoder's output of one datatype and rank."""

    def __init__(
        self, runtime: OnnxRuntime, datatype: str, rank: int, pooling: Pooling, *, normalised: bool
    ) -> None:
        model = _pooling_model(ELEMENTS[datatype], rank, normalised=normalised)
        self._pooling = pooling
        self._weighted = rank == 3
        names = ["hidden", "weights"] if self._weighted else ["hidden"]
        self._runs = BoundRuns(runtime.load_bytes(model), names, ["vectors"])

    def pool(
        self, hidden: int, shape: Sequence[int], lengths: Sequence[int]
    ) -> "list[array[float]]":
        """Return the vector of each text, in FP32.

        `hidden` is the handle (OrtValue*) of an encoder's output with `shape`: (batch, padded
        length, size), or (batch, size) where the graph pools itself. `lengths` are the tokens of
        each text without padding; only they count. Each vector has `size` numbers.
        """
        batch, size = shape[0], shape[-1]
        vectors = Buffer(4 * batch * size)
        weights = array("f")
        for length in lengths if self._weighted else ():
            weights.extend(_weights(self._pooling, length, shape[1]))
        made = [self._runs.value(vectors.address, "FP32", (batch, size))]
        if self._weighted:
            made.append(self._runs.value(weights.buffer_info()[0], "FP32", shape[:2]))
        inputs = [hidden, *made[1:]]
        try:
            self._runs.run((c_void_p * len(inputs))(*inputs), (c_void_p * 1)(made[0]), _TIMEOUT_S)
        finally:
            self._runs.release(*made)
        view = vectors.view("B")
        rows = (view[at : at + 4 * size] for at in range(0, 4 * batch * size, 4 * size))
        return [array("f", bytes(row)) for row in rows]


def _weights(pooling: Pooling, length: int, padded: int) -> list[float]:
    """Return the weight of each token in a text's vector.

    >>> _weights(Pooling.MEAN, 2, 3)
    [0.5, 0.5, 0.0]
    >>> _weights(Pooling.LAST, 2, 3)
    [0.0, 1.0, 0.0]
    """
    weights = [0.0] * padded
    if pooling is Pooling.MEAN:
        weights[:length] = [1 / length] * length
    else:
        weights[0 if pooling is Pooling.CLS else length - 1] = 1.0
    return weights
