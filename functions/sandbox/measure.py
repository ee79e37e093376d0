"""Measure a model's time and memory under a load plan.

Times are the processor's own: the best of a few runs, in CPU time, so that other work on the
machine does not count.
"""

import ctypes
import gc
import math
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from functions.adapters.lambda_size import MB
from functions.adapters.onnx.sessions import OnnxSession
from functions.core.protocol.signature import Signature
from functions.core.registry.load_plan import Plan
from functions.sandbox.comparison import Tensors, run_model, try_run
from functions.sandbox.samples import Sample, rows

RUNS = 8  # most runs of a batch
RUNS_S = 0.012  # no further run begins after this time
BATCH = 8
BATCH_MS = 250.0  # a batch expected to take longer is not measured

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """Measured times and memory of a model under one load plan.

    None means that a value was not measured.
    """

    plan: Plan
    load_ms: float
    first_ms: float | None = None
    batch_1_ms: float | None = None
    batch_8_ms: float | None = None
    resident_bytes: int = 0  # still in use after the runs
    peak_bytes: int = 0
    outputs: Tensors | None = None  # result of the first run
    answers: Mapping[str, Tensors | None] = field(default_factory=dict)  # to compared requests
    difference: float | None = None  # largest, from the reference's answers; None: same bits

    @property
    def cold_ms(self) -> float:
        """Time of a cold start in ms: load and first run."""
        return self.load_ms + (self.first_ms or 0.0)

    def record(self) -> dict[str, float]:
        """Return the measurements to store with the model version, by name."""
        measured = {
            "load_ms": self.load_ms,
            "first_run_ms": self.first_ms,
            "latency_ms_batch_1": self.batch_1_ms,
            "latency_ms_batch_8": self.batch_8_ms,
            "resident_mb": self.resident_bytes / MB,
            "peak_memory_mb": self.peak_bytes / MB,
        }
        return {name: round(value, 3) for name, value in measured.items() if value is not None}


def measure(
    load: Callable[[], OnnxSession],
    plan: Plan,
    sample: Sample | None,
    signature: Signature,
    size_bytes: int,
    accept: Callable[[Tensors], object] = lambda _: None,
) -> tuple[Costs, OnnxSession]:
    """Measure time and memory of loading a model and running it.

    Runs are the first one, one row and, if the model takes batches, eight rows of the sample.
    Without a sample only the load is measured. `accept` gets the first answer and may raise, before
    slow runs of a plan that is of no use.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut: the model refuses the sample.
        InvalidModel, MemoryError: it cannot be loaded, or `accept` raised it.
    """
    memory = Memory()
    session, load_ms = timed(load, plan.threads)
    if sample is None:
        resident = memory.resident_bytes(size_bytes)
        costs = Costs(plan, load_ms, resident_bytes=resident, peak_bytes=memory.peak_bytes())
        return costs, session
    outputs, first_ms = timed(lambda: run_model(session, sample.inputs, signature), plan.threads)
    accept(outputs)
    batch_1_ms = _one_row_ms(session, plan, sample, signature, first_ms)
    # Memory of the 8-row run does not count towards `memory_mb`.
    resident, peak = memory.resident_bytes(size_bytes), memory.peak_bytes()
    batch_8_ms = _eight_rows_ms(session, plan, sample, signature, batch_1_ms)
    costs = Costs(
        plan, load_ms, first_ms, batch_1_ms, batch_8_ms, resident, max(peak, resident), outputs
    )
    return costs, session


def process_seconds() -> float:
    """Return the CPU time of all threads of this process.

    Where RLIMIT_CPU is set, as in the sandbox, `time.process_time` stands still between two ticks
    of the scheduler: a run of less than 4 ms would take 0.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Stopwatch:
    """Stopwatch for multi-threaded work that excludes waiting for other processes.

    One thread is measured by its CPU time. Several are measured by wall-clock time, or by the CPU
    time of them all if that is less, because they had to wait for a processor.
    """

    def __init__(self, threads: int) -> None:
        self._clocks = (time.thread_time,) if threads == 1 else (time.perf_counter, process_seconds)
        self._began = [now() for now in self._clocks]

    def seconds(self) -> float:
        """Return the seconds since the stopwatch started."""
        return min(now() - began for now, began in zip(self._clocks, self._began, strict=True))


def timed(call: Callable[[], T], threads: int) -> tuple[T, float]:
    """Call a function; return its result and duration in milliseconds."""
    stopwatch = Stopwatch(threads)
    result = call()
    return result, stopwatch.seconds() * 1000


def _one_row_ms(
    session: OnnxSession, plan: Plan, sample: Sample, signature: Signature, first_ms: float
) -> float | None:
    """Return the milliseconds of a one-row request; None if refused.

    The request is one row of the sample, or the sample itself if it has no rows. A long first run
    of it is not repeated, unless the plan does not pack weights at load: then the first run read
    them from their file.
    """
    one_row = rows(sample.inputs, 1) if signature.batches else None
    is_other_request = one_row is not None and not _same_shapes(one_row, sample.inputs)
    if plan.prepacking and first_ms >= RUNS_S * 1000 and not is_other_request:
        return first_ms
    return _best_ms(session, one_row or sample.inputs, signature, plan.threads)


def _eight_rows_ms(
    session: OnnxSession, plan: Plan, sample: Sample, signature: Signature, row_ms: float | None
) -> float | None:
    if not signature.batches or row_ms is None or row_ms * BATCH > BATCH_MS:
        return None
    batch = rows(sample.inputs, BATCH)
    return _best_ms(session, batch, signature, plan.threads) if batch else None


def _best_ms(
    session: OnnxSession, inputs: Tensors, signature: Signature, threads: int
) -> float | None:
    """Return a model's fastest of several runs in ms; None if refused."""
    best, total = math.inf, Stopwatch(threads)
    for run in range(RUNS):
        if run and total.seconds() > RUNS_S:
            break
        outputs, run_ms = timed(lambda: try_run(session, inputs, signature), threads)
        if outputs is None:
            return None
        best = min(best, run_ms)
    return best


def _same_shapes(left: Tensors, right: Tensors) -> bool:
    return all(tensor.shape == right[name].shape for name, tensor in left.items())


class Memory:
    """Growth of this process's resident memory since creation, mapped files included."""

    def __init__(self) -> None:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)  # give freed memory back, so that its reuse counts as growth
        # If this is not allowed, the peak is that of the whole process: too high, never too low.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._before_bytes = _status_bytes("VmRSS")

    def resident_bytes(self, least_bytes: int) -> int:
        """Return the growth of resident memory in bytes, at least `least_bytes`.

        The size of the model's files as least: requests will touch mapped weights that no run has
        touched so far.
        """
        return max(_status_bytes("VmRSS") - self._before_bytes, least_bytes)

    def peak_bytes(self) -> int:
        return max(0, _status_bytes("VmHWM") - self._before_bytes)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
