"""Document of Triton's statistics extension: inferences and their durations.

The numbers are a model's, from every environment: what they have written to the registry's table,
and what this one has not written yet. The counts of others are late by the interval of their
writes.
"""

from collections.abc import Iterable
from typing import Any

from functions.core.registry.table import Table
from functions.core.usage.counters import Counters
from functions.core.usage.meter import Meter

Document = dict[str, Any]
Totals = dict[tuple[str, int], Counters]


class Statistics:
    """Inference statistics of models, by version."""

    def __init__(self, table: Table, meter: Meter) -> None:
        self._table = table
        self._meter = meter

    def read(self, model: str | None = None) -> Totals:
        """Return the counters of one or all models by model and version."""
        from functions.core.usage.reader import UsageReader  # not in every cold start

        totals = UsageReader(self._table).totals(model)
        for row, counters in self._meter.unwritten():
            if model in (None, row.model):
                totals.setdefault((row.model, row.version), Counters()).add(counters)
        return totals

    def document(self, totals: Totals, versions: Iterable[tuple[str, int]]) -> Document:
        """Return the statistics of (model, version) pairs as a JSON document, sorted.

        `delay_seconds` is how late other environments' counts may be. Triton has no such field, and
        its clients ignore it.
        """
        none = Counters()
        rows = [_row(*key, totals.get(key, none)) for key in sorted(versions)]
        return {"model_stats": rows, "delay_seconds": self._meter.seconds}


def _row(model: str, version: int, counters: Counters) -> Document:
    return {
        "name": model,
        "version": str(version),
        "last_inference": counters.last_ms,
        "inference_count": counters.inferences,
        "execution_count": counters.executions,
        "inference_stats": _durations(counters),
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


def _durations(counters: Counters) -> Document:
    """Return count and sum of each duration, by name."""
    parts = counters.queue_ns, counters.input_ns, counters.infer_ns, counters.output_ns
    names = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    durations = {
        name: {"count": counters.executions, "ns": ns}
        for name, ns in zip(names, (sum(parts), *parts), strict=True)
    }
    failures = counters.refused + counters.errors
    durations["fail"] = {"count": failures, "ns": counters.fail_ns}
    unused = {"count": 0, "ns": 0}
    return durations | {"cache_hit": unused, "cache_miss": unused}
