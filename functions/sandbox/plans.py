"""Load plans to try for a model, and the choice among them.

**The objective: the fastest cold start** (load and first run), as long as a request to a warm model
takes at most `SLOWER_1` times what it takes under the fastest plan for it, and a request of eight
rows `SLOWER_8` times. Cold starts that differ by less than `SAME_MS` or a tenth count as equal:
then the faster requests win. Runs below `SHORT_MS` get one thread. Numbers:
docs/decisions/0009-the-load-plan.md.

Only plans that answer as ONNX Runtime does by default are candidates (0028). The first to be
measured is the one that is most like the default, and stands if there is no time for others.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from functions.adapters.lambda_size import MB
from functions.core.registry.load_plan import Plan
from functions.sandbox.measure import Costs

SLOWER_1 = 1.75
SLOWER_8 = 2.5
SLOWER_TOKEN = 1.1  # for a decoder, which runs hundreds of times for a reply
SAME_MS = 3.0
ALIKE = 1.2  # requests that differ by less than this factor count as equal
# A run of at most this time with one thread gains nothing from a second one, which sleeps when a
# request arrives. Waking it takes CPU time that runs measured one after the other do not show.
SHORT_MS = 0.25
SEARCHED_BYTES = 16 * MB  # beginning of a model file, searched for operators' names


def plans_for(graph: Path, optimised: str, threads: int) -> list[Plan]:
    """Return the load plans (session options) to try, the default first."""
    layout = optimised != "none" and has_layouts(graph)
    return [
        Plan(optimised, threads=threads, layout=layout),
        Plan(optimised, prepacking=False, threads=threads),
    ]


def has_quantised(graph: Path, searched_bytes: int = SEARCHED_BYTES) -> bool:
    """Return True if an ONNX file's start names operators on quantised weights.

    Without prepacking, such weights take up to 70 times as long and give other outputs. A false
    match costs packing the weights once more, and all tolerance.
    """
    names = (b"NBits", b"Quant", b"Integer", b"QLinear", b"QGemm", b"QAttention")
    return _names_any(graph, searched_bytes, names)


def has_layouts(graph: Path, searched_bytes: int = SEARCHED_BYTES) -> bool:
    """Return True if an ONNX file's start names convolution or pooling operators.

    At optimisation level ALL, ONNX Runtime changes the memory layout of their operands. A false
    match costs no more than a slower load, which is measured.
    """
    return _names_any(graph, searched_bytes, (b"Conv", b"Pool"))


def _names_any(graph: Path, searched_bytes: int, names: Sequence[bytes]) -> bool:
    with graph.open("rb") as file:
        beginning = file.read(searched_bytes)
    return any(name in beginning for name in names)


def choose(candidates: Sequence[Costs], slower: float = SLOWER_1) -> Costs:
    """Return the measured load plan with the fastest acceptable cold start.

    By the objective at the top of this module; of equal plans the first.
    """
    candidates = [costs for costs in candidates if _is_short(costs)] or candidates
    slowness = [_slowness(costs, candidates, slower) for costs in candidates]
    allowed = [costs for costs, slow in zip(candidates, slowness, strict=True) if slow <= 1.0]
    if not allowed:
        return candidates[slowness.index(min(slowness))]
    fastest_ms = min(costs.cold_ms for costs in allowed)
    limit_ms = fastest_ms + max(SAME_MS, fastest_ms / 10)
    tied = [costs for costs in allowed if costs.cold_ms <= limit_ms]
    latencies = [(costs.batch_1_ms or 0.0) * (costs.batch_8_ms or 1.0) for costs in tied]
    alike = min(latencies) * ALIKE
    return next(costs for costs, ms in zip(tied, latencies, strict=True) if ms <= alike)


def _is_short(costs: Costs) -> bool:
    """Return True if a load plan with one thread has short runs."""
    longest_ms = max(costs.batch_1_ms or math.inf, costs.batch_8_ms or 0.0)
    return costs.plan.threads == 1 and longest_ms <= SHORT_MS


def _slowness(costs: Costs, candidates: Sequence[Costs], slower: float) -> float:
    """Return a load plan's slowdown as a share of the allowed one.

    A plan above 1 is too slow.
    """
    best_1 = _least(rival.batch_1_ms for rival in candidates)
    best_8 = _least(rival.batch_8_ms for rival in candidates)
    return max(_share(costs.batch_1_ms, best_1, slower), _share(costs.batch_8_ms, best_8, SLOWER_8))


def _share(own_ms: float | None, best_ms: float | None, allowed: float) -> float:
    return own_ms / best_ms / allowed if own_ms is not None and best_ms else 0.0


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
