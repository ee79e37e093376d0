"""The environment of a function that serves a fleet: Zipf traffic through its handler. `traffic.py PLAN RESULT`

PLAN is JSON: {"members": [[number, size_bytes], …], "requests": N or 0, "seconds": S, "threads": T, "skew": 1.1,
"seed": N}: it ends after N requests or, where that is 0, after S seconds. RESULT takes what was seen, per request and
in total; the peak of this process's memory is read after every request. Log lines go to stdout.
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

from benchmarks.children.invoke import Context
from benchmarks.harness.member import WIDTH, Member
from functions.infer import main as deployed

MB = 1024 * 1024


def memory_mb(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


class Traffic:
    """What several threads send and see."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._members = [Member(*one) for one in plan["members"]]
        self._weights = list(
            accumulate((rank + 1) ** -plan["skew"] for rank in range(len(self._members)))
        )
        self._chance = random.Random(plan["seed"])  # noqa: S311 (no secret)
        self._chance.shuffle(self._members)
        self._lock = threading.Lock()
        self._left = plan["requests"] or sys.maxsize
        self._until = time.monotonic() + plan["seconds"] if not plan["requests"] else float("inf")
        self.hits: list[float] = []
        self.misses: list[float] = []
        self.refused: dict[str, int] = {}
        self.wrong: list[str] = []
        self.held_mb = self.files_mb = 0.0
        self.peaks: list[float] = []  # the highest so far, after each request

    def _next(self) -> tuple[Member, float] | None:
        with self._lock:
            if self._left <= 0 or time.monotonic() >= self._until:
                return None
            self._left -= 1
            [member] = self._chance.choices(self._members, cum_weights=self._weights)
            return member, self._chance.randrange(100) / 4

    def send(self) -> None:
        """Requests until the plan is done."""
        while (chosen := self._next()) is not None:
            member, x = chosen
            body = {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [x] * WIDTH}
                ]
            }
            event = request(f"/v2/models/{member.name}/infer", body)
            began = time.perf_counter()
            reply = deployed.lambda_handler(event, Context())
            taken = (time.perf_counter() - began) * 1000
            self._see(member, x, reply, taken)

    def _see(self, member: Member, x: float, reply: dict[str, Any], taken: float) -> None:
        answer = json.loads(base64.b64decode(reply["body"]))
        held, files = (size / MB for size in deployed.models.held_bytes())
        peak = memory_mb("VmHWM")
        with self._lock:
            self.held_mb, self.files_mb = max(self.held_mb, held), max(self.files_mb, files)
            self.peaks.append(peak)
            if reply["statusCode"] == 503:
                self.refused[answer["code"]] = self.refused.get(answer["code"], 0) + 1
            elif reply["statusCode"] != 200:
                self.wrong.append(
                    f"{member.name} answered {reply['statusCode']}: {str(answer)[:300]}"
                )
            elif not member.is_answer(answer["outputs"][0]["data"], x):
                self.wrong.append(f"{member.name} of {x} is {answer['outputs'][0]['data'][:1]}")
            else:
                (self.misses if reply["headers"]["x-cold-start"] == "1" else self.hits).append(
                    taken
                )


def request(path: str, body: object) -> dict[str, Any]:
    """A POST, as API Gateway hands it over."""
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
    traffic = Traffic(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    bare = memory_mb("VmRSS")
    threads = [threading.Thread(target=traffic.send) for _ in range(traffic._plan["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(60)
    gc.collect()
    found = {
        "hits_ms": traffic.hits,
        "misses_ms": traffic.misses,
        "refused": traffic.refused,
        "wrong": traffic.wrong[:20],
        "bare_mb": bare,
        "peaks_mb": traffic.peaks,
        "held_mb": traffic.held_mb,
        "bound_mb": deployed.models._memory_bytes / MB,
        "files_mb": traffic.files_mb,
        "storage_mb": deployed.models._storage_bytes / MB,
        "left": [path.name for path in deployed.scratch.path.iterdir()],
        "threads_left": sum(thread.name == "load" for thread in threading.enumerate()),
    }
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
