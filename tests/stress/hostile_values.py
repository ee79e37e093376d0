"""Fuzzer of ONNX operators with extreme values and sizes, detecting crashes.

    python -m tests.stress.hostile_values [--catalog] [--unguarded] [--match TEXT] [--randoms 20]

Each graph is read and compiled as at registration, and gets input checks (guards). Then it runs, in
a process that is restarted after each crash, on its inputs with each axis 0, each value at the
extremes of its type, other sizes, and random mixtures of these. `--unguarded` leaves out checks and
guards, to find what needs them: the table in core/package/safety/operator_needs.py is its result.
"""

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from functions.core.errors import InvalidModel
from functions.core.package.onnx_reader import read_onnx
from functions.core.package.safety.guards import add_guards
from tests.stress.operator_graphs import Feeds, OperatorGraph, catalog, node_tests

CPU_S = 4.0  # for one run
DATA_BYTES = 600 * 1024 * 1024
DEATHS = 3  # of a graph, before the next
SIZES_MOST = 4_000_000  # elements of a tensor
# Requests choose how long these run; the deadline ends a Loop, and the function's a RoiAlign.
ENDLESS = ("loop", "roialign", "RoiAlign")

INTEGERS = (
    0, -1, 1, 2, -2, 3, 7, 64, -64, 100, 1000, 10**5, 10**9, 2**31 - 1, -(2**31), 2**31, 2**32,
    2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
FLOATS = (
    0.0, -1.0, 0.5, 3.5, float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-40, 1e6, 1e9,
    2.0**31, -(2.0**31), 2.0**63, -(2.0**63),
)  # fmt: skip
TEXTS = (
    "",
    "a",
    "a" * 5000,
    "\u00e9\U0001f600" * 7,
    "0",
    "-1",
    "nan",
    " ",
    "(((",
    "a,b,c",
    "9" * 400,
)
_PROGRESS = struct.Struct("qq")  # graph and request that run


# --- requests


def systematic(feeds: Feeds) -> Iterator[Feeds]:
    """Yield variants of a request with one extreme value or size each."""
    yield feeds
    for name, array in feeds.items():
        for value in _hostile(array):
            yield {**feeds, name: _filled(array, value)}
        for axis in range(array.ndim):
            for size in (0, 1):
                yield {**feeds, name: _with_size(array, axis, size)}
    yield from _least_by_minus_one(feeds)
    for size in sorted({size for array in feeds.values() for size in array.shape}):
        for other in (0, 1, size + 1):  # sizes that are alike stay alike
            yield {name: _resized(array, size, other) for name, array in feeds.items()}
    for axis in range(max((array.ndim for array in feeds.values()), default=0)):
        yield {
            name: array.take([], axis=axis) if axis < array.ndim else array
            for name, array in feeds.items()
        }


def mixed(rng: random.Random, feeds: Feeds) -> Feeds:
    """Return a copy of a request with one to three random mutations."""
    changed = dict(feeds)
    for _ in range(rng.choice((1, 1, 2, 3)) if feeds else 0):
        name = rng.choice(list(feeds))
        changed[name] = _changed(rng, changed[name])
    return changed


def _hostile(array: Any) -> Sequence[Any]:
    match array.dtype.kind:
        case "O":
            return TEXTS
        case "b":
            return (True, False)
        case "i" | "u":
            return INTEGERS
        case _:
            return FLOATS


def _filled(array: Any, value: Any) -> Any:
    return np.full(array.shape, _as_type(value, array.dtype), array.dtype)


def _as_type(value: Any, dtype: Any) -> Any:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return min(max(value, limits.min), limits.max)
    with np.errstate(all="ignore"):
        return value if dtype.kind in "Ob" else np.float64(value).astype(dtype)


def _least_by_minus_one(feeds: Feeds) -> Iterator[Feeds]:
    signed = {name: array for name, array in feeds.items() if array.dtype.kind == "i"}
    for first, array in signed.items():
        for second, divisor in signed.items():
            if first != second:
                least = np.full_like(array, np.iinfo(array.dtype).min)
                yield {**feeds, first: least, second: np.full_like(divisor, -1)}


def _resized(array: Any, size: int, other: int) -> Any:
    for axis in range(array.ndim):
        if array.shape[axis] == size:
            array = _with_size(array, axis, other)
    return array


def _with_size(array: Any, axis: int, size: int) -> Any:
    old = array.shape[axis]
    if size and (not old or array.size // old * size > SIZES_MOST):
        return array
    return array.take(np.arange(size) % max(old, 1), axis=axis)


def _changed(rng: random.Random, array: Any) -> Any:
    if array.ndim and (not array.size or rng.random() < 0.5):
        axis = rng.randrange(array.ndim)
        old = array.shape[axis]
        return _with_size(array, axis, rng.choice((0, 0, 1, max(old - 1, 0), old + 1, old * 7 + 1)))
    changed = array.copy()
    flat = changed.reshape(-1)
    share = rng.choice((0.0, 0.3, 1.0))
    for at in {rng.randrange(array.size), *range(min(array.size, 256))}:
        if share == 0.0 or rng.random() < share:
            flat[at] = _as_type(rng.choice(_hostile(array)), array.dtype)
        if share == 0.0:
            break
    return changed


# --- processes


@dataclass(slots=True)
class Outcome:
    """Fuzzing result: process crashes, and counts of graphs and requests."""

    deaths: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Fuzzer:
    """Fuzzer that runs ONNX graphs on hostile requests in forked processes."""

    def __init__(
        self, graphs: Sequence[OperatorGraph], *, randoms: int, seed: int, guarded: bool = True
    ) -> None:
        self._graphs = graphs
        self._randoms, self._seed, self._guarded = randoms, seed, guarded
        self._progress = mmap.mmap(-1, _PROGRESS.size + len(graphs))

    def run(self) -> Outcome:
        outcome, start = Outcome(), (0, 0)
        deaths: Counter[int] = Counter()
        while start[0] < len(self._graphs):
            status = self._fork(start)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            number, request = _PROGRESS.unpack(self._progress[: _PROGRESS.size])
            deaths[number] += 1
            name = self._graphs[number].name
            cause = _cause(status)
            if cause != "SIGPROF" or not any(word in name for word in ENDLESS):
                outcome.deaths.append(f"{name}, request {request}: {cause}")
            again = request >= 0 and deaths[number] < DEATHS
            start = (number, request + 1) if again else (number + 1, 0)
        for kind in self._progress[_PROGRESS.size :].decode():
            outcome.counts[{"A": "answered", "R": "refused", "F": "failed"}.get(kind, "other")] += 1
        return outcome

    def _fork(self, start: tuple[int, int]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self._work(start)
                os._exit(0)
            finally:
                os._exit(9)
        return os.waitpid(pid, 0)[1]

    def _work(self, start: tuple[int, int]) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the runtime's last words
        for number in range(start[0], len(self._graphs)):
            first = start[1] if number == start[0] else 0
            self._note(number, -1, CPU_S * 5)
            kind = self._try(number, first)
            at = _PROGRESS.size + number
            if not first:
                self._progress[at : at + 1] = kind.encode()

    def _try(self, number: int, first: int) -> str:
        """Run a graph's fuzzing requests; return the unchanged request's result code.

        "A": answered, "F": failed, "R": refused at registration. Requests before `first` are
        skipped.
        """
        graph, kind = self._graphs[number], "F"
        try:
            session = _load(graph.content, guarded=self._guarded)
        except InvalidModel:
            return "R"
        except Exception:
            return kind
        names = {value.name for value in session.get_inputs()}
        feeds = {name: array for name, array in graph.feeds.items() if name in names}
        if len(feeds) < len(names):
            return kind
        for request, changed in enumerate(self._requests(number, feeds)):
            if request >= first:
                self._note(number, request, CPU_S)
                if _answers(session, changed) and request == 0:
                    kind = "A"
        return kind

    def _requests(self, number: int, feeds: Feeds) -> Iterator[Feeds]:
        yield from systematic(feeds)
        rng = random.Random(f"{self._seed} {number}")  # noqa: S311 (no secret)
        for _ in range(self._randoms):
            yield mixed(rng, feeds)

    def _note(self, number: int, request: int, cpu_s: float) -> None:
        self._progress[: _PROGRESS.size] = _PROGRESS.pack(number, request)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def _load(content: bytes, *, guarded: bool) -> Any:
    """Load an ONNX graph as the server does, or without input checks.

    Raises:
        InvalidModel: registration refuses it.
    """
    options = _options()
    if not guarded:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        path, target = Path(name, "model.onnx"), Path(name, "optimised.onnx")
        path.write_bytes(content)
        read_onnx(path)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        add_guards(target)
        return ort.InferenceSession(
            target.read_bytes(), _options(), providers=["CPUExecutionProvider"]
        )


def _options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def _answers(session: Any, feeds: Feeds) -> bool:
    try:
        session.run(None, feeds)
    except Exception:  # an error of the runtime or of its Python interface: the process lives
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", action="store_true", help="only the graphs of our own")
    parser.add_argument("--unguarded", action="store_true")
    parser.add_argument("--match", default="", help="only graphs whose names contain it")
    parser.add_argument("--randoms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=20261122)
    options = parser.parse_args()
    began = time.monotonic()
    graphs = [*catalog(), *([] if options.catalog else node_tests())]
    graphs = [graph for graph in graphs if options.match in graph.name]
    fuzzer = Fuzzer(
        graphs, randoms=options.randoms, seed=options.seed, guarded=not options.unguarded
    )
    outcome = fuzzer.run()
    for death in outcome.deaths:
        print(death)
    counts = dict(outcome.counts) | {"graphs": len(graphs), "deaths": len(outcome.deaths)}
    print(json.dumps(counts | {"seconds": round(time.monotonic() - began)}))
    if outcome.deaths and not options.unguarded:
        sys.exit("requests ended the process")


if __name__ == "__main__":
    main()
