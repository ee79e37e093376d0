"""Stress test of one environment that serves 1,000 models of random sizes for minutes.

    python -m tests.stress.many_models [--minutes 10] [--models 1000] [--memory 1024] [--threads 4]

The real handler of the infer function runs in a process of its own, with real sessions and a server
that serves files as S3 does. Several threads send requests, so that models are evicted while other
models are used and loaded; Lambda itself sends one request at a time. The test fails if

- a reply is not that of its model,
- the process takes more memory than the bare process, the bound of the cache and ALLOWED_MB,
- the cache counts more than its bounds,
- a request is refused for another reason than that the models in use leave no room,
- a file or a loading thread is left at the end.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import many_models
from benchmarks.harness import fleet

ALLOWED_MB = 48  # requests, the peak of a load, cached names, and freed memory the heap keeps
BUSY = {"MODELS_BUSY"}
MEGABYTES = ("bare_mb", "held_mb", "bound_mb", "files_mb")


def run(
    *, models: int, memory_mb: int, threads: int, seconds: float = 0, requests: int = 0
) -> dict[str, Any]:
    """Send requests until there were `requests` or, without a number, for `seconds`.

    Returns what was measured (see `benchmarks.many_models.serve`).

    Raises:
        RuntimeError: the test failed.
    """
    members = fleet.members(models)
    with fleet.start(members, many_models.STORAGE, memory_mb) as storage:
        measured = many_models.serve(
            storage, members, memory_mb, requests=requests, seconds=seconds, threads=threads
        )
    if problems := list(check(measured)):
        raise RuntimeError("; ".join(problems))
    return measured


def check(measured: Mapping[str, Any]) -> list[str]:
    """Return the violated bounds, as sentences."""
    problems = []
    peak, allowed = (
        max(measured["peaks_mb"]),
        measured["bare_mb"] + measured["bound_mb"] + ALLOWED_MB,
    )
    if peak > allowed:
        peaks = enumerate(measured["peaks_mb"])
        first = next(number for number, peak_mb in peaks if peak_mb > allowed)
        problems.append(
            f"the process took {peak:.0f} MB and may take {allowed:.0f}, "
            f"first after request {first}"
        )
    for counted, bound in (("held_mb", "bound_mb"), ("files_mb", "storage_mb")):
        held_mb, bound_mb = measured[counted], measured[bound]
        if held_mb > bound_mb:
            problems.append(
                f"the cache counted {held_mb:.1f} MB, above its bound of {bound_mb:.1f}"
            )
    if unknown := measured["refused"].keys() - BUSY:
        problems.append(f"requests were refused with {', '.join(sorted(unknown))}")
    return problems


def summary(measured: Mapping[str, Any]) -> str:
    """Return one line about a run that passed."""
    hits, misses = len(measured["hits_ms"]), len(measured["misses_ms"])
    facts = {name: f"{mb:.0f}" for name, mb in measured.items() if name in MEGABYTES}
    return (
        f"{hits + misses} right replies, {misses} after a load; "
        f"refused {measured['refused'] or 'none'}; "
        f"process {facts['bare_mb']} MB bare, {max(measured['peaks_mb']):.0f} MB at the most, "
        f"cache {facts['held_mb']} of {facts['bound_mb']} MB, files {facts['files_mb']} MB"
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.many_models")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=1024, help="of the function in MB")
    parser.add_argument("--threads", type=int, default=4)
    return parser.parse_args(words)


def main() -> None:
    options = arguments()
    try:
        measured = run(
            models=options.models,
            memory_mb=options.memory,
            threads=options.threads,
            seconds=60 * options.minutes,
        )
    except RuntimeError as error:
        sys.exit(str(error))
    print(summary(measured))


if __name__ == "__main__":
    main()
