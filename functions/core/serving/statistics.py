"""Counters of Triton's statistics extension: inferences and their durations.

They count what this environment served since its start, and the document says so. Sums over all
environments are in the CloudWatch metrics (see request_log.py).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


@dataclass(slots=True)
class _Counters:
    inferences: int = 0
    executions: int = 0
    last_ms: int = 0
    durations: dict[str, list[int]] = field(
        default_factory=lambda: {name: [0, 0] for name in DURATIONS}
    )

    def add(self, name: str, ns: int) -> None:
        count_and_sum = self.durations[name]
        count_and_sum[0] += 1
        count_and_sum[1] += ns


Document = dict[str, Any]


class Statistics:
    """Thread-safe counters of inferences and durations by model and version."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, int], _Counters] = {}
        self._environment: Document = {}

    def add_success(
        self, model: str, version: int, batch: int, durations_ns: Mapping[str, int]
    ) -> None:
        """Count one successful model run of `batch` rows, with its durations.

        `durations_ns` has the duration of each part, by its name in the extension.
        """
        with self._lock:
            counters = self._get(model, version)
            counters.inferences += batch
            counters.executions += 1
            counters.last_ms = int(self._clock() * 1000)
            counters.add("success", sum(durations_ns.values()))
            for name, ns in durations_ns.items():
                counters.add(name, ns)

    def add_failure(self, model: str, version: int, ns: int) -> None:
        """Count one failed inference request that took `ns` nanoseconds."""
        with self._lock:
            self._get(model, version).add("fail", ns)

    def _get(self, model: str, version: int) -> _Counters:
        """Return a version's counters, new ones if missing; the lock is held."""
        counters = self._counters.get((model, version))
        if counters is None:
            self._identify()
            counters = self._counters[model, version] = _Counters()
        return counters

    def _identify(self) -> Document:
        """Return this Lambda environment's id and when its counters started.

        The caller holds the lock. Both are made at first use: environments restored from one
        snapshot must differ.
        """
        if not self._environment:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
            self._environment = {"id": os.urandom(8).hex(), "since": since}
        return self._environment

    def versions(self, model: str | None = None) -> set[tuple[str, int]]:
        """Return the (model, version) pairs with counters, optionally of one model."""
        with self._lock:
            return {key for key in self._counters if model in (None, key[0])}

    def document(self, versions: Iterable[tuple[str, int]]) -> Document:
        """Return inference statistics of (model, version) pairs as a JSON document, sorted.

        `environment` says whose counters they are and since when; Triton has no such field, and its
        clients ignore it.
        """
        with self._lock:
            rows = [self._row(model, version) for model, version in sorted(versions)]
            return {"model_stats": rows, "environment": self._identify()}

    def _row(self, model: str, version: int) -> Document:
        """Return a model version's inference statistics, zeros if never served.

        The caller holds the lock.
        """
        counters = self._counters.get((model, version), _Counters())
        return {
            "name": model,
            "version": str(version),
            "last_inference": counters.last_ms,
            "inference_count": counters.inferences,
            "execution_count": counters.executions,
            "inference_stats": {
                name: {"count": count, "ns": ns} for name, (count, ns) in counters.durations.items()
            },
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        }
