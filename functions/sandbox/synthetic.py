"""Synthetic requests for models whose package has no samples."""

import math
import random
import time
from collections.abc import Iterator
from itertools import chain

from functions.adapters.onnx.sessions import OnnxSession
from functions.core.errors import InvalidModel, TimedOut
from functions.core.protocol import tensors
from functions.core.protocol.signature import DATATYPES, DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import FLOATS, Tensor
from functions.sandbox.comparison import REFUSALS, RUN_S, Tensors, run_model
from functions.sandbox.samples import Sample

SIZES = (1, 2, 4, 8, 16, 32, 224)  # tried for dynamic dimensions, in this order
ELEMENTS = 2**24  # most elements of a tensor
ATTEMPTS_S = 5.0  # no further request is tried after this processor time
SEED = 20261122


def synthesise(
    session: OnnxSession, signature: Signature, likely: Tensors | None = None
) -> tuple[Sample | None, Tensors | None]:
    """Generate a request that the model accepts, and run it.

    `likely` is tried first: the request of a model whose inputs are known to belong together.
    Returns the request and its outputs, or two None if the model refuses all that were tried.

    Raises:
        InvalidModel: `NO_ANSWER`, it never ends, or it refuses the only request there is.
    """
    until = time.process_time() + ATTEMPTS_S
    for inputs in chain([likely] if likely else [], _attempts(signature)):
        if time.process_time() > until:
            break
        try:
            return Sample(inputs, {}), run_model(session, inputs, signature)
        except TimedOut as error:
            raise InvalidModel(
                f"the model did not answer a generated request within {RUN_S:.0f} s of processor "
                "time; if it answers others, add a sample to its manifest",
                code="NO_ANSWER",
            ) from error
        except REFUSALS as error:
            if not signature.inputs:
                raise InvalidModel(
                    f"the model has no inputs, and fails whenever it runs: {error}",
                    code="NO_ANSWER",
                ) from error
    return None, None


def _attempts(signature: Signature) -> Iterator[dict[str, Tensor]]:
    """Yield generated requests to try, likeliest to be accepted first.

    Integers are 1, because an index or a length of 1 is mostly valid, then 0. The first axis is
    taken for the batch and stays 1; in a second round it grows with the other dynamic ones.
    """
    for sizes, integer in _variations(signature):
        shapes = [
            tuple(_size(spec, axis, sizes) for axis in range(len(spec.shape)))
            for spec in signature.inputs
        ]
        if all(math.prod(shape) <= ELEMENTS for shape in shapes):
            source = random.Random(SEED)  # noqa: S311 (no secret)
            yield {
                spec.name: values(spec, shape, integer, source)
                for spec, shape in zip(signature.inputs, shapes, strict=True)
            }


def _variations(signature: Signature) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield ((batch size, other dynamic dimensions' size), integer value) to try."""
    is_dynamic = any(DYNAMIC in spec.shape for spec in signature.inputs)
    sizes = SIZES if is_dynamic else SIZES[:1]
    pairs = [(1, size) for size in sizes] + [(size, size) for size in sizes if size != 1]
    for pair in pairs:
        yield pair, 1
        yield pair, 0


def _size(spec: TensorSpec, axis: int, sizes: tuple[int, int]) -> int:
    """Return a tensor axis's declared size, or a generated one if dynamic.

    `sizes` are those of a dynamic first axis and of later ones.
    """
    size = spec.shape[axis]
    return size if size != DYNAMIC else sizes[min(axis, 1)]


def values(spec: TensorSpec, shape: tuple[int, ...], integer: int, source: random.Random) -> Tensor:
    """Return a tensor of generated values.

    Floats are eighths from 0 to 1: exact in every type, and short in JSON.
    """
    count, datatype = math.prod(shape), spec.datatype
    if datatype == "BYTES":
        return Tensor(datatype, shape, [b"a"] * count)
    width = DATATYPES[datatype] or 0
    if datatype not in FLOATS:
        return Tensor(datatype, shape, integer.to_bytes(width, "little") * count)
    eighths = [byte % 9 / 8 for byte in range(256)]
    encoded = tensors.from_json(TensorSpec("", datatype, (256,)), (256,), eighths).data
    drawn, data = source.randbytes(count), bytearray(count * width)
    for at in range(width):  # fill this byte of all values at once
        data[at::width] = drawn.translate(encoded[at::width])
    return Tensor(datatype, shape, bytes(data))
