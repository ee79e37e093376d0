"""Measure a Lambda function under a runtime client: cold start, memory, load.

    function.py PLAN

PLAN is JSON: {"handler", "variables": environment of the function's process, "event": file,
"folder", "loads": [{"clients", "requests"}]}. This process is the Runtime API; the function runs
in a child process, and only that process's CPU time and memory count. An environment has one
invocation at a time: several clients take turns, and their latency includes the wait. A tenth of
the requests come first as a warm-up and are not counted. Prints {"cold_start_ms", "answer",
"memory_mb", "loads": [the `summary` of each]}.
"""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.children.load import summary
from benchmarks.children.runtime_api import RuntimeApi
from benchmarks.harness.usage import cpu_seconds, memory_mb

WRAPPER = Path(__file__).resolve().parents[2] / "functions" / "runtime" / "start"


def load(api: RuntimeApi, event: bytes, pid: int, clients: int, requests: int) -> dict[str, float]:
    """Invoke the function for clients that take turns; return a summary.

    Raises:
        RuntimeError: a reply's status was not 200, or the function failed.
    """
    _run(api, event, clients, max(1, requests // 10))
    api.wait()
    cpu_before, started = cpu_seconds(pid), time.perf_counter()
    durations_s = _run(api, event, clients, requests)
    api.wait()  # until the work after the last reply is done, which counts
    seconds, cpu_after = time.perf_counter() - started, cpu_seconds(pid)
    return summary(clients, durations_s, seconds, cpu_after - cpu_before)


def _run(api: RuntimeApi, event: bytes, clients: int, requests: int) -> list[float]:
    asked_at = deque(
        [time.perf_counter()] * clients
    )  # instants at which the clients sent their requests
    durations_s = []
    for _ in range(requests):
        reply = api.invoke(event)
        replied_at = time.perf_counter()
        if json.loads(reply)["statusCode"] != 200:
            raise RuntimeError(f"the function answered {reply[:300]!r}")
        durations_s.append(replied_at - asked_at.popleft())
        asked_at.append(replied_at)
    return durations_s


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """Start the function's process; measure cold start, loads and memory."""
    event, api = Path(plan["event"]).read_bytes(), RuntimeApi()
    started = time.perf_counter()
    with _process(plan, api) as pid:
        answer = api.invoke(event)
        cold_start_ms = (time.perf_counter() - started) * 1000
        loads = [load(api, event, pid, each["clients"], each["requests"]) for each in plan["loads"]]
        return {
            "cold_start_ms": cold_start_ms,
            "answer": json.loads(answer),
            "memory_mb": memory_mb(pid),
            "loads": loads,
        }


@contextmanager
def _process(plan: dict[str, Any], api: RuntimeApi) -> Iterator[int]:
    """Run the function's process during the block, with output to a file.

    Raises:
        RuntimeError: it failed; the message ends with its output.
    """
    output = Path(plan["folder"], "output")
    with output.open("wb") as log:
        process = subprocess.Popen(
            [WRAPPER, sys.executable, "-m", "awslambdaric", plan["handler"]],
            cwd=plan["folder"],
            env=plan["variables"] | {"AWS_LAMBDA_RUNTIME_API": api.address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    except (OSError, RuntimeError) as error:
        text = output.read_text(errors="replace").strip()[-500:]
        raise RuntimeError(f"{error}: {text}") from error
    finally:
        process.kill()
        process.wait()
        api.close()


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(measure(plan)), flush=True)


if __name__ == "__main__":
    main()
