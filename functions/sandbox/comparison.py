"""Run a model on samples and compare outputs with the expected ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from functions.adapters.onnx.sessions import OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.protocol.signature import Signature
from functions.core.protocol.tensors import FLOATS, Tensor

RUN_S = 30.0  # time limit of a single run
REFUSALS = (InvalidRequest, ExecutionFailed, TimedOut)  # errors for which the inputs are the cause

Tensors = Mapping[str, Tensor]


def run_model(session: OnnxSession, inputs: Tensors, signature: Signature) -> dict[str, Tensor]:
    """Run a model and return all its outputs.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut, MemoryError: as `OnnxSession.run` does.
    """
    return session.run(inputs, [spec.name for spec in signature.outputs], RUN_S)


def try_run(session: OnnxSession, inputs: Tensors, signature: Signature) -> Tensors | None:
    """Run a model, or return None if it refuses the inputs."""
    try:
        return run_model(session, inputs, signature)
    except REFUSALS:
        return None


def run_all(
    session: OnnxSession,
    requests: Sequence[Tensors],
    signature: Signature,
    first: Tensors | None = None,
) -> list[Tensors | None]:
    """Run a model on each request and return the outputs.

    Returns None for those that it refuses. `first` are the outputs for the first request, if it
    ran before.
    """
    done = [first] if requests and first is not None else []
    return [*done, *(try_run(session, inputs, signature) for inputs in requests[len(done) :])]


def same_bits(left: Tensors | None, right: Tensors | None) -> bool:
    """Return True if two runs gave bit-identical outputs, or both failed."""
    if left is None or right is None:
        return left is right
    return dict(left) == dict(right)


def check(label: str, expected: Tensors, outputs: Tensors, rtol: float, atol: float) -> None:
    """Check a model's outputs against the expected ones, within tolerance.

    Floats may differ by atol + rtol * |expected|, everything else not at all.

    Raises:
        InvalidModel: `SAMPLE_MISMATCH`, with `label`, output and the element that differs most.
    """
    for name, want in expected.items():
        have = outputs[name]
        output = f"{label}: output {shown(name)}"
        if have.shape != want.shape:
            raise _mismatch(f"{output} has shape {list(have.shape)}, expected {list(want.shape)}")
        if have.data == want.data:
            continue
        if want.datatype in FLOATS:
            _check_floats(output, want, have, rtol, atol)
        else:
            _check_exact(output, want, have)


def _check_exact(output: str, expected: Tensor, actual: Tensor) -> None:
    want, have = expected.values(), actual.values()
    differing = [at for at, pair in enumerate(zip(want, have, strict=True)) if pair[0] != pair[1]]
    if differing:
        at = differing[0]
        raise _mismatch(
            f"{output}{_index(at, expected.shape)} is {_text(have[at])}, "
            f"expected {_text(want[at])}; {len(differing)} of {expected.size} elements differ"
        )


def _check_floats(output: str, expected: Tensor, actual: Tensor, rtol: float, atol: float) -> None:
    want, have = expected.values(), actual.values()
    excess = {
        at: _excess(*pair, rtol, atol)
        for at, pair in enumerate(zip(want, have, strict=True))
        if not _is_close(*pair, rtol, atol)
    }
    if not excess:
        return
    at = max(excess, key=excess.__getitem__)
    off, allowed = abs(have[at] - want[at]), atol + rtol * abs(want[at])
    raise _mismatch(
        f"{output}{_index(at, expected.shape)} is {have[at]:.9g}, expected {want[at]:.9g}: "
        f"off by {off:.3g}, allowed {allowed:.3g} (rtol {rtol:g}, atol {atol:g}); "
        f"{len(excess)} of {expected.size} elements differ"
    )


def _is_close(want: float, have: float, rtol: float, atol: float) -> bool:
    if math.isfinite(want):
        return abs(have - want) <= atol + rtol * abs(want)
    return have == want or (math.isnan(have) and math.isnan(want))


def _excess(want: float, have: float, rtol: float, atol: float) -> float:
    """Return how far a float exceeds its tolerance; infinite for NaN."""
    off = abs(have - want) - atol - rtol * abs(want)
    return math.inf if math.isnan(off) else off


def _index(at: int, shape: tuple[int, ...]) -> str:
    """Format the index of an element from its row-major position.

    >>> _index(5, (2, 3)), _index(0, ())
    ('[1, 2]', '')
    """
    index = []
    for size in reversed(shape):
        at, rest = divmod(at, size)
        index.append(rest)
    return f"[{', '.join(map(str, reversed(index)))}]" if index else ""


def _text(value: Any) -> str:
    return shown(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _mismatch(message: str) -> InvalidModel:
    return InvalidModel(message, code="SAMPLE_MISMATCH")
