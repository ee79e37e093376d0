"""How does the cost of a request grow with its payload, from one number to as many as Lambda lets in?

    python -m benchmarks.payload [--rounds N] [--no-save]

A model that adds up what it is given, whatever its size, and answers one number: what a request costs beside it is the
way of its numbers. Lambda takes 6 MiB, base64 included: 1.1 million FP32 as binary tensors, 600,000 numbers of three
decimals as JSON. Contenders, process, rounds and ratios are those of `benchmarks.warm_request`; naive is what everybody
writes: json.loads, np.array, session.run, json.dumps, of a body that is not even base64.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import cloud, measure, requests
from benchmarks.harness.models import IR, OPSET, Workload
from benchmarks.warm_request import check, results, run, written

BINARY = (1, 10, 100, 1_000, 10_000, 100_000, 1_100_000)
JSON = (1, 10, 100, 1_000, 10_000, 100_000, 600_000)
EVENT_LIMIT = 6 * 1024 * 1024
CONTENDERS = ("bare", "ours", "naive")
CALLS = 20_000  # numbers that one contender takes in a row, at least twice and at most 25 times


def adder() -> onnx.ModelProto:
    """y = the sum of x, (n,) to (1,)."""
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


def plan(where: cloud.Cloud, rounds: int) -> dict[str, Any]:
    """What `children/warm.py` is to do; its files lie in the cloud's folder.

    Raises:
        ValueError: a request is larger than Lambda lets in.
    """
    cases = []
    for encoding, sizes in (("json", JSON), ("binary", BINARY)):
        for size in sizes:
            name = where.folder / f"{encoding}-{size}"
            WORKLOAD.values(size).astype(np.float32).tofile(name.with_suffix(".values"))
            event = requests.infer_event(WORKLOAD, size, binary=encoding == "binary")
            path = written(name.with_suffix(".event"), event)
            if name.with_suffix(".event").stat().st_size > EVENT_LIMIT:
                raise ValueError(f"{size} numbers as {encoding} are more than Lambda takes")
            naive = requests.predict_event(WORKLOAD, size) if encoding == "json" else None
            cases.append(
                {
                    "case": f"{encoding} {size}",
                    "repeats": max(2, min(25, CALLS // size)),
                    "values": str(name.with_suffix(".values")),
                    "shape": [size],
                    "event": path,
                    "naive": written(name.with_suffix(".naive"), naive) if naive else None,
                }
            )
    return {
        "rounds": rounds,
        "model": str(where.model_path(WORKLOAD)),
        "contenders": CONTENDERS,
        "cases": cases,
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = [
        ("numbers", "body", "contender", "n", "µs", "p90", "- bare", "ns each")
    ]
    for entry in found:
        line = [str(entry["rows"]), entry["encoding"], entry["contender"], str(entry["n"])]
        line += [f"{entry['median']:.1f}", f"{entry['p90']:.1f}"]
        if "minus_bare" in entry:
            added = entry["minus_bare"]["median"]
            line += [f"{added:.1f}", f"{added * 1000 / entry['rows']:.1f}"]
        rows.append(line + [""] * (8 - len(line)))
    return measure.table(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.payload", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=30)
    return parser.parse_args(words)


def main() -> None:
    wanted = arguments()
    with cloud.start([WORKLOAD], ["unthrottled"]) as where:
        measured = run(where, plan(where, wanted.rounds))
    check(measured["replies"])
    found = results(measured["taken"])
    print(table(found))
    measure.finish(measure.result_line("payload", "us", wanted.rounds, found), wanted.save)


if __name__ == "__main__":
    main()
