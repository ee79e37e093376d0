"""Counters of Triton's statistics extension: inferences and their durations.

They count what this environment served since its start, and the document says so. Sums over all
environments are in the CloudWatch metrics (see request_log.py).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from functions.core.records import mutable_record


@mutable_record
class _Counters:
    """Counts and sums of nanoseconds of one model version."""

    inferences: int = 0
    executions: int = 0
    last_ms: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    failures: int = 0
    fail_ns: int = 0

    def durations(self) -> "Document":
        """Return count and sum of each duration, by name."""
        sums = {
            "success": self.queue_ns + self.input_ns + self.infer_ns + self.output_ns,
            "queue": self.queue_ns,
            "compute_input": self.input_ns,
            "compute_infer": self.infer_ns,
            "compute_output": self.output_ns,
        }
        durations = {name: {"count": self.executions, "ns": ns} for name, ns in sums.items()}
        durations["fail"] = {"count": self.failures, "ns": self.fail_ns}
        unused = {"count": 0, "ns": 0}
        return durations | {"cache_hit": unused, "cache_miss": unused}


Document = dict[str, Any]


class Statistics:
    """Thread-safe counters of inferences and durations by model and version."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, int], _Counters] = {}
        self._environment: Document = {}

    def add_success(
        self,
        model: str,
        version: int,
        batch: int,
        *,
        queue_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count one successful model run of `batch` rows, with its durations."""
        with self._lock:
            counters = self._counters.get((model, version)) or self._add(model, version)
            counters.inferences += batch
            counters.executions += 1
            counters.last_ms = int(self._clock() * 1000)
            counters.queue_ns += queue_ns
            counters.input_ns += input_ns
            counters.infer_ns += infer_ns
            counters.output_ns += output_ns

    def add_failure(self, model: str, version: int, ns: int) -> None:
        """Count one failed inference request that took `ns` nanoseconds."""
        with self._lock:
            counters = self._counters.get((model, version)) or self._add(model, version)
            counters.failures += 1
            counters.fail_ns += ns

    def _add(self, model: str, version: int) -> _Counters:
        """Add counters for a version and return them; the lock is held."""
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
            "inference_stats": counters.durations(),
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        }
