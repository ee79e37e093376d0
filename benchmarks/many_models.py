"""How does one environment serve more models than it can hold: how often, how fast, within which memory?

    python -m benchmarks.many_models [--models 10,100,1000] [--requests N] [--memory MB] [--no-save]

For each number of registered models a fresh process of the infer function, with the template's environment, gets the
same number of requests, one at a time as from Lambda; which model each is for follows Zipf's law with exponent 1.1 from
a fixed seed, popularity and size being independent. Model files are between 16 KB and 24 MB, log-uniform (mean 3.3 MB);
each model answers with a number of its own, and a wrong answer ends the benchmark with an error. A hit is a request
whose model was in memory; a miss waits for a download from the "s3-like" storage (15 ms to the first byte, 90 MB/s a
connection), a session, and the first run. Every fresh name, and every name again after ALIAS_CACHE_SECONDS, is a read
of the registry, moto's DynamoDB without delay: it is part of both.

How 1,000 models are registered in a minute: benchmarks/harness/fleet.py. Memory is that of the whole process: `bare` after
INIT, `peak` (VmHWM) over all requests, `held` what the cache counts at the most, `bound` what it may.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import cloud, fleet, measure
from benchmarks.harness.measure import ROOT, Spread, progress
from benchmarks.harness.member import Member

CHILD = ROOT / "benchmarks" / "children" / "traffic.py"
STORAGE = "s3-like"
SKEW, SEED = 1.1, 20261122
LIMIT_S = 3600.0


def serve(
    where: cloud.Cloud, members: Sequence[Member], memory_mb: int, **plan: Any
) -> dict[str, Any]:
    """What `children/traffic.py` saw of `members` in an environment of its own, of `memory_mb`.

    Raises:
        RuntimeError: it failed, answered wrongly or left something behind.
    """
    tmp = Path(tempfile.mkdtemp(dir=where.folder))
    plan |= {
        "members": [[one.number, one.size_bytes] for one in members],
        "skew": SKEW,
        "seed": SEED,
    }
    (where.folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    result = where.folder / "result.json"
    variables = where.lambda_environment(STORAGE, tmp, where.variables)
    variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] = str(memory_mb)
    with (where.folder / "traffic.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, CHILD, where.folder / "plan.json", result],
            cwd=tmp, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.PIPE,
            check=False, timeout=LIMIT_S,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"the environment ended with {done.returncode}: {done.stderr.decode()[-1000:]}"
        )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    left = [path.name for path in tmp.rglob("*") if path.is_file()]
    if found["wrong"] or found["left"] or left or found["threads_left"]:
        lines = (where.folder / "traffic.log").read_text(encoding="utf-8").splitlines()
        bug = next((line for line in lines if '"bug"' in line or '"traceback"' in line), "")
        raise RuntimeError(f"wrong: {found['wrong']}, left behind: {found['left'] + left}; {bug}")
    return found


def result(count: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of one number of models. The spread is that of all requests."""
    hits, misses = found["hits_ms"], found["misses_ms"]
    entry = measure.row(Spread.of(hits + misses), what="request", models=count)
    for name, values in (("hit", hits), ("miss", misses)):
        entry[name] = {"n": len(values)} | {
            f"p{part}_ms": percentile(values, part) for part in (50, 99)
        }
    entry["hit_rate"] = round(len(hits) / (len(hits) + len(misses)), 4)
    entry["refused"] = found["refused"]
    return entry | {
        "memory_mb": {
            "bare": round(found["bare_mb"]),
            "peak": round(max(found["peaks_mb"])),
            "held": round(found["held_mb"]),
            "bound": round(found["bound_mb"]),
        }
    }


def percentile(values: Sequence[float], part: int) -> float | None:
    """
    >>> percentile([3.0, 1.0, 2.0], 50), percentile([], 50)
    (2.0, None)
    """
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, len(values) * part // 100)], 2)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    heading = "models,requests,hit rate,hit p50,p99,miss p50,p99 ms,bare,peak,held,bound MB"
    rows: list[tuple[str, ...]] = [tuple(heading.split(","))]
    for one in found:
        times = [one[kind][part] for kind in ("hit", "miss") for part in ("p50_ms", "p99_ms")]
        shown = ["" if value is None else f"{value:.1f}" for value in times]
        memory = [str(one["memory_mb"][name]) for name in ("bare", "peak", "held", "bound")]
        rows.append((str(one["models"]), str(one["n"]), f"{one['hit_rate']:.3f}", *shown, *memory))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_models", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--models", type=counts, default=[10, 100, 1000], help="default: 10,100,1000"
    )
    parser.add_argument("--requests", type=int, default=5000, help="default: 5000")
    parser.add_argument(
        "--memory", type=int, default=1769, help="of the function in MB; default: 1769"
    )
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="do not add to benchmarks/results/"
    )
    return parser.parse_args(words)


def counts(text: str) -> list[int]:
    """
    >>> counts("10,100")
    [10, 100]
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("must be positive numbers with commas between them")
    return found


def main() -> None:
    wanted = arguments()
    members = fleet.members(max(wanted.models))
    found = []
    with fleet.start(members, STORAGE, wanted.memory) as where:
        for count in wanted.models:
            progress(f"{wanted.requests} requests to {count} models")
            seen = serve(
                where,
                members[:count],
                wanted.memory,
                requests=wanted.requests,
                seconds=0,
                threads=1,
            )
            found.append(result(count, seen))
    progress("")
    print(table(found))
    line = measure.result_line("many_models", "ms", wanted.requests, found)
    measure.finish(line | {"function_mb": wanted.memory}, wanted.save)


if __name__ == "__main__":
    main()
