"""Run a model on samples and compare outputs with the expected ones."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from operator import add, lt, mul, sub
from pathlib import Path
from typing import Any

from functions.adapters.onnx.sessions import OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.protocol.signature import Signature
from functions.core.protocol.tensors import FLOATS, Tensor
from functions.core.registry.load_plan import Plan

RUN_S = 30.0  # limit of a run in processor time of each thread: API Gateway waits for 29 s
REFUSALS = (InvalidRequest, ExecutionFailed, TimedOut)  # errors for which the inputs are the cause

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference outputs of the uploaded model, which every load plan must reproduce.

    `answers` has the inputs and outputs of each compared request by its name; outputs are None if
    the model refuses the inputs. `is_final`: ONNX Runtime's default session computed them, or does
    not fit into memory.
    """

    model: Path
    plan: Plan  # under which it was loaded
    answers: Mapping[str, tuple[Tensors, Tensors | None]]
    rtol: float
    atol: float
    is_final: bool

    def difference(self, outputs: Mapping[str, Tensors | None]) -> float | None:
        """Return the largest difference from the reference outputs, None if identical.

        Raises:
            InvalidModel: `SAMPLE_MISMATCH`, they differ by more than the tolerance.
        """
        differences = [
            self._difference(label, expected, outputs[label])
            for label, (_, expected) in self.answers.items()
            if label in outputs
        ]
        return max((value for value in differences if value is not None), default=None)

    def _difference(
        self, label: str, expected: Tensors | None, outputs: Tensors | None
    ) -> float | None:
        if expected is None or outputs is None:
            if expected is outputs:
                return None
            result = "answered" if expected is None else "refused"
            raise _mismatch(f"{label}: it is {result}, unlike by default")
        if dict(expected) == dict(outputs):
            return None
        return check(label, expected, outputs, self.rtol, self.atol)


NO_REFERENCE = Reference(Path(), Plan(), {}, rtol=0.0, atol=0.0, is_final=False)


def cpu_clock(threads: int) -> float:
    """Return this process's CPU time in seconds, divided by its threads."""
    return time.process_time() / threads


def run_model(session: OnnxSession, inputs: Tensors, signature: Signature) -> dict[str, Tensor]:
    """Run a model and return all its outputs.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut, MemoryError: as `OnnxSession.run` does.
    """
    return session.run(inputs, [spec.name for spec in signature.outputs], RUN_S)


def try_run(session: OnnxSession, inputs: Tensors, signature: Signature) -> Tensors | None:
    """Run a model; return None if it rejects inputs or lacks memory."""
    try:
        return run_model(session, inputs, signature)
    except (*REFUSALS, MemoryError):
        return None


def check(label: str, expected: Tensors, outputs: Tensors, rtol: float, atol: float) -> float:
    """Check a model's outputs against the expected ones, within tolerance.

    Floats may differ by atol + rtol * |expected|, everything else not at all. Returns the largest
    difference of two floats.

    Raises:
        InvalidModel: `SAMPLE_MISMATCH`, with `label`, output and the element that differs most.
    """
    largest = 0.0
    for name, want in expected.items():
        have = outputs[name]
        output = f"{label}: output {shown(name)}"
        if have.shape != want.shape:
            raise _mismatch(f"{output} has shape {list(have.shape)}, expected {list(want.shape)}")
        if have.data == want.data:
            continue
        if want.datatype in FLOATS:
            largest = max(largest, _check_floats(output, want, have, rtol, atol))
        else:
            _check_exact(output, want, have)
    return largest


def _check_exact(output: str, expected: Tensor, actual: Tensor) -> None:
    want, have = expected.values(), actual.values()
    differing = [at for at, pair in enumerate(zip(want, have, strict=True)) if pair[0] != pair[1]]
    if differing:
        at = differing[0]
        raise _mismatch(
            f"{output}{_index(at, expected.shape)} is {_text(have[at])}, "
            f"expected {_text(want[at])}; {len(differing)} of {expected.size} elements differ"
        )


def _check_floats(output: str, expected: Tensor, actual: Tensor, rtol: float, atol: float) -> float:
    want, have = expected.values(), actual.values()
    # Without a loop in Python for millions of elements, unless one differs more or is infinite.
    offs = list(map(abs, map(sub, have, want)))
    allowances = map(add, repeat(atol), map(mul, repeat(rtol), map(abs, want)))
    if all(map(lt, offs, allowances)):
        return max(offs, default=0.0)
    excess = {
        at: _excess(*pair, rtol, atol)
        for at, pair in enumerate(zip(want, have, strict=True))
        if not _is_close(*pair, rtol, atol)
    }
    if not excess:
        return max(filter(math.isfinite, offs), default=0.0)
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
