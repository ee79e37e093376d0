"""Shadow version: its share of the median time to the reply.

    python -m benchmarks.shadow [--rounds N] [--no-save]

The deployed handler of infer in one process, as our runtime client drives it, with the tiny
perceptron in memory and 128 rows of JSON: the time from the event's bytes to the reply's. What the
handler leaves for after the reply (log line, meter, the shadow's run) is done then and not timed:
callers do not wait for it. Four aliases of version 1, interleaved in rounds of 50 requests:

plain         no traffic object
plain again   the same: the difference between both is noise
5 %, 100 %    a shadow that gets copies of this share; version 2, of the same files

The ratio is that of the medians of one round. The benchmark fails if the shadow of 100 % did not
run for each request, or one ran for `plain`.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import cloud, measure, options, requests
from benchmarks.harness.child import run_plan, write_json
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import workloads

REPEATS = 50  # requests of a block
PLAIN, ALWAYS = "plain", "100 %"
MODEL = "tiny"
ROWS = 128


def run(aws: cloud.Cloud, rounds: int) -> dict[str, Any]:
    """Run the measured process; return times and numbers of copies.

    Raises:
        SystemExit: the process failed.
    """
    event = requests.infer_event(workloads()[MODEL], ROWS, key=aws.key)
    event_path = write_json(aws.folder / "event.json", event)
    plan = {"rounds": rounds, "repeats": REPEATS, "model": MODEL, "event": event_path}
    storage = next(iter(aws.storage_urls))
    return run_plan(
        "shadowed.py",
        plan,
        aws.folder,
        lambda tmp: aws.lambda_environment(storage, tmp, aws.variables),
    )


def check(copies: Mapping[str, int], rounds: int) -> None:
    """Check how often the shadow ran.

    Raises:
        SystemExit: not as often as its share.
    """
    requests_each = (rounds + 1) * REPEATS  # a round of warm-up
    if copies[PLAIN] or copies[ALWAYS] != requests_each:
        raise SystemExit(f"the shadow ran {copies} times, of {requests_each} requests each")


def results(ms: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return a result for each alias, with its ratio to plain."""
    entries = []
    for contender, values in ms.items():
        entry = measure.row(Spread.from_values(values, 4), contender=contender)
        entry["over_plain"] = measure.ratios(values, ms[PLAIN]).to_record()
        entries.append(entry)
    return entries


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the shadow benchmark."""
    return options.make_parser("shadow", __doc__, rounds=60).parse_args(words)


def main() -> None:
    chosen = arguments()
    with cloud.start([workloads()[MODEL]], ["unthrottled"]) as aws:
        measured = run(aws, chosen.rounds)
    check(measured["copies"], chosen.rounds)
    entries = results(measured["ms"])
    heading: list[Sequence[str]] = [("contender", "ms", "p90", "/ plain")]
    for entry in entries:
        ratio = f"{entry['over_plain']['median']:.3f}"
        heading.append((entry["contender"], f"{entry['median']:.3f}", f"{entry['p90']:.3f}", ratio))
    print(measure.table(heading))
    measure.finish(measure.result_line("shadow", "ms", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
