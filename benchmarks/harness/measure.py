"""Benchmark measurement: interleaved rounds, median and 90th percentile, JSON result lines."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Uncommitted changes to these files mark a result's commit as dirty.
MEASURED = ("functions", "local", "mayfly", "benchmarks", "template.yaml", ":!benchmarks/results")
PACKAGES = ("onnxruntime", "numpy", "boto3", "aws-lambda-powertools")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile of `n` measurements."""

    n: int
    median: float
    p90: float

    @classmethod
    def from_values(cls, values: Sequence[float], digits: int = 3) -> "Spread":
        """Compute median and 90th percentile of measurements, rounded to `digits`.

        >>> Spread.from_values([5, 1, 2, 3, 4])
        Spread(n=5, median=3, p90=4.6)
        """
        p90 = values[0]
        if len(values) > 1:
            p90 = statistics.quantiles(values, n=10, method="inclusive")[8]
        return cls(len(values), round(statistics.median(values), digits), round(p90, digits))

    def to_record(self) -> dict[str, float]:
        """Return median and p90 as a dictionary for JSON results."""
        return {"median": self.median, "p90": self.p90}


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Summarize ratios of values to baseline values of the same round.

    >>> ratios([2, 6, 4], [1, 2, 4])
    Spread(n=3, median=2.0, p90=2.8)
    """
    pairs = zip(values, baseline, strict=True)
    return Spread.from_values([value / base for value, base in pairs])


def differences(values: Sequence[float], baseline: Sequence[float], digits: int = 3) -> Spread:
    """Summarize differences between values and baseline values of the same round."""
    pairs = zip(values, baseline, strict=True)
    return Spread.from_values([value - base for value, base in pairs], digits)


def interleave(
    contenders: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: int = 1, label: str = ""
) -> dict[str, list[T]]:
    """Call every contender once per round; return their results by name.

    The first `warm_up` rounds are discarded. Each round begins with another contender, so that no
    contender has the better place and a change of the machine's load meets all of them. Progress
    is written to stderr.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(-warm_up, rounds):
        progress(f"{label}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"))
        first = (number + warm_up) % len(names)
        for name in names[first:] + names[:first]:
            result = contenders[name]()
            if number >= 0:
                results[name].append(result)
    progress("")
    return results


def progress(text: str) -> None:
    """Write a line of progress to stderr.

    In a terminal it replaces the line before.
    """
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as an aligned text table; the first is the heading.

    >>> print(table([("a", "ms"), ("ours", "1.5")]))
    a      ms
    ours  1.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def result_line(
    benchmark: str, unit: str, rounds: int, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a benchmark run's record: results, commit, date, machine, versions.

    Each of `results` has labels, and n, median and p90 in `unit`.
    """
    return {
        "benchmark": benchmark,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "unit": unit,
        "rounds": rounds,
        "results": list(results),
    }


def row(spread: Spread, **labels: str | int) -> dict[str, Any]:
    """Return one result entry of labels, median and p90."""
    return labels | asdict(spread)


def finish(line: Mapping[str, Any], save: bool, folder: Path = RESULTS) -> None:
    """Print a benchmark result as JSON; if `save`, append it to file.

    The file is <benchmark>.jsonl in `folder`.
    """
    text = json.dumps(line, separators=(",", ":"))
    if save:
        folder.mkdir(exist_ok=True)
        with (folder / f"{line['benchmark']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """Return processor model, architecture, usable cores and load average."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = (
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        )
        cpu = next(models, cpu)
    return {
        "cpu": cpu or "unknown",
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def _commit() -> str:
    """Return the checked-out commit, with "-dirty" if measured files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", *MEASURED) else commit
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
