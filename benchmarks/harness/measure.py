"""How a benchmark measures and reports: interleaved rounds, medians with their spread, one JSON line at the end."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = (
    "functions",
    "local",
    "benchmarks",
    "template.yaml",
    ":!benchmarks/results",
)  # what makes a commit dirty
PACKAGES = ("onnxruntime", "numpy", "boto3", "aws-lambda-powertools")
TOLERANCE = 1e-5  # between an answer and the reference's
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """`n` measurements in short."""

    n: int
    median: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float], digits: int = 3) -> "Spread":
        """
        >>> Spread.of([5, 1, 2, 3, 4])
        Spread(n=5, median=3, p90=4.6)
        """
        tenths = (
            statistics.quantiles(values, n=10, method="inclusive")
            if len(values) > 1
            else [values[0]] * 9
        )
        return cls(len(values), round(statistics.median(values), digits), round(tenths[8], digits))

    def to_record(self) -> dict[str, float]:
        return {"median": self.median, "p90": self.p90}


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Of `values` over what the baseline took in the same round.

    >>> ratios([2, 6, 4], [1, 2, 4])
    Spread(n=3, median=2.0, p90=2.8)
    """
    return Spread.of([value / base for value, base in zip(values, baseline, strict=True)])


def interleave(
    contenders: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: int = 1, what: str = ""
) -> dict[str, list[T]]:
    """What each contender returned in each round, after `warm_up` rounds that do not count.

    Every contender runs once a round, and another one begins each time, so that none has the better place and a change
    of the machine's load meets all of them. Progress goes to stderr.
    """
    taken: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(-warm_up, rounds):
        progress(f"{what}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"))
        first = (number + warm_up) % len(names)
        for name in names[first:] + names[:first]:
            value = contenders[name]()
            if number >= 0:
                taken[name].append(value)
    progress("")
    return taken


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The arguments of every benchmark."""
    parser.add_argument("--rounds", type=count, default=rounds, help=f"default: {rounds}")
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="do not add to benchmarks/results/"
    )


def one_of(names: Collection[str]) -> Callable[[str], list[str]]:
    """Some of `names`, with commas between them, for argparse.

    >>> one_of(["a", "b", "c"])("c,a,c")
    ['c', 'a']
    """

    def chosen(text: str) -> list[str]:
        wanted = list(dict.fromkeys(text.split(",")))
        if unknown := set(wanted).difference(names):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(names)}")
        return wanted

    return chosen


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("must be a positive number")
    return int(text)


def progress(text: str) -> None:
    """One line on stderr that the next one replaces, or, where nobody watches, a line of its own."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as need be; the first row is the heading, the first column left-aligned.

    >>> print(table([("a", "ms"), ("ours", "1.5")]))
    a      ms
    ours  1.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(w) if not at else cell.rjust(w)
            for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def result_line(
    benchmark: str, unit: str, rounds: int, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is kept of one run. Each of `results` names what it measured and has n, median and p90 in `unit`."""
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
    """One of the results of a `result_line`."""
    return labels | asdict(spread)


def finish(line: Mapping[str, Any], save: bool, folder: Path = RESULTS) -> None:
    """Print the line, the last of the run, and keep it."""
    text = json.dumps(line, separators=(",", ":"))
    if save:
        folder.mkdir(exist_ok=True)
        with (folder / f"{line['benchmark']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """The processor, how many of its cores this process may use, and how many others were waiting for them."""
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
    """The commit that was measured; with "-dirty" if what was measured is not what was committed."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", *MEASURED) else commit
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
