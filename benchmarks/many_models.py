"""Many models in one Lambda environment: cache hit rate, latency, memory.

    python -m benchmarks.many_models [--models 10,100,1000] [--requests N] [--memory MB] [--no-save]

For each number of registered models, a fresh process of the infer function, with the template's
environment, gets the same number of requests, one at a time as from Lambda. The requested models
follow Zipf's law with exponent 1.1 from a fixed seed; popularity and size are independent. Model
files have 16 KB to 24 MB, log-uniform (mean 3.3 MB). Each model answers with its own number, and
a wrong answer ends the benchmark with an error.

A hit is a request whose model is in memory. A miss waits for a download from the "s3-like" storage
(15 ms to the first byte, 90 MB/s per connection), a session and the first run. Both include a read
of the registry (moto's DynamoDB, without delay) where a name is new or its alias was cached for
more than ALIAS_CACHE_SECONDS.

Memory is that of the whole process: `bare` after INIT, `peak` (VmHWM) over all requests, `held` the
most that the cache counted, `bound` the most that it may count. benchmarks/harness/fleet.py
registers 1,000 models in a minute.

Not measured: concurrent requests (tests/stress/many_models.py has them), TLS, the network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import cloud, fleet, measure, options
from benchmarks.harness.child import CHILDREN, write_json
from benchmarks.harness.measure import Spread, progress
from benchmarks.harness.member import Member

STORAGE = "s3-like"
SKEW, SEED = 1.1, 20261122
LIMIT_S = 3600.0


def serve(
    aws: cloud.Cloud, members: Sequence[Member], memory_mb: int, **plan: Any
) -> dict[str, Any]:
    """Run the traffic script as a Lambda of `memory_mb`; return measurements.

    The script is `children/traffic.py`.

    Raises:
        RuntimeError: the process failed, answered wrongly, or left files or threads behind.
    """
    tmp = Path(tempfile.mkdtemp(dir=aws.folder))
    sizes = [[member.number, member.size_bytes] for member in members]
    plan |= {"members": sizes, "skew": SKEW, "seed": SEED}
    _run_traffic(aws, tmp, memory_mb, write_json(aws.folder / "plan.json", plan))
    measured: dict[str, Any] = json.loads(_result(aws).read_text(encoding="utf-8"))
    left = measured["left"] + [path.name for path in tmp.rglob("*") if path.is_file()]
    if measured["wrong"] or left or measured["threads_left"]:
        bug = _logged_bug(aws)
        raise RuntimeError(f"wrong: {measured['wrong']}, left behind: {left}; {bug}")
    return measured


def _run_traffic(aws: cloud.Cloud, tmp: Path, memory_mb: int, plan: str) -> None:
    variables = aws.lambda_environment(STORAGE, tmp, aws.variables)
    variables |= {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb), "AUTH": "none"}
    with _log(aws).open("wb") as log:
        done = subprocess.run(
            [sys.executable, CHILDREN / "traffic.py", plan, _result(aws)],
            cwd=tmp,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.PIPE,
            check=False,
            timeout=LIMIT_S,
        )
    if done.returncode:
        output = done.stderr.decode()[-1000:]
        raise RuntimeError(f"the environment ended with {done.returncode}: {output}")


def _result(aws: cloud.Cloud) -> Path:
    return aws.folder / "result.json"


def _log(aws: cloud.Cloud) -> Path:
    return aws.folder / "traffic.log"


def _logged_bug(aws: cloud.Cloud) -> str:
    lines = _log(aws).read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if '"bug"' in line or '"traceback"' in line), "")


def result(count: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result entry for `count` models: hit rate, latencies, memory.

    Median and p90 are over all requests.
    """
    hits, misses = measured["hits_ms"], measured["misses_ms"]
    entry = measure.row(Spread.from_values(hits + misses), what="request", models=count)
    for name, values in (("hit", hits), ("miss", misses)):
        entry[name] = {"n": len(values)}
        entry[name] |= {f"p{part}_ms": percentile(values, part) for part in (50, 99)}
    entry["hit_rate"] = round(len(hits) / (len(hits) + len(misses)), 4)
    entry["refused"] = measured["refused"]
    entry["memory_mb"] = {
        "bare": round(measured["bare_mb"]),
        "peak": round(max(measured["peaks_mb"])),
        "held": round(measured["held_mb"]),
        "bound": round(measured["bound_mb"]),
    }
    return entry


def percentile(values: Sequence[float], part: int) -> float | None:
    """Return a percentile by nearest rank, or None without values.

    >>> percentile([3.0, 1.0, 2.0], 50), percentile([], 50)
    (2.0, None)
    """
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, len(values) * part // 100)], 2)


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format many-models results as a text table."""
    heading = "models,requests,hit rate,hit p50,p99,miss p50,p99 ms,bare,peak,held,bound MB"
    rows: list[tuple[str, ...]] = [tuple(heading.split(","))]
    for entry in entries:
        times = [entry[kind][part] for kind in ("hit", "miss") for part in ("p50_ms", "p99_ms")]
        cells = ["" if value is None else f"{value:.1f}" for value in times]
        cells += [str(entry["memory_mb"][name]) for name in ("bare", "peak", "held", "bound")]
        rows.append((str(entry["models"]), str(entry["n"]), f"{entry['hit_rate']:.3f}", *cells))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the many-models benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_models", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--models",
        type=options.positive_numbers,
        default=[10, 100, 1000],
        help="default: 10,100,1000",
    )
    parser.add_argument("--requests", type=int, default=5000, help="default: 5000")
    memory_help = "of the function in MB; default: 1769"
    parser.add_argument("--memory", type=int, default=1769, help=memory_help)
    options.add_no_save(parser)
    return parser.parse_args(words)


def main() -> None:
    chosen = arguments()
    members = fleet.members(max(chosen.models))
    plan = {"requests": chosen.requests, "seconds": 0, "threads": 1}
    entries = []
    with fleet.start(members, STORAGE, chosen.memory) as aws:
        for count in chosen.models:
            progress(f"{chosen.requests} requests to {count} models")
            measured = serve(aws, members[:count], chosen.memory, **plan)
            entries.append(result(count, measured))
    progress("")
    print(table(entries))
    line = measure.result_line("many_models", "ms", chosen.requests, entries)
    measure.finish(line | {"function_mb": chosen.memory}, chosen.save)


if __name__ == "__main__":
    main()
