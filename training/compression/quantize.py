"""Smaller and faster forms of a graph, each taken only if the model stays as good as it was promised to be.

Zeros in a weight matrix are no compression: neither the file nor the time shrinks. `prune.py` removes whole neurons
and channels, `distil.py` trains a smaller network; both come in here as graphs to judge.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from training.errors import CompressionFailed
from training.export import graphs
from training.export.graphs import Feeds, first_line

Evaluate = Callable[[onnx.ModelProto], float]
Make = Callable[[onnx.ModelProto, Sequence[Feeds]], onnx.ModelProto]

SMALLER, FASTER, AS_LARGE, AS_SLOW = (
    0.9,
    0.9,
    1.0,
    1.25,
)  # what a form has to gain, and may lose for it
ROUNDS = 31  # interleaved runs of each form; the median counts
PATIENCE_S = 5.0  # after it, no further round
BLOCK = 32  # weights that share a scale, int4
OPERATORS = (
    "MatMul",
    "Gemm",
    "Attention",
    "LSTM",
)  # integer Conv is 9 times slower than float (field notes 3.5)


@dataclass(frozen=True, slots=True)
class Row:
    """One form of the model and what became of it. `latency_ms` is the median of one request on one thread."""

    kind: str
    size_bytes: int
    metric: float | None
    latency_ms: float | None
    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Compressed:
    """The form that was taken, possibly the one that came in, and the table of all.

    `atol` is for the manifest's tolerance: the kernels of compressed weights round in ways of their own, another on
    each processor, so their answers count as equal as far as compressing moved them.
    """

    graph: onnx.ModelProto
    rows: tuple[Row, ...]
    atol: float
    network: str = (
        "fp32"  # what its numbers were trained in: the one that came in, or one of `made`
    )

    @property
    def kind(self) -> str:
        """What the graph is: a kind, or `fp32`."""
        return next(row.kind for row in self.rows if row.taken)

    def records(self) -> list[dict[str, Any]]:
        """The table for the manifest and the report."""
        return [asdict(row) for row in self.rows]

    def table(self, metric: str = "metric") -> str:
        """The table to print."""
        lines = [f"{'':<14}{'size':>10}  {metric:>12}  {'latency':>10}"]
        for row in self.rows:
            value = "" if row.metric is None else f"{row.metric:.4f}"
            latency = "" if row.latency_ms is None else f"{row.latency_ms:.3f} ms"
            size = f"{row.size_bytes / 1000:.1f} KB" if row.size_bytes else ""
            lines.append(f"{row.kind:<14}{size:>10}  {value:>12}  {latency:>10}  {row.why}")
        return "\n".join(lines)


@dataclass(slots=True)
class _Form:
    kind: str
    graph: onnx.ModelProto
    size: int
    metric: float
    latency_ms: float = 0.0
    atol: float = graphs.ATOL
    network: str = "fp32"


def compress(
    graph: onnx.ModelProto,
    kinds: Sequence[str],
    evaluate: Evaluate,
    *,
    higher_is_better: bool,
    calibration: Sequence[Feeds],
    budget: float = 0.005,
    made: Mapping[str, Callable[[], onnx.ModelProto]] | None = None,
) -> Compressed:
    """The best of `graph` and its forms `kinds`: int8, int8-static, int4, fp16, or what `made` makes, by its name.

    `evaluate` is the primary metric, which may become worse by `budget`, a share of what it is. `calibration` are
    batches of the train part; the first row of the first is what latency is measured with. A form from `made`
    (pruned, distilled) that is taken is what the later kinds are made from.

    Raises:
        CompressionFailed: a kind does not exist, or there is nothing to calibrate with.
    """
    made = made or {}
    unknown = [kind for kind in kinds if kind not in MAKERS and kind not in made]
    if unknown:
        raise CompressionFailed(
            f"there is no compression {unknown[0]!r}: {', '.join([*MAKERS, *made])}"
        )
    if not calibration:
        raise CompressionFailed("compression needs examples of the train part")
    request = _one(calibration[0])
    base = best = source = _Form("fp32", graph, graph.ByteSize(), evaluate(graph))
    rows: dict[str, Row] = {}
    good: list[str] = []
    for kind in kinds:
        try:
            with _quiet():
                form = made[kind]() if kind in made else MAKERS[kind](source.graph, calibration)
            if graphs.risky_answers(form, [graphs.begun(graph, request)]) is None:
                raise CompressionFailed("it ends the process that loads it")
            candidate = _Form(
                kind, form, form.ByteSize(), 0.0, network=kind if kind in made else source.network
            )
            candidate.metric = evaluate(form)
            if kind not in made:
                candidate.atol = max(graphs.ATOL, moved(source.graph, form, calibration))
        except (
            Exception
        ) as error:  # the tools raise anything; the model itself is none the worse for it
            rows[kind] = Row(kind, 0, None, None, False, f"not made: {first_line(error)}")
            continue
        best.latency_ms, candidate.latency_ms = latencies([best.graph, candidate.graph], request)
        base.latency_ms = base.latency_ms or best.latency_ms
        taken, why = _judge(best, candidate, base.metric, budget, higher_is_better)
        rows[kind] = Row(kind, candidate.size, candidate.metric, candidate.latency_ms, taken, why)
        if taken:
            good.append(kind)
            best = candidate
            source = candidate if kind in made else source
    base.latency_ms = base.latency_ms or latencies([graph], request)[0]
    for kind in good[:-1]:
        rows[kind] = replace(rows[kind], taken=False, why=f"good enough, and {good[-1]} is better")
    first = Row("fp32", base.size, base.metric, base.latency_ms, not good, "as trained")
    return Compressed(best.graph, (first, *rows.values()), best.atol, best.network)


def _judge(
    best: _Form, form: _Form, metric: float, budget: float, higher_is_better: bool
) -> tuple[bool, str]:
    lost = (metric - form.metric) if higher_is_better else (form.metric - metric)
    share = lost / abs(metric) if metric else float(lost > 0)
    if not np.isfinite(form.metric) or share > budget:
        return False, f"not taken: {share:.2%} worse, and {budget:.2%} are allowed"
    size, latency = form.size / best.size, form.latency_ms / best.latency_ms
    gains = (size <= SMALLER and latency <= AS_SLOW) or (latency <= FASTER and size <= AS_LARGE)
    compared = f"size x{size:.2f}, latency x{latency:.2f} of {best.kind}"
    return gains, f"{'taken' if gains else 'not taken'}: {compared}"


def moved(before: onnx.ModelProto, after: onnx.ModelProto, batches: Sequence[Feeds]) -> float:
    """The largest difference between the answers of two graphs, over all outputs that are floats.

    Raises:
        CompressionFailed: what was a number is none any more.
    """
    sessions = [graphs.runtime(graph) for graph in (before, after)]
    largest = 0.0
    for batch in batches:
        feeds = dict(graphs.begun(before, batch))
        for one, other in zip(*(session.run(None, feeds) for session in sessions), strict=True):
            if np.issubdtype(one.dtype, np.floating):
                if np.isfinite(one).all() and not np.isfinite(other).all():
                    raise CompressionFailed("it answers NaN or infinity where the model does not")
                largest = max(largest, float(np.abs(one - other).max(initial=0)))
    return largest


def latencies(forms: Sequence[onnx.ModelProto], request: Feeds) -> list[float]:
    """Median milliseconds of one request, each graph in turn, on one thread."""
    sessions = [graphs.runtime(graph, threads=1) for graph in forms]
    feeds = [
        dict(graphs.begun(graph, request)) for graph in forms
    ]  # a student may keep less of the past
    times: list[list[float]] = [[] for _ in sessions]
    for session, asked in zip(sessions, feeds, strict=True):
        session.run(None, asked)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for session, asked, measured in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(None, asked)
            measured.append((time.perf_counter() - start) * 1000)
        if time.perf_counter() - began > PATIENCE_S:
            break
    return [statistics.median(measured) for measured in times]


def _one(batch: Feeds) -> Feeds:
    """The first row of a batch, where all inputs have as many rows; else the batch."""
    rows = {len(values) for values in batch.values()}
    return {name: values[:1] for name, values in batch.items()} if len(rows) == 1 else batch


# --- the kinds --------------------------------------------------------------------------------------------------------


def dynamic_int8(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Weights of matrices in 7 bits, activations at run time in 8: without VNNI, sums of 8 and 8 saturate on x86."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _files(graph) as (source, target):
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(OPERATORS),
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return _changed(graph, onnx.load(target))


def static_int8(graph: onnx.ModelProto, calibration: Sequence[Feeds]) -> onnx.ModelProto:
    """Weights in 7 bits for each channel, activations in 8 with ranges measured on `calibration`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([graphs.begun(graph, batch) for batch in calibration])

        def get_next(self) -> Feeds | None:
            return next(self.batches, None)

    with _files(graph) as (source, target):
        prepared = source.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _changed(graph, onnx.load(target))


def int4(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Weights of matrices in 4 bits, 32 to a scale; computed in int8, since float would be 6 times slower."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    matrices = ONNXModel(model)
    matrices.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        matrices.model, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    return _changed(graph, quantizer.model.model)


def fp16(graph: onnx.ModelProto, _: Sequence[Feeds] = ()) -> onnx.ModelProto:
    """Weights and sums in half precision; callers go on sending and reading what they did."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    return _changed(graph, convert_float_to_float16(model, keep_io_types=True))


MAKERS: Mapping[str, Make] = {
    "int8": dynamic_int8,
    "int8-static": static_int8,
    "int4": int4,
    "fp16": fp16,
}


def _changed(before: onnx.ModelProto, after: onnx.ModelProto) -> onnx.ModelProto:
    """`after`, cleaned, if the tool found anything to change.

    Raises:
        CompressionFailed: it did not.
    """
    model = graphs.clean(after)
    operators = [
        sorted((node.domain, node.op_type) for node in graph.graph.node)
        for graph in (before, model)
    ]
    if operators[0] == operators[1]:
        raise CompressionFailed("the model has no weights of that kind")
    return model


@contextlib.contextmanager
def _files(graph: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    """The graph as a file, and where the tool may write its own."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.onnx"
        source.write_bytes(graph.SerializeToString())
        yield source, Path(name) / "target.onnx"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' advice."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
