"""Zipf-distributed requests to many models through the infer function's handler.

    traffic.py PLAN RESULT

PLAN is JSON: {"members": [[number, size_bytes], …], "requests": N or 0, "seconds": S, "threads": T,
"skew": 1.1, "seed": N}. The traffic ends after N requests or, with 0, after S seconds. RESULT is
the file for the measurements of each request and of the whole process; the memory's peak is read
after every request. Log lines go to stdout.
"""

import base64
import gc
import json
import random
import sys
import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.children.context import Context
from benchmarks.children.memory_status import memory_mb
from benchmarks.harness.member import WIDTH, Member
from functions.infer import main as deployed

MB = 1024 * 1024
WRONG_MAX = 20  # wrong answers that are reported


class Traffic:
    """Multithreaded requests to many models, with latency and memory measurements."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._members = [Member(*fields) for fields in plan["members"]]
        popularity = ((rank + 1) ** -plan["skew"] for rank in range(len(self._members)))
        self._weights = list(accumulate(popularity))
        self._random = random.Random(plan["seed"])  # noqa: S311 (no secret)
        self._random.shuffle(self._members)
        self._lock = threading.Lock()
        self._left = plan["requests"] or sys.maxsize
        self._until = time.monotonic() + plan["seconds"] if not plan["requests"] else float("inf")
        self.hits: list[float] = []
        self.misses: list[float] = []
        self.refused: dict[str, int] = {}
        self.wrong: list[str] = []
        self.held_mb = self.files_mb = 0.0
        self.peaks: list[float] = []  # VmHWM after each request, in MB

    def send_all(self) -> None:
        """Send requests until their planned number or time is used up."""
        while (chosen := self._choose()) is not None:
            self._send(*chosen)

    def _choose(self) -> tuple[Member, float] | None:
        with self._lock:
            if self._left <= 0 or time.monotonic() >= self._until:
                return None
            self._left -= 1
            [member] = self._random.choices(self._members, cum_weights=self._weights)
            return member, self._random.randrange(100) / 4

    def _send(self, member: Member, x: float) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [x] * WIDTH}
        event = post_event(f"/v2/models/{member.name}/infer", {"inputs": [tensor]})
        started = time.perf_counter()
        reply: Any = deployed.lambda_handler(event, Context())
        duration_ms = (time.perf_counter() - started) * 1000
        self._record(member, x, reply, duration_ms)

    def _record(self, member: Member, x: float, reply: dict[str, Any], duration_ms: float) -> None:
        answer = json.loads(reply["body"])
        held, files = (size / MB for size in deployed.models.held_bytes())
        peak = memory_mb("VmHWM")
        with self._lock:
            self.held_mb, self.files_mb = max(self.held_mb, held), max(self.files_mb, files)
            self.peaks.append(peak)
            if reply["statusCode"] == 503:
                self.refused[answer["code"]] = self.refused.get(answer["code"], 0) + 1
            elif wrong := _difference(member, x, reply["statusCode"], answer):
                self.wrong.append(wrong)
            elif reply["headers"]["x-cold-start"] == "1":
                self.misses.append(duration_ms)
            else:
                self.hits.append(duration_ms)

    def results(self, bare_mb: float) -> dict[str, Any]:
        """Return latencies, wrong answers and memory of all requests.

        It is called after the last request.
        """
        return {
            "hits_ms": self.hits,
            "misses_ms": self.misses,
            "refused": self.refused,
            "wrong": self.wrong[:WRONG_MAX],
            "bare_mb": bare_mb,
            "peaks_mb": self.peaks,
            "held_mb": self.held_mb,
            "bound_mb": deployed.models._memory_bytes / MB,
            "files_mb": self.files_mb,
            "storage_mb": deployed.models._storage_bytes / MB,
            "left": [path.name for path in deployed.environment.scratch.path.iterdir()],
            "threads_left": sum(thread.name == "load" for thread in threading.enumerate()),
        }


def _difference(member: Member, x: float, status: int, answer: dict[str, Any]) -> str:
    """Describe how a model answered wrongly; return "" if correct."""
    if status != 200:
        return f"{member.name} answered {status}: {str(answer)[:300]}"
    values = answer["outputs"][0]["data"]
    return "" if member.is_answer(values, x) else f"{member.name} of {x} is {values[:1]}"


def post_event(path: str, body: object) -> dict[str, Any]:
    """Return a POST request as an API Gateway event."""
    return {
        "httpMethod": "POST",
        "path": path,
        "headers": {"content-type": "application/json"},
        "queryStringParameters": None,
        "requestContext": {"requestId": "the-request"},
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "isBase64Encoded": True,
    }


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    traffic = Traffic(plan)
    bare_mb = memory_mb("VmRSS")
    threads = [threading.Thread(target=traffic.send_all) for _ in range(plan["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(60)
    gc.collect()
    Path(sys.argv[2]).write_text(json.dumps(traffic.results(bare_mb)), encoding="utf-8")


if __name__ == "__main__":
    main()
