"""Counters of requests: kinds, sizes, durations."""

from collections.abc import Iterator, Mapping

from functions.core.usage.histogram import Histogram

# Numbers of a row, by their attribute in the registry's table
FIELDS = (
    "requests",  # requests that came to a version, refused and failed ones included
    "errors",  # status 5xx
    "refused",  # status 4xx
    "ms",  # milliseconds of Lambda, rounded up for each request, as they are billed
    "drawn",  # requests of a split whose version chance chose, not the caller
    "cold_starts",
    "bytes_in",
    "bytes_out",
    "tokens_in",
    "tokens_out",
    "executions",  # runs of a model that were answered
    "inferences",  # rows of these runs
    "queue_ns",
    "input_ns",
    "infer_ns",
    "output_ns",
    "fail_ns",
    "shadowed",  # copies of requests, run after the reply
    "compared",  # copies that both versions answered
    "agreed",  # copies with the same answer
    "failed",  # copies that the shadow did not answer
)
_NUMBERS = frozenset(FIELDS)
SERVED, SHADOWED = "l", "s"  # prefixes of the attributes of histograms, before the bucket


class Counters:
    """Sums over requests, with latency histograms of served and shadowed ones.

    `last_ms` is when the last one was answered, in Unix milliseconds.
    """

    __slots__ = (*FIELDS, "last_ms", "latency", "shadow_latency")

    requests: int
    errors: int
    refused: int
    ms: int
    drawn: int
    cold_starts: int
    bytes_in: int
    bytes_out: int
    tokens_in: int
    tokens_out: int
    executions: int
    inferences: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    fail_ns: int
    shadowed: int
    compared: int
    agreed: int
    failed: int

    def __init__(self) -> None:
        for name in FIELDS:
            setattr(self, name, 0)
        self.last_ms = 0
        self.latency: dict[int, int] = {}
        self.shadow_latency: dict[int, int] = {}

    def add(self, addend: "Counters") -> None:
        """Add the sums and histograms of other counters."""
        for name in FIELDS:
            setattr(self, name, getattr(self, name) + getattr(addend, name))
        self.last_ms = max(self.last_ms, addend.last_ms)
        _merge(self.latency, addend.latency)
        _merge(self.shadow_latency, addend.shadow_latency)

    def amounts(self) -> dict[str, int]:
        """Return the numbers other than 0, by attribute."""
        return dict(self._amounts())

    def _amounts(self) -> Iterator[tuple[str, int]]:
        for name in FIELDS:
            if number := getattr(self, name):
                yield name, number
        for prefix, histogram in ((SERVED, self.latency), (SHADOWED, self.shadow_latency)):
            for bucket, count in histogram.items():
                yield f"{prefix}{bucket}", count


def counters_from(item: Mapping[str, object]) -> Counters:
    """Parse counters from an item's attributes; others are ignored."""
    counters = Counters()
    for name, number in item.items():
        if not isinstance(number, int):
            continue
        if name in _NUMBERS or name == "last_ms":
            setattr(counters, name, number)
        elif name[1:].isdigit():
            histogram = counters.latency if name[0] == SERVED else counters.shadow_latency
            histogram[int(name[1:])] = number
    return counters


def _merge(histogram: dict[int, int], addend: Histogram) -> None:
    for bucket, count in addend.items():
        histogram[bucket] = histogram.get(bucket, 0) + count
