"""Warm request: CPU time, beside a hand-made handler and the bare run.

    python -m benchmarks.warm_request [--rounds N] [--no-save]

The model is in memory. It is the tiny perceptron, with 784 values per row, 1 and 128 rows, as JSON
and as binary tensors, in one process with the environment of the infer function. Contenders, each
from the bytes of Lambda's event to the bytes of Lambda's reply:

bare      session.run on a ready array, with the session options of the function. No event.
ours      functions.infer.main.lambda_handler as our runtime client drives it: the event's bytes in,
          the reply's bytes out, and what it leaves for after the reply: its log and metric line,
          which is written to a pipe that another process reads. The event's body is base64.
open      ours without access keys (Auth=none): the difference is the check of the caller's key.
unmetered ours without the meter: the difference is counting, and a write of counts every 8 to 10 s.
ours-aws  The same handler and line as awslambdaric drives it: it parses the event with json.loads
          and serializes the reply with its own encoder (simplejson).
quiet     ours for a request outside the log sample (LOG_SAMPLE_RATE).
unseen    ours for a request whose JSON no cached request template fits.
naive     A usual hand-made Lambda as awslambdaric drives it, on the bare run's session: json.loads
          of the body, np.array, session.run, json.dumps; no checks, no log line, no headers. Its
          event's body is text: its API needs no base64.

The clients' HTTP, contexts and threads are left out for every contender (benchmarks.peers has
them). A round gives every contender a block of calls, in a rotating order: one discarded call, then
50 calls of 1 row or 10 of 128 rows. The round counts the process's CPU time (process_time) per
call: other processes on the machine change it less than they change the time that passes. Ratios
and differences compare the same round; p90 is over rounds. The registry (moto) is read when the
cached alias expires, every 4 to 5 s, as deployed. A prediction that differs from the bare one by
more than 1e-5 ends the benchmark with an error.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import cloud, measure, options, requests
from benchmarks.harness.child import run_plan, write_json
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import Workload, workloads

REPEATS = {1: 50, 128: 10}  # number of rows → calls per block
CONTENDERS = ("bare", "ours", "open", "unmetered", "ours-aws", "quiet", "unseen", "naive")
BARE, OURS, OPEN, UNMETERED, NAIVE = "bare", "ours", "open", "unmetered", "naive"
RUNTIME = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.13"}  # read by awslambdaric


def make_plan(aws: cloud.Cloud, workload: Workload, rounds: int) -> dict[str, Any]:
    """Write input files for `children/warm.py`; return the measurement plan."""
    cases = []
    for rows, repeats in REPEATS.items():
        values = workload.write_values(aws.folder / f"values-{rows}", rows)
        predict = requests.predict_event(workload, rows)
        naive = write_json(aws.folder / f"naive-{rows}.json", predict)
        for encoding in ("json", "binary"):
            binary = encoding == "binary"
            event = requests.infer_event(workload, rows, binary=binary, key=aws.key)
            case = {
                "case": f"{encoding} {rows}",
                "repeats": repeats,
                "values": values,
                "shape": [rows, *workload.shape],
                "event": write_json(aws.folder / f"{encoding}-{rows}.json", event),
                "naive": naive if encoding == "json" else None,
            }
            cases.append(case)
    model = str(aws.model_path(workload))
    return {"rounds": rounds, "model": model, "contenders": CONTENDERS, "cases": cases}


def run(aws: cloud.Cloud, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run the warm measurement process; return CPU times and replies per contender.

    The process runs `children/warm.py`.

    Raises:
        SystemExit: the process failed.
    """
    storage = next(iter(aws.storage_urls))
    return run_plan(
        "warm.py",
        plan,
        aws.folder,
        lambda tmp: aws.lambda_environment(storage, tmp, {**aws.variables, **RUNTIME}),
    )


def check(replies: Mapping[str, Any]) -> None:
    """Raise WrongPrediction if a contender's prediction differs from the bare run's.

    Raises:
        WrongPrediction: a prediction differs.
    """
    for name, reply in replies.items():
        case, _, contender = name.partition("|")
        if contender == BARE:
            continue
        expected = np.array(replies[f"{case}|{BARE}"], np.float32)
        read = requests.usual_prediction if contender == "naive" else requests.infer_prediction
        requests.check_prediction(f"{contender} answered {case}", read(reply), expected)


def results(cpu_us: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return one result entry in µs per case and contender.

    An entry has the ratio and the difference to the bare run of the same round, and the ratio to
    the naive handler's, if that has the case. Ours has the differences to it without keys
    and without the meter.
    """
    entries = []
    for name, values in cpu_us.items():
        case, _, contender = name.partition("|")
        encoding, rows = case.split()
        spread = Spread.from_values(values, 1)
        entry = measure.row(spread, encoding=encoding, rows=int(rows), contender=contender)
        if contender != BARE:
            bare = cpu_us[f"{case}|{BARE}"]
            entry["over_bare"] = measure.ratios(values, bare).to_record()
            entry["minus_bare"] = measure.differences(values, bare, 1).to_record()
        for without in (OPEN, UNMETERED):
            values_without = cpu_us.get(f"{case}|{without}")
            if values_without and contender == OURS:
                difference = measure.differences(values, values_without, 2)
                entry[f"minus_{without}"] = difference.to_record()
        naive = cpu_us.get(f"{case}|{NAIVE}")
        if naive and contender not in (BARE, NAIVE):
            entry["over_naive"] = measure.ratios(values, naive).to_record()
        entries.append(entry)
    return entries


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format warm request results as a text table."""
    heading = (
        "rows",
        "body",
        "contender",
        "n",
        "CPU µs",
        "p90",
        "- bare",
        "/ bare",
        "/ naive",
        "- open",
    )
    rows: list[Sequence[str]] = [heading]
    for entry in entries:
        cells = [str(entry["rows"]), entry["encoding"], entry["contender"], str(entry["n"])]
        cells += [f"{entry['median']:.1f}", f"{entry['p90']:.1f}"]
        if "over_bare" in entry:
            over = entry["over_bare"]
            cells.append(f"{entry['minus_bare']['median']:.1f}")
            cells.append(f"{over['median']:.2f}")
        if "over_naive" in entry or "minus_open" in entry:
            cells.append(f"{entry['over_naive']['median']:.2f}" if "over_naive" in entry else "")
        if "minus_open" in entry:
            cells.append(f"{entry['minus_open']['median']:.1f}")
        rows.append(cells + [""] * (len(heading) - len(cells)))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the warm request benchmark."""
    return options.make_parser("warm_request", __doc__, rounds=60).parse_args(words)


def main() -> None:
    chosen = arguments()
    workload = workloads()["tiny"]
    with cloud.start([workload], ["unthrottled"]) as aws:
        measured = run(aws, make_plan(aws, workload, chosen.rounds))
    check(measured["replies"])
    entries = results(measured["cpu_us"])
    print(table(entries))
    measure.finish(measure.result_line("warm_request", "us", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
