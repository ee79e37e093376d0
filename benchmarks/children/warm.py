"""Measure warm handler calls with the model in memory, per contender.

    warm.py PLAN RESULT

PLAN is JSON: {"rounds": N, "model": path, "contenders": […], "cases": [{"case", "repeats",
"values", "shape", "event", "naive"}, …]}. A round calls a contender `repeats` times in a row and
keeps the CPU time of a call. RESULT is the file for {"cpu_us": {"<case>|<contender>": [µs of each
round]}, "replies": {the same keys: reply}}. Log lines go to stdout, which another process has to
read.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller

from benchmarks.children.context import Context
from benchmarks.harness.measure import interleave
from functions.adapters.clock import Elapsed
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.core.usage.meter import Meter
from functions.infer import main as deployed
from functions.infer.handler import InferHandler

Call = Callable[[], Any]


class LaterContext(Context):
    """Context with the `after` of our runtime client."""

    def __init__(self) -> None:
        self.tasks: list[Call] = []

    def after(self, task: Call) -> None:
        self.tasks.append(task)


def under_our_client(handler: Any, event: bytes) -> bytes:
    """Return a handler's reply as our runtime client posts it.

    The event is bytes, and so is the reply; what the handler left for after the reply is done, too.
    """
    context = LaterContext()
    reply: bytes = handler(event, context)
    for task in context.tasks:
        task()
    return reply


def under_awslambdaric(handler: Any, marshaller: LambdaMarshaller, event: bytes) -> str:
    """Return a handler's reply as AWS's runtime client posts it.

    The client parses the event and serializes the reply.
    """
    document = marshaller.unmarshal_request(event)
    text: str = marshaller.marshal_response(handler(document, Context()))[0]
    return text


def metered(service: InferenceService | None = None, **options: Any) -> InferHandler:
    """Return an infer handler with a meter, as the deployed one has."""
    meter = Meter(deployed.environment.table, clock=Elapsed())
    return InferHandler(service or _service(), meter=meter, **options)


def quiet_handler() -> Any:
    """Return an infer handler whose log sampling skips successful requests."""
    return metered(gate=deployed.gate, sample_rate=0.5, chance=lambda: 1.0)


def forgetful_handler() -> Any:
    """Return an infer handler that clears cached request templates each time."""
    service = _service()
    handler = metered(service, gate=deployed.gate)

    def forgetful(event: Any, context: Any) -> Any:
        service._decoders.clear()
        return handler(event, context)

    return forgetful


def _service() -> InferenceService:
    statistics = Statistics(deployed.environment.table, Meter(deployed.environment.table))
    return InferenceService(
        deployed.environment.registry, deployed.resolver, deployed.models, statistics
    )


def bare_session(path: Path, name: str) -> Any:
    """Open an ONNX Runtime session with the infer function's options.

    `name` is the registered model, whose load plan has the number of threads.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = deployed.resolver.resolve(name, None).version.plan["threads"]
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def naive_handler(session: Any) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    """Return a minimal inference handler: no checks, no log line."""

    def handler(event: dict[str, Any], _: Any) -> dict[str, Any]:
        array = np.array(json.loads(event["body"])["data"], dtype=np.float32)
        [output] = session.run(None, {"x": array})
        return {"statusCode": 200, "body": json.dumps({"prediction": output.tolist()})}

    return handler


def block(call: Call, repeats: int) -> float:
    """Return the CPU time of this process in µs per call.

    One call before them is discarded.
    """
    call()
    began_ns = time.process_time_ns()
    for _ in range(repeats):
        call()
    return (time.process_time_ns() - began_ns) / repeats / 1000


def case_calls(
    case: Mapping[str, Any], session: Any, handlers: Mapping[str, Any]
) -> dict[str, Call]:
    """Return a function per contender that runs one request, by name."""
    array = np.fromfile(case["values"], np.float32).reshape(case["shape"])
    event, marshaller = Path(case["event"]).read_bytes(), LambdaMarshaller()
    calls: dict[str, Call] = {"bare": partial(session.run, ["y"], {"x": array})}
    calls |= {name: partial(under_our_client, each, event) for name, each in handlers.items()}
    calls["ours-aws"] = partial(under_awslambdaric, handlers["ours"], marshaller, event)
    if case["naive"]:
        naive_event = Path(case["naive"]).read_bytes()
        handler = naive_handler(session)
        calls["naive"] = partial(under_awslambdaric, handler, marshaller, naive_event)
    return calls


def main() -> None:
    plan = _read_json(sys.argv[1])
    model = _read_json(plan["cases"][0]["event"])["path"].split("/")[-2]
    session = bare_session(Path(plan["model"]), model)
    handlers = {  # the first one follows the bare run, which leaves it cold processor caches
        "quiet": quiet_handler(),
        "ours": deployed.lambda_handler,
        "open": metered(),
        "unmetered": InferHandler(_service(), gate=deployed.gate),
        "unseen": forgetful_handler(),
    }
    calls: dict[str, Call] = {}
    blocks: dict[str, Callable[[], float]] = {}
    for case in plan["cases"]:
        for contender, call in case_calls(case, session, handlers).items():
            if contender in plan["contenders"]:
                name = f"{case['case']}|{contender}"
                calls[name], blocks[name] = call, partial(block, call, case["repeats"])
    replies = {name: _plain(call()) for name, call in calls.items()}
    cpu_us = interleave(blocks, plan["rounds"], label="warm request")
    result = {"cpu_us": cpu_us, "replies": replies}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def _plain(reply: Any) -> Any:
    """Convert a contender's reply or output array to JSON values.

    A handler's reply is parsed; a session's array becomes lists.
    """
    return json.loads(reply) if isinstance(reply, bytes | str) else reply[0].tolist()


def _read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
