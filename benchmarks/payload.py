"""Payload: time of a request by body size, up to Lambda's limit.

    python -m benchmarks.payload [--rounds N] [--no-save]

The model adds up any number of values and answers one number, so that nearly the whole cost is that
of carrying the values. Lambda's limit of 6 MiB, base64 included, holds 1.1 million FP32 values as
binary tensors or 600,000 numbers of three decimals as JSON. Process, rounds and ratios are those of
`benchmarks.warm_request`, and so are its contenders bare, ours and naive; naive's body is not even
base64.

Not measured: the same as in `benchmarks.warm_request`, and the work of a real model.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import cloud, measure, options, requests
from benchmarks.harness.child import write_json
from benchmarks.harness.models import IR, OPSET, Workload
from benchmarks.warm_request import check, results, run

BINARY = (1, 10, 100, 1_000, 10_000, 100_000, 1_100_000)
JSON = (1, 10, 100, 1_000, 10_000, 100_000, 600_000)
EVENT_LIMIT = 6 * 1024 * 1024  # bytes of an invocation's payload, Lambda's quota
CONTENDERS = ("bare", "ours", "naive")
# A block of calls carries about this many values, in 2 to 25 calls.
BLOCK_VALUES, BLOCK_MIN, BLOCK_MAX = 20_000, 2, 25


def adder() -> onnx.ModelProto:
    """Build an ONNX model that sums its input, (n,) to (1,)."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        "benchmark",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(1, np.int64), "axes")],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="mayfly-benchmarks",
    )


WORKLOAD = Workload("adder", adder, ())


def make_plan(aws: cloud.Cloud, rounds: int) -> dict[str, Any]:
    """Write input files for `children/warm.py`; return the measurement plan.

    Raises:
        ValueError: a request is larger than Lambda's limit.
    """
    sizes = [("json", size) for size in JSON] + [("binary", size) for size in BINARY]
    cases = [_make_case(aws, encoding, size) for encoding, size in sizes]
    model = str(aws.model_path(WORKLOAD))
    return {"rounds": rounds, "model": model, "contenders": CONTENDERS, "cases": cases}


def _make_case(aws: cloud.Cloud, encoding: str, size: int) -> dict[str, Any]:
    path = aws.folder / f"{encoding}-{size}"
    event = requests.infer_event(WORKLOAD, size, binary=encoding == "binary", key=aws.key)
    event_path = write_json(path.with_suffix(".event"), event)
    if Path(event_path).stat().st_size > EVENT_LIMIT:
        raise ValueError(f"{size} numbers as {encoding} are more than Lambda takes")
    naive = None
    if encoding == "json":
        naive = write_json(path.with_suffix(".naive"), requests.predict_event(WORKLOAD, size))
    return {
        "case": f"{encoding} {size}",
        "repeats": max(BLOCK_MIN, min(BLOCK_MAX, BLOCK_VALUES // size)),
        "values": WORKLOAD.write_values(path.with_suffix(".values"), size),
        "shape": [size],
        "event": event_path,
        "naive": naive,
    }


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format payload results as a text table.

    The entries are those of `warm_request.results`.
    """
    heading = ("numbers", "body", "contender", "n", "CPU µs", "p90", "- bare", "ns each")
    rows: list[Sequence[str]] = [heading]
    for entry in entries:
        cells = [str(entry["rows"]), entry["encoding"], entry["contender"], str(entry["n"])]
        cells += [f"{entry['median']:.1f}", f"{entry['p90']:.1f}"]
        if "minus_bare" in entry:
            added_us = entry["minus_bare"]["median"]
            cells += [f"{added_us:.1f}", f"{added_us * 1000 / entry['rows']:.1f}"]
        rows.append(cells + [""] * (len(heading) - len(cells)))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the payload benchmark."""
    return options.make_parser("payload", __doc__, rounds=30).parse_args(words)


def main() -> None:
    chosen = arguments()
    with cloud.start([WORKLOAD], ["unthrottled"]) as aws:
        measured = run(aws, make_plan(aws, chosen.rounds))
    check(measured["replies"])
    entries = results(measured["cpu_us"])
    print(table(entries))
    measure.finish(measure.result_line("payload", "us", chosen.rounds, entries), chosen.save)


if __name__ == "__main__":
    main()
