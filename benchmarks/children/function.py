"""One execution environment of the infer function under awslambdaric, and those who call it. `function.py PLAN`

PLAN is JSON: {"handler", "registry_url", "storage_url", "event": file, "folder", "loads": [{"clients", "requests"}]}.
This process is the Runtime API (local/execution/runtime_api.py); the function's own process is its child, and the only one whose CPU
time and memory count. An environment has one invocation at a time: more clients wait for their turn, within their
latency.
Prints {"cold_start_ms", "answer", "memory_mb", "loads": [one `summary` each]}.
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
from local.execution.logs import FunctionLog
from local.execution.processes import ROOT, Janitor
from local.execution.runtime_api import Environment, Invocation, Place
from local.template import Template

FUNCTION = "InferFunction"
INIT_LIMIT_S, LIMIT_S = 10.0, 29.0


async def call(environment: Environment, event: bytes) -> bytes:
    """The function's reply.

    Raises:
        RuntimeError: it failed.
    """
    invocation = Invocation(str(uuid.uuid4()), event, time.time() + LIMIT_S, "Root=1-0-0;Sampled=0")
    answer = await environment.invoke(invocation, LIMIT_S)
    if answer.error:
        raise RuntimeError(f"the function answered {answer.payload[:300]!r}")
    return answer.payload


async def load(
    environment: Environment, event: bytes, clients: int, requests: int
) -> dict[str, float]:
    each, turn = max(1, requests // clients), asyncio.Lock()
    taken: list[float] = []

    async def client(count: int) -> None:
        for _ in range(count):
            began = time.perf_counter()
            async with turn:
                answer = await call(environment, event)
            taken.append(time.perf_counter() - began)
            if json.loads(answer)["statusCode"] != 200:
                raise RuntimeError(f"the function answered {answer[:300]!r}")

    await asyncio.gather(*(client(max(1, each // 10)) for _ in range(clients)))
    taken.clear()
    before, began = cpu_seconds(environment.pid), time.perf_counter()
    await asyncio.gather(*(client(each) for _ in range(clients)))
    seconds, after = time.perf_counter() - began, cpu_seconds(environment.pid)
    return summary(clients, taken, seconds, after - before)


async def measured(plan: dict[str, Any]) -> dict[str, Any]:
    function = Template.load(ROOT / "template.yaml").functions[FUNCTION]
    endpoints = {
        "AWS_ENDPOINT_URL_DYNAMODB": plan["registry_url"],
        "AWS_ENDPOINT_URL_S3": plan["storage_url"],
    }
    function = replace(
        function, handler=plan["handler"], environment=function.environment | endpoints
    )
    event, folder = Path(plan["event"]).read_bytes(), Path(plan["folder"])
    janitor, log = Janitor(), FunctionLog(folder, FUNCTION)
    try:
        environment = Environment(function, 1, Place(plan["registry_url"], folder, janitor), log)
        began = time.perf_counter()
        await environment.start(INIT_LIMIT_S, "init")
        try:
            answer = await call(environment, event)
            cold_start_ms = (time.perf_counter() - began) * 1000
            loads = [
                await load(environment, event, one["clients"], one["requests"])
                for one in plan["loads"]
            ]
            used = memory_mb(environment.pid)
        finally:
            await environment.stop()
    finally:
        log.close()
        janitor.close()
    return {
        "cold_start_ms": cold_start_ms,
        "answer": json.loads(answer),
        "memory_mb": used,
        "loads": loads,
    }


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(measured(plan))), flush=True)


if __name__ == "__main__":
    main()
