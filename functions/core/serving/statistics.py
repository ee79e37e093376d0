"""How often and how long: the statistics extension's counters.

They count what this environment served since it began; the sum over all environments is in the metrics.
"""

import threading
import time
from collections.abc import Callable, Mapping
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
        entry = self.durations[name]
        entry[0] += 1
        entry[1] += ns


class Statistics:
    """Counters by model and version."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, int], _Counters] = {}

    def succeeded(
        self, model: str, version: int, batch: int, durations_ns: Mapping[str, int]
    ) -> None:
        """Count one run of `batch` rows. `durations_ns` are those of its parts, by their names in the extension."""
        with self._lock:
            counters = self._of(model, version)
            counters.inferences += batch
            counters.executions += 1
            counters.last_ms = int(self._clock() * 1000)
            counters.add("success", sum(durations_ns.values()))
            for name, ns in durations_ns.items():
                counters.add(name, ns)

    def failed(self, model: str, version: int, ns: int) -> None:
        with self._lock:
            self._of(model, version).add("fail", ns)

    def _of(self, model: str, version: int) -> _Counters:
        """The counters of one version. The lock is held."""
        counters = self._counters.get((model, version))
        if counters is None:
            counters = self._counters[model, version] = _Counters()
        return counters

    def counted(self, model: str | None = None) -> set[tuple[str, int]]:
        """The (model, version) that have counters, of `model` or of all."""
        with self._lock:
            return {key for key in self._counters if model in (None, key[0])}

    def document(self, model: str, version: int) -> dict[str, Any]:
        """The counters of one version; zeros where nothing was counted."""
        with self._lock:
            counters = self._counters.get((model, version), _Counters())
            return {
                "name": model,
                "version": str(version),
                "last_inference": counters.last_ms,
                "inference_count": counters.inferences,
                "execution_count": counters.executions,
                "inference_stats": {
                    name: {"count": count, "ns": ns}
                    for name, (count, ns) in counters.durations.items()
                },
                "response_stats": {},
                "batch_stats": [],
                "memory_usage": [],
            }
