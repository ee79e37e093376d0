"""Requests for an existing ONNX file: read from samples, or made up."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import InvalidArtifact
from training.export import graphs
from training.export.graphs import first_line
from training.recipe import Arrays

# Sizes of free dimensions other than the batch, tried in this order.
SIZES = (2, 1, 4, 8, 16, 32, 224)
ELEMENTS = 2**24  # most values of a made-up input
EXTREMES = (100.0, -100.0)  # factors of a request's numbers
SEED = 20261122  # random seed of generated requests, which are the same in every run
DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip


def sample(path: Path, session: Any) -> dict[str, NDArray[Any]]:
    """Read a sample request from .npz, converted to the model's datatypes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InvalidArtifact(f"{path.name} cannot be read as .npz: {first_line(error)}") from error
    dtypes = {value.name: DTYPES[graphs.DATATYPES[value.type]] for value in session.get_inputs()}
    if set(arrays) != set(dtypes):
        raise InvalidArtifact(
            f"{path.name} holds {', '.join(arrays)}; the model takes {', '.join(dtypes)}"
        )
    return {name: values.astype(dtypes[name]) for name, values in arrays.items()}


def made_up(session: Any) -> list[Arrays]:
    """Generate one or two requests that the model answers without error.

    The first has one row; a second has two rows, where the batch size is free. There is none, and
    a line printed, if the model refuses all sizes and values that are tried.
    """
    reason = ""
    for batch, size, integer in _attempts():
        try:
            requests = list(_requests(session, batch, size, integer))
            for request in requests:
                session.run(None, dict(request))
        except Exception as error:  # native errors of any kind; the next size is tried
            reason = reason or first_line(error)
            continue
        return requests
    print(f"the model refuses every made-up request ({reason})", flush=True)
    return []


def _attempts() -> Iterator[tuple[int, int, int]]:
    """Yield sizes of batch and other dimensions, and an integer value.

    The batch is one row; where the model refuses that, it is as large as the other dimensions.
    """
    pairs = [(1, size) for size in SIZES] + [(size, size) for size in SIZES if size > 1]
    for (batch, size), integer in product(pairs, (1, 0)):
        yield batch, size, integer


def answer(session: Any, request: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(request)), strict=True))


def answers_to_extremes(session: Any, requests: Sequence[Arrays]) -> list[Arrays]:
    """Return answers to large numbers, which tell logits from probabilities."""
    answers = []
    for factor, sample in product(EXTREMES, requests[:1]):
        request = {
            name: values * values.dtype.type(factor) if values.dtype.kind == "f" else values
            for name, values in sample.items()
        }
        with contextlib.suppress(Exception):  # native errors of any kind: it refuses such numbers
            answers.append(answer(session, request))
    return answers


def _requests(session: Any, batch: int, size: int, integer: int) -> Iterator[Arrays]:
    """Yield a generated request of one row and, where possible, two.

    Two rows are possible where all inputs have a free first dimension.
    """
    inputs = session.get_inputs()
    is_free = all(value.shape and not isinstance(value.shape[0], int) for value in inputs)
    for rows in (1, 2) if is_free and batch == 1 else (batch,):
        random = np.random.default_rng(SEED)
        yield {
            value.name: _values(
                graphs.DATATYPES[value.type], _shape(value.shape, rows, size), integer, random
            )
            for value in inputs
        }


def _shape(declared: Sequence[int | str | None], rows: int, size: int) -> list[int]:
    """Fill a shape's free dimensions: axis 0 with `rows`, others with `size`.

    A sum of dimensions, such as a decoder's "past_length + length", is the sum of their sizes.
    """
    free = [rows, *[size] * len(declared)]
    return [
        dim if isinstance(dim, int) else _dimension(dim, free[axis], size)
        for axis, dim in enumerate(declared)
    ]


def _dimension(name: str | None, single: int, size: int) -> int:
    terms = [term.strip() for term in (name or "").split("+")]
    if len(terms) == 1:
        return single
    return sum(int(term) if term.isdigit() else size for term in terms)


def _values(
    datatype: str, shape: Sequence[int], integer: int, random: np.random.Generator
) -> NDArray[Any]:
    """Generate tensor values: random eighths for floats, `integer` for other numbers.

    Eighths from 0 to 1 are short in JSON.
    """
    if math.prod(shape) > ELEMENTS:
        raise ValueError(f"an input of shape {list(shape)} is too large to make up")
    if datatype == "BYTES":
        return np.full(shape, "a", object)
    if datatype.startswith("FP"):
        return (random.integers(0, 9, shape) / 8).astype(DTYPES[datatype])
    return np.full(shape, integer, DTYPES[datatype])
