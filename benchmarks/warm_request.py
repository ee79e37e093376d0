"""What does our handler add to the model itself, once the model is in memory?

    python -m benchmarks.warm_request [--rounds N] [--no-save]

The tiny perceptron, 784 floats a row, 1 and 128 rows, as JSON and as binary tensors, in one process with the
environment of the infer function:
  bare   session.run on a ready array, with the session options of the function
  ours   functions.infer.main.lambda_handler: event in, reply out, its log and metric line included, written to a pipe
         that another process reads
  quiet  the same for a request that is not among those that are logged (LOG_SAMPLE_RATE)
  unseen the same as ours for a request of a form that it has not seen before
  naive  json.loads, np.array, session.run, json.dumps on the same session: no checks, no line. For information.
Each round gives every contender a block of calls (25 of 1 row, 5 of 128, and one before that does not count), in a
rotating order, and counts the block's median; p90 is over rounds. Ratios are of the same round. The event is a
dictionary already and the reply is left one: Lambda's runtime client converts them outside the handler. The registry
(moto) is asked when the alias is forgotten, every 4-5 s, as deployed. Every answer has to
be the bare one's within 1e-5.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import cloud, measure, requests
from benchmarks.harness.measure import ROOT, TOLERANCE, Spread
from benchmarks.harness.models import Workload, workloads

REPEATS = {1: 25, 128: 5}  # rows, and how many calls of one contender come in a row
CONTENDERS = ("bare", "ours", "quiet", "unseen", "naive")
BARE = "bare"
LIMIT_S = 3600.0


def plan(where: cloud.Cloud, workload: Workload, rounds: int) -> dict[str, Any]:
    """What `children/warm.py` is to do; its files lie in the cloud's folder."""
    cases = []
    for rows, repeats in REPEATS.items():
        values = where.folder / f"values-{rows}"
        workload.values(rows).astype(np.float32).tofile(values)
        text = written(where.folder / f"naive-{rows}.json", requests.predict_event(workload, rows))
        for encoding in ("json", "binary"):
            event = requests.infer_event(workload, rows, binary=encoding == "binary")
            cases.append(
                {
                    "case": f"{encoding} {rows}",
                    "repeats": repeats,
                    "values": str(values),
                    "shape": [rows, *workload.shape],
                    "event": written(where.folder / f"{encoding}-{rows}.json", event),
                    "naive": text if encoding == "json" else None,
                }
            )
    return {
        "rounds": rounds,
        "model": str(where.model_path(workload)),
        "contenders": CONTENDERS,
        "cases": cases,
    }


def written(path: Path, document: object) -> str:
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def run(where: cloud.Cloud, planned: Mapping[str, Any]) -> dict[str, Any]:
    """What the child measured.

    Raises:
        SystemExit: it failed.
    """
    tmp, result = where.folder / "tmp", where.folder / "result.json"
    tmp.mkdir()
    storage = next(iter(where.storage_urls))
    plan_path = written(where.folder / "plan.json", planned)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "children" / "warm.py"),
        plan_path,
        str(result),
    ]
    done = subprocess.run(
        command, env=where.lambda_environment(storage, tmp, where.variables), cwd=tmp,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode or not result.exists():
        raise SystemExit(f"the measured process ended with {done.returncode}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def check(replies: Mapping[str, Any]) -> None:
    """Raises:
    RuntimeError: somebody answered something else than the model.
    """
    for name, reply in replies.items():
        case, _, contender = name.partition("|")
        expected = np.array(replies[f"{case}|{BARE}"], np.float32)
        if contender == BARE:
            continue
        read = requests.usual_prediction if contender == "naive" else requests.infer_prediction
        found = read(reply)
        if found.shape != expected.shape or not np.allclose(
            found, expected, rtol=TOLERANCE, atol=TOLERANCE
        ):
            raise RuntimeError(f"{contender} answered {case} wrongly")


def results(taken: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One entry a case and contender, µs; what each takes over and beyond the bare run of the same round."""
    found = []
    for name, values in taken.items():
        case, _, contender = name.partition("|")
        encoding, rows = case.split()
        entry = measure.row(
            Spread.of(values, 1), encoding=encoding, rows=int(rows), contender=contender
        )
        if contender != BARE:
            bare = taken[f"{case}|{BARE}"]
            entry["over_bare"] = measure.ratios(values, bare).to_record()
            added = [value - base for value, base in zip(values, bare, strict=True)]
            entry["minus_bare"] = Spread.of(added, 1).to_record()
        found.append(entry)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = [
        ("rows", "body", "contender", "n", "µs", "p90", "- bare", "/ bare", "p90")
    ]
    for entry in found:
        line = [str(entry["rows"]), entry["encoding"], entry["contender"], str(entry["n"])]
        line += [f"{entry['median']:.1f}", f"{entry['p90']:.1f}"]
        if "over_bare" in entry:
            over = entry["over_bare"]
            line += [
                f"{entry['minus_bare']['median']:.1f}",
                f"{over['median']:.2f}",
                f"{over['p90']:.2f}",
            ]
        rows.append(line + [""] * (9 - len(line)))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.warm_request", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=60)
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    workload = workloads()["tiny"]
    with cloud.start([workload], ["unthrottled"]) as where:
        measured = run(where, plan(where, workload, wanted.rounds))
    check(measured["replies"])
    found = results(measured["taken"])
    print(table(found))
    measure.finish(measure.result_line("warm_request", "us", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
