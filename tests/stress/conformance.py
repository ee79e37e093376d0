"""Conformance test that registers and serves every ONNX backend node test.

    python -m tests.stress.conformance [--every 1] [--workers 2] [--show CODE]

The `onnx` package generates 1,884 models of one operator with inputs and outputs. Those that plain
ONNX Runtime runs as the test expects must be READY and give the same answer over the Open
Inference Protocol, or be refused for a reason in `EXCEPTIONS`. Each case runs in a worker process,
so that a crash is counted. The test fails if one is wrong, crashes or is refused for another
reason.
"""

import argparse
import importlib
import multiprocessing
import multiprocessing.connection
import pkgutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, OptionalProto, SequenceProto, TensorProto, numpy_helper
from onnx.backend.test.case import node as node_tests

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from tests.stress.binary_requests import RequestFailed, infer

RIGHT, WRONG, CRASH, REFUSED = "READY, right", "WRONG", "CRASH", "REFUSED"
FAILURES = {WRONG, CRASH, REFUSED}
NOT_RUN = "(plain ONNX Runtime does not run it as the test expects)"
PATIENCE_S = 300  # s for one case on a busy machine

# Code of a rejection -> why a model that plain ONNX Runtime runs may be refused with it.
EXCEPTIONS = {
    "UNSUPPORTED_TYPE": "the protocol has no sequences, maps, optional values, or floats of 8 bits",
    "UNSAFE_INTEGER_DIVISION": "INT_MIN / -1 would end the process (decision 0033)",
}
# Operators whose answers are random: only their types and shapes are compared.
RANDOM = {
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """ONNX backend node test: model, inputs by name and expected outputs."""

    name: str
    model: bytes
    inputs: Mapping[str, Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float
    random: bool


@dataclass(frozen=True)
class Outcome:
    """Result of one conformance case, with an explanation."""

    name: str
    kind: str  # RIGHT, WRONG, CRASH, REFUSED, NOT_RUN, or a code of EXCEPTIONS
    detail: str = ""


def modules() -> list[str]:
    """Return the module names of the `onnx` package's node tests."""
    return sorted(module.name for module in pkgutil.iter_modules(node_tests.__path__))


def collect(names: Iterable[str] | None = None) -> list[Case]:
    """Generate ONNX node tests from the named modules, or from all.

    Takes 10 s for all. Modules that were imported before are included.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules() if names is None else names:
            importlib.import_module(f"{node_tests.__name__}.{name}")
    return [_case(test) for test in node_tests._NodeTestCases]


def _case(test: Any) -> Case:
    model: ModelProto = test.model
    [(inputs, outputs)] = test.data_sets
    names = [value.name for value in model.graph.input]
    operators = {node.op_type for node in model.graph.node}
    return Case(
        name=test.name,
        model=model.SerializeToString(),
        inputs=dict(zip(names, map(_plain, inputs), strict=False)),
        outputs=[_plain(output) for output in outputs],
        rtol=max(test.rtol, 1e-3),
        atol=max(test.atol, 1e-7),
        random=bool(operators & RANDOM),
    )


def _plain(value: Any) -> Any:
    """Convert a protobuf tensor, sequence or optional to numpy values."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, OptionalProto):
        return numpy_helper.to_optional(value)
    return value


def judge(case: Case, sandbox: ProcessSandbox, directory: Path) -> Outcome:
    """Evaluate a case: compare served outputs with plain ONNX Runtime's."""
    try:
        session = ort.InferenceSession(case.model, providers=["CPUExecutionProvider"])
        expected = session.run(None, dict(case.inputs))
    except Exception as error:  # onnxruntime's own exceptions derive from it alone
        return Outcome(case.name, NOT_RUN, str(error))
    if problem := _difference(case, expected, case.outputs):
        return Outcome(case.name, NOT_RUN, problem)
    platform = Platform(directory, sandbox)
    version = platform.upload(case.model)
    if version.state is not State.READY:
        assert version.reason is not None
        code = version.reason.code
        detail = f"{code}: {version.reason.message}"
        return Outcome(case.name, code if code in EXCEPTIONS else REFUSED, detail)
    try:
        outputs = infer(platform, version, case.inputs)
    except RequestFailed as error:
        return Outcome(case.name, WRONG, str(error))
    problem = _difference(case, list(outputs.values()), expected)
    return Outcome(case.name, WRONG if problem else RIGHT, problem)


def _difference(case: Case, outputs: Sequence[Any], expected: Sequence[Any]) -> str:
    """Describe how outputs differ from expected ones, empty text if equal."""
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs instead of {len(expected)}"
    for position, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
        try:
            _compare(case, output, wanted)
        except AssertionError as error:
            return f"output {position}: {' '.join(str(error).split())[:300]}"
    return ""


def _compare(case: Case, output: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(output) == len(expected), "length of a sequence"
        for left, right in zip(output, expected, strict=True):
            _compare(case, left, right)
        return
    if expected is None or output is None:
        assert output is expected, "one is None"
        return
    output, expected = np.asarray(output), np.asarray(expected)
    assert output.shape == expected.shape, f"shape {output.shape} instead of {expected.shape}"
    if case.random:
        return
    if expected.dtype.kind in "OSU":
        np.testing.assert_array_equal(output.astype(str), expected.astype(str))
    elif expected.dtype.kind in "biu":
        np.testing.assert_array_equal(output, expected)
    else:
        left, right = (array.astype(np.complex128) for array in (output, expected))
        np.testing.assert_allclose(left, right, case.rtol, case.atol)


# --- workers


def _work(cases: Sequence[Case], first: int, step: int, pipe: Any) -> None:
    """Evaluate every `step`-th case in a worker process; send each outcome."""
    ort.set_default_logger_severity(3)  # errors
    sandbox = ProcessSandbox(spare=True)
    for case in cases[first::step]:
        with tempfile.TemporaryDirectory() as directory:
            try:
                outcome = judge(case, sandbox, Path(directory))
            except Exception:  # a fault of ours: the run goes on and fails at its end
                outcome = Outcome(case.name, CRASH, traceback.format_exc())
        pipe.send(outcome)
        sandbox.refill()
    sandbox.close()


def run(cases: Sequence[Case], workers: int = 2) -> Iterator[Outcome]:
    """Evaluate cases in worker processes; replace a worker that dies."""
    context = multiprocessing.get_context("fork")
    pipes: dict[Any, tuple[Any, int, int]] = {}  # pipe -> process, worker's number, next case

    def start(number: int, first: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(cases, first, workers, sender))
        process.start()
        sender.close()
        pipes[receiver] = process, number, first

    for number in range(min(workers, len(cases))):
        start(number, number)
    while pipes:
        ready = multiprocessing.connection.wait(list(pipes), PATIENCE_S)
        for pipe in ready or list(pipes):
            process, number, position = pipes.pop(pipe)
            try:
                outcome = pipe.recv() if ready else Outcome(cases[position].name, CRASH, "hangs")
                pipes[pipe] = process, number, position + workers
                yield outcome
                if ready:
                    continue
                process.kill()
                del pipes[pipe]
            except EOFError:
                process.join()
                if process.exitcode == 0:
                    continue
                yield Outcome(cases[position].name, CRASH, f"exit {process.exitcode}")
            if position + workers < len(cases):
                start(number, position + workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the ONNX node tests, print a table; return 1 on failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--every", type=int, default=1, help="judge every n-th case only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", default="", help="print the cases with this outcome, too")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    for outcome in run(collect()[:: options.every], options.workers):
        counts[outcome.kind] += 1
        if outcome.kind in {*FAILURES, options.show}:
            print(f"{outcome.kind}: {outcome.name}: {outcome.detail}", flush=True)
    for kind, count in counts.most_common():
        print(f"{count:6} {kind}  {EXCEPTIONS.get(kind, '')}")
    return 1 if counts.keys() & FAILURES else 0


if __name__ == "__main__":
    sys.exit(main())
