"""Measure a Lambda function under a runtime client: cold start, memory, load.

    function.py PLAN

PLAN is JSON: {"handler", "client": "mayfly" (ours) or "aws" (awslambdaric), "registry_url",
"storage_url", "event": file, "folder", "loads": [{"clients", "requests"}]}. This process is the
Runtime API (local/execution/runtime_api.py); the function runs in a child process, and only that
process's CPU time and memory count. An environment has one invocation at a time: further clients
wait for their turn, and their latency includes the wait. Prints {"cold_start_ms", "answer",
"memory_mb", "loads": [the `summary` of each]}.
"""

import asyncio
import json
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.children.load import summary
from benchmarks.harness.usage import cpu_seconds, memory_mb
from local.execution.environment import Environment, Place
from local.execution.logs import FunctionLog
from local.execution.processes import ROOT, Janitor
from local.execution.runtime_api import Invocation
from local.template import Function, Template

FUNCTION = "InferFunction"
INIT_LIMIT_S, LIMIT_S = 10.0, 29.0


async def call(environment: Environment, event: bytes) -> bytes:
    """Invoke the Lambda function with an event; return the reply bytes.

    Raises:
        RuntimeError: the invocation failed.
    """
    invocation = Invocation(str(uuid.uuid4()), event, time.time() + LIMIT_S, "Root=1-0-0;Sampled=0")
    answer = await environment.invoke(invocation, LIMIT_S)
    if answer.error:
        raise RuntimeError(f"the function answered {answer.payload[:300]!r}")
    return answer.payload


async def load(
    environment: Environment, event: bytes, clients: int, requests: int
) -> dict[str, float]:
    """Invoke the function from concurrent clients; return latency and CPU summary.

    A tenth of the requests is sent before, as a warm-up.
    """
    each, turn = max(1, requests // clients), asyncio.Lock()
    durations_s: list[float] = []

    async def client(count: int) -> None:
        for _ in range(count):
            started = time.perf_counter()
            async with turn:
                answer = await call(environment, event)
            durations_s.append(time.perf_counter() - started)
            if json.loads(answer)["statusCode"] != 200:
                raise RuntimeError(f"the function answered {answer[:300]!r}")

    await asyncio.gather(*(client(max(1, each // 10)) for _ in range(clients)))
    durations_s.clear()
    cpu_before, started = cpu_seconds(environment.pid), time.perf_counter()
    await asyncio.gather(*(client(each) for _ in range(clients)))
    seconds, cpu_after = time.perf_counter() - started, cpu_seconds(environment.pid)
    return summary(clients, durations_s, seconds, cpu_after - cpu_before)


async def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """Start an execution environment; measure cold start, loads and memory."""
    folder, janitor = Path(plan["folder"]), Janitor()
    log = FunctionLog(folder, FUNCTION)
    try:
        place = Place(plan["registry_url"], folder, janitor)
        environment = Environment(_function(plan), 1, place, log)
        return await _measure_environment(environment, plan)
    finally:
        log.close()
        janitor.close()


def _function(plan: dict[str, Any]) -> Function:
    function = Template.load(ROOT / "template.yaml").functions[FUNCTION]
    variables = {
        "RUNTIME_CLIENT": plan["client"],
        "AWS_ENDPOINT_URL_DYNAMODB": plan["registry_url"],
        "AWS_ENDPOINT_URL_S3": plan["storage_url"],
    }
    environment = function.environment | variables
    return replace(function, handler=plan["handler"], environment=environment)


async def _measure_environment(environment: Environment, plan: dict[str, Any]) -> dict[str, Any]:
    event = Path(plan["event"]).read_bytes()
    started = time.perf_counter()
    await environment.start(INIT_LIMIT_S, "init")
    try:
        answer = await call(environment, event)
        cold_start_ms = (time.perf_counter() - started) * 1000
        loads = [
            await load(environment, event, each["clients"], each["requests"])
            for each in plan["loads"]
        ]
        used_mb = memory_mb(environment.pid)
    finally:
        await environment.stop()
    return {
        "cold_start_ms": cold_start_ms,
        "answer": json.loads(answer),
        "memory_mb": used_mb,
        "loads": loads,
    }


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(measure(plan))), flush=True)


if __name__ == "__main__":
    main()
