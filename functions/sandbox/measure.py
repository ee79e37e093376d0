"""What a load plan costs, and which of several is taken.

**The objective: the fastest cold start** (session and first run), as long as a request to a warm model takes at most
`SLOWER_1` times what it takes under the best plan, and one of eight rows `SLOWER_8` times. Cold starts that differ by
less than `SAME_MS` or a tenth are equal: then the faster requests win. Times are what the processor needs when nobody
else wants it: the best of a few runs and, of one thread, its own time. Numbers: docs/decisions/0009-the-load-plan.md.
"""

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from functions.adapters.lambda_size import MB
from functions.adapters.onnx.sessions import OnnxSession
from functions.core.protocol.signature import Signature
from functions.core.registry.load_plan import Plan
from functions.sandbox.samples import Sample, Tensors, answer, rows, try_answer

SLOWER_1 = 1.75
SLOWER_8 = 2.5
SAME_MS = 3.0
ALIKE = 1.2  # requests that differ by less do not decide
RUNS = 8  # of each batch at the most,
RUNS_S = 0.012  # and no new one after this time
BATCH = 8
BATCH_MS = 250.0  # a batch that will take longer than this is not measured


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What one plan costs. Times in ms; None where it was not measured."""

    plan: Plan
    load_ms: float
    first_ms: float | None = None
    batch_1_ms: float | None = None
    batch_8_ms: float | None = None
    resident_bytes: int = 0  # kept after the runs
    peak_bytes: int = 0  # at the most, at any time
    outputs: Tensors | None = None  # of the first run

    @property
    def cold_ms(self) -> float:
        return self.load_ms + (self.first_ms or 0.0)

    def record(self) -> dict[str, float]:
        """What of it is kept with the version."""
        found = {
            "load_ms": self.load_ms,
            "first_run_ms": self.first_ms,
            "latency_ms_batch_1": self.batch_1_ms,
            "latency_ms_batch_8": self.batch_8_ms,
            "resident_mb": self.resident_bytes / MB,
            "peak_memory_mb": self.peak_bytes / MB,
        }
        return {name: round(value, 3) for name, value in found.items() if value is not None}


def measure(
    load: Callable[[], OnnxSession],
    plan: Plan,
    sample: Sample | None,
    signature: Signature,
    size_bytes: int,
) -> tuple[Costs, OnnxSession]:
    """Load a model and run it on `sample`, then on one and on eight rows of it where rows are a batch.

    Where weights are packed at load, the first run is one like all others; where not, it reads them from their file.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut: the model refuses the sample.
        InvalidModel, MemoryError: it cannot be loaded.
    """
    now = clock(plan.threads)
    with Memory() as memory:
        began = now()
        session = load()
        load_ms = (now() - began) * 1000
        if sample is None:
            return Costs(
                plan, load_ms, resident_bytes=memory.kept(size_bytes), peak_bytes=memory.peak()
            ), session
        began = now()
        outputs = answer(session, sample.inputs, signature)
        first_ms = (now() - began) * 1000
        one = rows(sample.inputs, 1) if signature.batches else None
        batch_1: float | None = first_ms
        if (
            not plan.prepacking
            or first_ms < RUNS_S * 1000
            or (one and not _same_shapes(one, sample.inputs))
        ):
            batch_1 = _best_ms(session, one or sample.inputs, signature, now)
        resident, peak = (
            memory.kept(size_bytes),
            memory.peak(),
        )  # what eight rows take is nobody's duty to have
        batch_8 = None
        if signature.batches and batch_1 is not None and batch_1 * BATCH <= BATCH_MS:
            eight = rows(sample.inputs, BATCH)
            batch_8 = _best_ms(session, eight, signature, now) if eight else None
    return Costs(
        plan, load_ms, first_ms, batch_1, batch_8, resident, max(peak, resident), outputs
    ), session


def clock(threads: int) -> Callable[[], float]:
    """What measures work of so many threads, in seconds. Of one, nobody who takes the processor away can spoil it."""
    return time.thread_time if threads == 1 else time.perf_counter


def _best_ms(
    session: OnnxSession, inputs: Tensors, signature: Signature, now: Callable[[], float]
) -> float | None:
    """None where the model refuses `inputs`."""
    best, until = math.inf, now() + RUNS_S
    for run in range(RUNS):
        began = now()
        if run and began > until:
            break
        if try_answer(session, inputs, signature) is None:
            return None
        best = min(best, now() - began)
    return best * 1000


def _same_shapes(one: Tensors, other: Tensors) -> bool:
    return all(tensor.shape == other[name].shape for name, tensor in one.items())


def choose(candidates: Sequence[Costs]) -> Costs:
    """The one that the objective above asks for; where it leaves a choice, the earlier one."""
    slowness = {id(one): _slowness(one, candidates) for one in candidates}
    bounded = [one for one in candidates if slowness[id(one)] <= 1.0]
    if not bounded:
        return min(candidates, key=lambda one: slowness[id(one)])
    fastest = min(one.cold_ms for one in bounded)
    same = [one for one in bounded if one.cold_ms <= fastest + max(SAME_MS, fastest / 10)]
    taken = [(one.batch_1_ms or 0.0) * (one.batch_8_ms or 1.0) for one in same]
    return next(one for one, cost in zip(same, taken, strict=True) if cost <= min(taken) * ALIKE)


def _slowness(one: Costs, among: Sequence[Costs]) -> float:
    """How much of what is allowed `one` takes: above 1, it is too slow."""
    taken = [0.0]
    for allowed, own, best in (
        (SLOWER_1, one.batch_1_ms, _least(other.batch_1_ms for other in among)),
        (SLOWER_8, one.batch_8_ms, _least(other.batch_8_ms for other in among)),
    ):
        if own is not None and best:
            taken.append(own / best / allowed)
    return max(taken)


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


class Memory:
    """What this process takes more than at the beginning: resident pages, those of mapped files included."""

    def __enter__(self) -> "Memory":
        gc.collect()
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # glibc's: what was freed shall not be found again
        if trim is not None:
            trim(0)
        with suppress(
            OSError
        ):  # then the peak is that of the whole process so far: too high rather than too low
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        self._before = _resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kept(self, least_bytes: int) -> int:
        """At least the file's size: a mapped weight that no run has touched yet will be touched."""
        return max(_resident("VmRSS") - self._before, least_bytes)

    def peak(self) -> int:
        return max(0, _resident("VmHWM") - self._before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
