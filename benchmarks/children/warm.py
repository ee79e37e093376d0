"""The environment of a function that has its model in memory: what calls of its handler take. `warm.py PLAN RESULT`

PLAN is JSON: {"rounds": N, "model": path, "contenders": […], "cases": [{"case", "repeats", "values", "shape", "event",
"naive"}, …]}; `repeats` is how many calls of one contender come in a row: a round counts their median.
RESULT takes {"taken": {"<case>|<contender>": [µs of each round]}, "replies": {the same keys: reply}}.
Log lines go to stdout; somebody has to read them.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.children.invoke import Context
from benchmarks.harness.measure import interleave
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.infer import main as deployed
from functions.infer.handler import make_handler


def quiet_handler() -> Any:
    """The same handler, and no request that goes well is among those that are logged."""
    return make_handler(_service(), sample_rate=0.5, chance=lambda: 1.0)


def forgetful_handler() -> Any:
    """The same handler, which knows the form of no request."""
    service = _service()
    handler = make_handler(service)

    def forgetful(event: Any, context: Any) -> Any:
        service._decoders.clear()
        return handler(event, context)

    return forgetful


def _service() -> InferenceService:
    return InferenceService(deployed.registry, deployed.resolver, deployed.models, Statistics())


def block(call: Callable[[], Any], repeats: int) -> float:
    """The median µs of `repeats` calls, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - began)
    return statistics.median(taken[1:]) / 1000


def main() -> None:
    plan = _read(sys.argv[1])
    session = bare_session(
        Path(plan["model"]), _read(plan["cases"][0]["event"])["path"].split("/")[-2]
    )
    quiet, forgetful, context = quiet_handler(), forgetful_handler(), Context()
    calls: dict[str, Callable[[], Any]] = {}
    contenders: dict[str, Callable[[], float]] = {}
    for case in plan["cases"]:
        array = np.fromfile(case["values"], np.float32).reshape(case["shape"])
        event = _read(case["event"])
        found: dict[str, Callable[[], Any]] = {
            "bare": partial(session.run, ["y"], {"x": array}),
            "ours": partial(deployed.lambda_handler, event, context),
            "quiet": partial(quiet, event, context),
            "unseen": partial(forgetful, event, context),
        }
        if case["naive"]:
            found["naive"] = partial(naive, session, _read(case["naive"]))
        for contender, call in found.items():
            if contender not in plan["contenders"]:
                continue
            name = f"{case['case']}|{contender}"
            calls[name] = call
            contenders[name] = partial(block, call, case["repeats"])
    replies = {name: call() for name, call in calls.items()}
    taken = interleave(contenders, plan["rounds"], what="warm request")
    plain = {
        name: reply if isinstance(reply, dict) else reply[0].tolist()
        for name, reply in replies.items()
    }
    Path(sys.argv[2]).write_text(json.dumps({"taken": taken, "replies": plain}), encoding="utf-8")


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def bare_session(path: Path, name: str) -> Any:
    """The model `name` in ONNX Runtime's Python package, with the options of the function's own: nothing spins."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = deployed.resolver.resolve(name, None).version.plan["threads"]
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def naive(session: Any, event: dict[str, Any]) -> dict[str, Any]:
    """What everybody writes: no checks, no log line."""
    array = np.array(json.loads(event["body"])["data"], dtype=np.float32)
    [output] = session.run(None, {"x": array})
    return {"statusCode": 200, "body": json.dumps({"prediction": output.tolist()})}


if __name__ == "__main__":
    main()
