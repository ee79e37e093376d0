"""1,000 models of random sizes in one real environment for minutes: answers, memory after every request, leftovers.

    python -m tests.stress.many_models [--minutes 10] [--models 1000] [--memory 1024] [--threads 4]

The real handler of the infer function in a process of its own, real sessions, files from a server that reads like S3.
Several threads ask at once, so that models are evicted while others are used and loaded; from Lambda only one request
comes at a time. It fails if an answer is not its model's, if the process ever takes more than the bare process, the
bound of the cache and ALLOWED_MB, if the cache ever counts more than its bounds, if a request is refused for another
reason than that the models in use leave no room, or if a file or a loading thread is left at the end.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import many_models
from benchmarks.harness import fleet

ALLOWED_MB = (
    48  # for requests, for what a load takes for a moment, for names, and for what the heap keeps
)
BUSY = {"MODELS_BUSY"}


def run(
    *, models: int, memory_mb: int, threads: int, seconds: float = 0, requests: int = 0
) -> dict[str, Any]:
    """What was seen. It ends after `requests` or, where there are none, after `seconds`.

    Raises:
        RuntimeError: see above.
    """
    members = fleet.members(models)
    with fleet.start(members, many_models.STORAGE, memory_mb) as where:
        found = many_models.serve(
            where, members, memory_mb, requests=requests, seconds=seconds, threads=threads
        )
    if problems := list(check(found)):
        raise RuntimeError("; ".join(problems))
    return found


def check(found: Mapping[str, Any]) -> list[str]:
    """What is wrong with what was seen."""
    problems = []
    peak, allowed = max(found["peaks_mb"]), found["bare_mb"] + found["bound_mb"] + ALLOWED_MB
    if peak > allowed:
        first = next(number for number, one in enumerate(found["peaks_mb"]) if one > allowed)
        problems.append(
            f"the process took {peak:.0f} MB and may take {allowed:.0f}, first after request {first}"
        )
    for counted, bound in (("held_mb", "bound_mb"), ("files_mb", "storage_mb")):
        if found[counted] > found[bound]:
            problems.append(
                f"the cache counted {found[counted]:.1f} MB, above its bound of {found[bound]:.1f}"
            )
    if unknown := found["refused"].keys() - BUSY:
        problems.append(f"requests were refused with {', '.join(sorted(unknown))}")
    return problems


def summary(found: Mapping[str, Any]) -> str:
    hits, misses = len(found["hits_ms"]), len(found["misses_ms"])
    return (
        f"{hits + misses} answers, all right, {misses} after a load; refused {found['refused'] or 'none'}; "
        f"process {found['bare_mb']:.0f} MB bare, {max(found['peaks_mb']):.0f} MB at the most, "
        f"cache {found['held_mb']:.0f} of {found['bound_mb']:.0f} MB, files {found['files_mb']:.0f} MB"
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.many_models")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=1024, help="of the function in MB")
    parser.add_argument("--threads", type=int, default=4)
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    try:
        found = run(
            models=wanted.models,
            memory_mb=wanted.memory,
            threads=wanted.threads,
            seconds=60 * wanted.minutes,
        )
    except RuntimeError as error:
        sys.exit(str(error))
    print(summary(found))


if __name__ == "__main__":
    main()
