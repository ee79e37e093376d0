"""Time to the reply of an alias with and without shadow.

    shadowed.py PLAN RESULT

PLAN is JSON: {"rounds": N, "repeats": N, "model": name, "event": path}. RESULT is the file for
{"ms": {"<contender>": [median of each round]}, "copies": {"<contender>": runs of the shadow}}.
"""

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.children.warm import LaterContext
from benchmarks.harness.measure import interleave
from functions.adapters.clock import utc_now
from functions.core.records import replace
from functions.core.registry.releases import Releases
from functions.core.registry.version import Source
from functions.core.traffic.traffic import Traffic, Weight
from functions.infer import main as deployed

SHARES = {"plain": 0, "plain again": 0, "5 %": 500, "100 %": 10_000}  # buckets of the shadow
MARK = "{the id}"  # id of a request, which decides about its copy


def set_up(model: str) -> None:
    """Register the files as version 2; set an alias for each share."""
    registry = deployed.environment.registry
    first = registry.resolve(model, 1).version
    claimed = registry.claim(model, Source("benchmark", "copy", "1"))
    places = {name: getattr(claimed, name) for name in ("number", "source", "created_at")}
    claims = {name: getattr(claimed, name) for name in ("attempts", "claimed_at")}
    registry.finish(replace(first, **places, **claims))
    releases = Releases(deployed.environment.table, utc_now)
    for share in SHARES.values():
        name = alias_of(share)
        releases.move_alias(model, name, 1, actor="benchmark")
        if share:
            traffic = Traffic((Weight(1, 10_000),), shadow=Weight(claimed.number, share))
            releases.set_traffic(model, name, traffic, actor="benchmark")


def alias_of(share: int) -> str:
    """Return the alias whose shadow has this number of buckets."""
    return f"share-{share}"


def event_of(event: dict[str, Any], model: str, share: int) -> bytes:
    """Return a request of an alias, with MARK as its id."""
    path = f"/v2/models/{model}/versions/{alias_of(share)}/infer"
    context = {**event["requestContext"], "requestId": MARK}
    return json.dumps({**event, "path": path, "requestContext": context}).encode()


class Contender:
    """Requests of one alias; counts the runs of its shadow."""

    def __init__(self, event: bytes, repeats: int) -> None:
        self.event = event
        self.repeats = repeats
        self.at = self.copies = 0

    def block(self) -> float:
        """Return the median time to the reply in ms.

        What follows a reply is not in it.
        """
        times_ms = []
        for _ in range(self.repeats):
            request = self.event.replace(MARK.encode(), b"request-%d" % self.at)
            self.at += 1
            context = LaterContext()
            began_ns = time.perf_counter_ns()
            reply: Any = deployed.lambda_handler(request, context)
            times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
            if json.loads(reply)["statusCode"] != 200:
                raise SystemExit(f"a request failed: {reply!r}")
            self.copies += len(context.tasks) - 1  # the log line is always left for then
            for task in context.tasks:
                task()
        return statistics.median(times_ms)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    event = json.loads(Path(plan["event"]).read_text(encoding="utf-8"))
    set_up(plan["model"])
    contenders = {
        name: Contender(event_of(event, plan["model"], share), plan["repeats"])
        for name, share in SHARES.items()
    }
    blocks = {name: partial(contender.block) for name, contender in contenders.items()}
    ms = interleave(blocks, plan["rounds"], label="shadow")
    copies = {name: contender.copies for name, contender in contenders.items()}
    Path(sys.argv[2]).write_text(json.dumps({"ms": ms, "copies": copies}), encoding="utf-8")


if __name__ == "__main__":
    main()
