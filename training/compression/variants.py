"""Choice among compressed variants of a graph, by metric, size and latency.

Zeros in a weight matrix compress nothing: neither the file nor the time shrinks. So `prune.py`
removes whole neurons and channels, and `distil.py` trains a smaller network. Their graphs are
variants, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from training.compression.quantize import CONVERTERS
from training.errors import CompressionFailed
from training.export import graphs
from training.export.graphs import Feeds, first_line
from training.export.quiet import quiet

Evaluate = Callable[[onnx.ModelProto], float]
Networks = Mapping[str, Callable[[], onnx.ModelProto]]

# Limits of variant / best so far: a variant is accepted if it is smaller and hardly slower, or
# faster and no larger. functions/sandbox has the same four numbers, because training never imports
# functions.
SMALLER, FASTER, AS_LARGE, AS_SLOW = 0.9, 0.9, 1.0, 1.25
ROUNDS = 31  # interleaved runs of each graph; the median counts
PATIENCE_S = 5.0  # measuring time after which no further round starts


@dataclass(frozen=True, slots=True)
class Row:
    """Result of one compressed variant: size, metric, latency, and acceptance.

    The latency is the median of one request on one thread.
    """

    kind: str
    size_bytes: int
    metric: float | None
    latency_ms: float | None
    accepted: bool
    reason: str

    def record(self) -> dict[str, Any]:
        """Return a variant's result as the manifest and report list it."""
        return {
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "metric": self.metric,
            "latency_ms": self.latency_ms,
            "taken": self.accepted,
            "why": self.reason,
        }

    def cells(self) -> str:
        """Format a variant's result as a line of the printed table."""
        value = "" if self.metric is None else f"{self.metric:.4f}"
        latency = "" if self.latency_ms is None else f"{self.latency_ms:.3f} ms"
        size = f"{self.size_bytes / 1000:.1f} KB" if self.size_bytes else ""
        return f"{self.kind:<14}{size:>10}  {value:>12}  {latency:>10}  {self.reason}"


@dataclass(frozen=True, slots=True)
class Compressed:
    """Outcome of compression: the accepted graph and the results of all variants.

    The accepted graph may be the original. `atol` goes into the manifest's tolerance. Kernels for
    compressed weights round differently on each processor, so answers count as equal if they differ
    by no more than compression changed them.
    """

    graph: onnx.ModelProto
    rows: tuple[Row, ...]
    atol: float
    network: str = "fp32"  # kind of the network that was quantized: the original, or a smaller one

    @property
    def kind(self) -> str:
        """Compression kind of the accepted graph, `fp32` for the original."""
        return next(row.kind for row in self.rows if row.accepted)

    def records(self) -> list[dict[str, Any]]:
        """Return all variants' results for the manifest and the report."""
        return [row.record() for row in self.rows]

    def table(self, metric: str = "metric") -> str:
        """Format all variants' results as a table to print."""
        header = f"{'':<14}{'size':>10}  {metric:>12}  {'latency':>10}"
        return "\n".join([header, *(row.cells() for row in self.rows)])


@dataclass(slots=True)
class _Variant:
    kind: str
    graph: onnx.ModelProto
    metric: float
    network: str = "fp32"
    atol: float = graphs.ATOL
    latency_ms: float = 0.0

    @property
    def size_bytes(self) -> int:
        return int(self.graph.ByteSize())

    def row(self, accepted: bool, reason: str) -> Row:
        return Row(self.kind, self.size_bytes, self.metric, self.latency_ms, accepted, reason)


def compress(
    graph: onnx.ModelProto,
    kinds: Sequence[str],
    evaluate: Evaluate,
    *,
    higher_is_better: bool,
    calibration: Sequence[Feeds],
    budget: float = 0.005,
    networks: Networks | None = None,
) -> Compressed:
    """Choose among a graph and its compressed variants by metric, size, latency.

    `kinds` are int8, int8-static, int4, fp16, or names of `networks`: smaller networks (pruned,
    distilled), made when they are needed. Once one is accepted, later kinds are made from it.
    `evaluate` computes the primary metric, which may get worse by the share `budget`.
    `calibration` are batches of the training part; the first row is the request whose latency is
    measured.

    Raises:
        CompressionFailed: a kind does not exist, or there is no calibration batch.
    """
    networks = networks or {}
    _check(kinds, networks, calibration)
    request = _first_row(calibration[0])
    base = best = source = _Variant("fp32", graph, evaluate(graph))
    rows: dict[str, Row] = {}
    accepted_kinds: list[str] = []
    for kind in kinds:
        try:
            variant = _make(kind, source, networks, evaluate, calibration)
        except Exception as error:  # converters raise anything; the model itself is sound
            reason = f"not made: {first_line(error)}"
            rows[kind] = Row(kind, 0, None, None, False, reason)
            continue
        best.latency_ms, variant.latency_ms = latencies([best.graph, variant.graph], request)
        base.latency_ms = base.latency_ms or best.latency_ms
        accepted, reason = _judge(best, variant, base.metric, budget, higher_is_better)
        rows[kind] = variant.row(accepted, reason)
        if accepted:
            accepted_kinds.append(kind)
            best = variant
            source = variant if kind in networks else source
    base.latency_ms = base.latency_ms or latencies([graph], request)[0]
    for kind in accepted_kinds[:-1]:
        reason = f"good enough, and {accepted_kinds[-1]} is better"
        rows[kind] = replace(rows[kind], accepted=False, reason=reason)
    first = base.row(not accepted_kinds, "as trained")
    return Compressed(best.graph, (first, *rows.values()), best.atol, best.network)


def moved(before: onnx.ModelProto, after: onnx.ModelProto, batches: Sequence[Feeds]) -> float:
    """Return the largest difference between the float outputs of two graphs.

    Raises:
        CompressionFailed: an output became NaN or infinite.
    """
    sessions = [graphs.open_session(graph) for graph in (before, after)]
    largest = 0.0
    for batch in batches:
        feeds = dict(graphs.with_empty_inputs(before, batch))
        outputs = (session.run(None, feeds) for session in sessions)
        for expected, actual in zip(*outputs, strict=True):
            if not np.issubdtype(expected.dtype, np.floating):
                continue
            if np.isfinite(expected).all() and not np.isfinite(actual).all():
                raise CompressionFailed("it answers NaN or infinity where the model does not")
            largest = max(largest, float(np.abs(expected - actual).max(initial=0)))
    return largest


def latencies(models: Sequence[onnx.ModelProto], request: Feeds) -> list[float]:
    """Measure each model's median latency of `request` in ms, on one thread.

    The graphs run in turn, so that a change of the machine's load affects all of them.
    """
    sessions = [graphs.open_session(graph, threads=1) for graph in models]
    # A student may take a shorter past than its teacher, so each graph has its own feeds.
    feeds = [dict(graphs.with_empty_inputs(graph, request)) for graph in models]
    times: list[list[float]] = [[] for _ in sessions]
    for session, inputs in zip(sessions, feeds, strict=True):
        session.run(None, inputs)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for session, inputs, measured in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(None, inputs)
            measured.append((time.perf_counter() - start) * 1000)
        if time.perf_counter() - began > PATIENCE_S:
            break
    return [statistics.median(measured) for measured in times]


def _check(kinds: Sequence[str], networks: Networks, calibration: Sequence[Feeds]) -> None:
    for kind in kinds:
        if kind not in CONVERTERS and kind not in networks:
            names = ", ".join([*CONVERTERS, *networks])
            raise CompressionFailed(f"there is no compression {kind!r}: {names}")
    if not calibration:
        raise CompressionFailed("compression needs examples of the train part")


def _make(
    kind: str,
    source: _Variant,
    networks: Networks,
    evaluate: Evaluate,
    calibration: Sequence[Feeds],
) -> _Variant:
    """Make a compressed variant of a graph, and compute its metric.

    Raises:
        Exception: whatever the converters raise.
    """
    with quiet():
        if kind in networks:
            graph = networks[kind]()
        else:
            graph = CONVERTERS[kind](source.graph, calibration)
    request = _first_row(calibration[0])
    if graphs.run_in_subprocess(graph, [graphs.with_empty_inputs(graph, request)]) is None:
        raise CompressionFailed("it ends the process that loads it")
    if kind in networks:
        return _Variant(kind, graph, evaluate(graph), network=kind)
    metric = evaluate(graph)
    atol = max(graphs.ATOL, moved(source.graph, graph, calibration))
    return _Variant(kind, graph, metric, source.network, atol)


def _judge(
    best: _Variant, variant: _Variant, metric: float, budget: float, higher_is_better: bool
) -> tuple[bool, str]:
    """Return whether to accept a compressed variant, and the reason as text.

    `metric` is that of the original graph, which the budget refers to.
    """
    loss = (metric - variant.metric) if higher_is_better else (variant.metric - metric)
    share = loss / abs(metric) if metric else float(loss > 0)
    if not np.isfinite(variant.metric) or share > budget:
        return False, f"not taken: {share:.2%} worse, and {budget:.2%} are allowed"
    size = variant.size_bytes / best.size_bytes
    latency = variant.latency_ms / best.latency_ms
    accepted = (size <= SMALLER and latency <= AS_SLOW) or (latency <= FASTER and size <= AS_LARGE)
    compared = f"size x{size:.2f}, latency x{latency:.2f} of {best.kind}"
    return accepted, f"{'taken' if accepted else 'not taken'}: {compared}"


def _first_row(batch: Feeds) -> Feeds:
    """Return a batch's first row, or all rows if input lengths differ."""
    rows = {len(values) for values in batch.values()}
    return {name: values[:1] for name, values in batch.items()} if len(rows) == 1 else batch
