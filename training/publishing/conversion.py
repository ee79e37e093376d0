"""Converted model with its original; proof that both answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from training.errors import InvalidArtifact
from training.export import graphs
from training.export.graphs import first_line
from training.publishing.requests import answer
from training.recipe import Arrays, Run

SEED = 20261201  # random seed of the proof's numbers, which are the same in every run
ROWS = (1, 3)  # rows of the proof's requests


@dataclass(frozen=True)
class Conversion:
    """ONNX graph of a model in another format, with the original."""

    graph: onnx.ModelProto
    original: Run
    rtol: float = graphs.RTOL
    atol: float = graphs.ATOL


def prove(conversion: Conversion, session: Any, requests: Sequence[Arrays]) -> int:
    """Compare a converted graph with the original on requests; return their number.

    To the requests come variants of the first: 1 and 3 rows of random numbers. Those to which the
    original answers with numbers that are not finite, or not at all, do not count.

    Raises:
        InvalidArtifact: an answer differs, or none could be compared.
    """
    compared = 0
    for request in [*requests, *_variants(session, requests)]:
        expected = _finite_answer(conversion, request)
        if expected is None:
            continue
        rows = len(next(iter(request.values())))
        try:
            answers = answer(session, request)
        except Exception as error:  # the runtime raises native errors of any kind
            reason = first_line(error)
            raise InvalidArtifact(
                f"the converted graph refuses a request of {rows} rows that the original answers: "
                f"{reason}"
            ) from error
        for name, values in expected.items():
            problem = graphs.difference(answers[name], values, conversion.rtol, conversion.atol)
            if problem is not None:
                raise InvalidArtifact(
                    f"the converted graph does not compute what the original does: {name} "
                    f"{problem} in a request of {rows} rows"
                )
        compared += 1
    if not compared:
        raise InvalidArtifact(
            "the original answers no request that could be made up: give one with --sample FILE.npz"
        )
    return compared


def _finite_answer(conversion: Conversion, request: Arrays) -> Arrays | None:
    try:
        answers = conversion.original(request)
    except Exception:  # a framework may refuse a made-up request by any error
        return None
    finite = all(np.isfinite(each).all() for each in answers.values() if each.dtype.kind == "f")
    return answers if finite else None


def _variants(session: Any, requests: Sequence[Arrays]) -> list[Arrays]:
    """Return the first request with random numbers, in 1 and 3 rows."""
    if not requests:
        return []
    first, random = requests[0], np.random.default_rng(SEED)
    shapes = [value.shape for value in session.get_inputs()]
    is_free = all(shape and not isinstance(shape[0], int) for shape in shapes)
    variants: list[Arrays] = []
    for rows in ROWS if is_free else (None,):
        variant = {}
        for name, values in first.items():
            resized = values if rows is None else values.take(range(rows), axis=0, mode="wrap")
            is_float = resized.dtype.kind == "f"
            variant[name] = (
                random.normal(size=resized.shape).astype(resized.dtype) if is_float else resized
            )
        variants.append(variant)
    return variants
