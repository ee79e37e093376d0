"""Stress test of one environment with hostile requests to models of many operators.

    python -m tests.stress.hostile_requests [--requests 2000] [--seed 0] [--models 60]

The models go through the real sandbox, and the requests to a real process of the infer function
with its limits on memory and time. The test fails if

- the process ends, except after an answer about missing memory or time, by its own choice,
- a status is not 200, 4xx, 501, 503 with retry-after for an unloaded model, or 504 for a run that
  took its time,
- an error is not one printable line of the protocol, or shows the insides,
- memory is not back at its level after a shortage, and the environment goes on,
- a good request is not answered right, every GOOD_EVERY requests.

A request depends on the seed and its number alone; `--only NUMBER` prints and sends one of them.
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from functions.core.protocol.infer_request import HEADER
from functions.core.registry.version import State
from functions.infer.handler import SHORTAGES
from tests.models import scale_model
from tests.stress.requests.changes import mix
from tests.stress.requests.drafts import Draft, draft
from tests.stress.requests.environment import HttpReply, Served, Stage, stage
from tests.stress.requests.models import WIDE, candidates, required

MEMORY_MB = 512
GOOD_EVERY = 25
RUN_US = 3_000_000  # time for most runs: a Loop may have INT64_MAX rounds
REFUSED = {400, 404, 405, 409, 413, 415, 501}
# File names, addresses, names of Python's and C++'s types and functions.
INSIDES = re.compile(
    r"/(tmp|work|usr|home|var|opt|src|core)/|\.py\b|\.cc\b|\.onnx\b|Traceback|0x[0-9a-f]{6}|::"
    r"|onnxruntime|\b[A-Z]\w+(Error|Exception)\b|<class|object at|NoneType|\b(dict|str|bytearray)\b"
)
HEADER_TEXT = re.compile(r"[\x20-\x7e]*")


@dataclass
class Report:
    """Result of a stress run: reply counts and wrongly answered requests."""

    outcomes: Counter[str] = field(default_factory=Counter)  # status and code
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)  # kind and status
    faults: list[str] = field(default_factory=list)
    replaced: int = 0
    started: int = 0
    rejected: int = 0
    models: int = 0


def request(seed: int, number: int, stage: Stage) -> Draft:
    """Return a run's hostile request by its number."""
    rng = Random(f"{seed}/{number}")  # noqa: S311 (no secret)
    model = rng.choice(sorted(stage.versions))
    signature = stage.versions[model].signature
    assert signature is not None
    made = draft(rng, model, signature)
    if rng.random() < 0.95:
        made.document["parameters"] = {"timeout": RUN_US}
    mix(rng, made)
    return made


def document(reply: HttpReply) -> Any:
    """Parse a reply's JSON strictly: no NaN, no infinity."""
    body = reply.body
    match reply.headers.get("content-encoding"):
        case "gzip":
            body = gzip.decompress(body)
        case "deflate":
            body = zlib.decompress(body)
    length = reply.headers.get(HEADER.lower())
    text = body if length is None else body[: int(length)]

    def refuse(name: str) -> None:
        raise AssertionError(f"the reply has the constant {name}")

    parsed = json.loads(text, parse_constant=refuse)
    if length is not None:
        sizes = [o.get("parameters", {}).get("binary_data_size", 0) for o in parsed["outputs"]]
        assert sum(sizes) == len(body) - int(length), "binary outputs of another size"
    return parsed


def check(sent: Draft, reply: HttpReply) -> str:
    """Check a reply against the protocol; return its status and code.

    Raises:
        AssertionError: the reply is not one that the protocol allows.
    """
    for name, content in reply.headers.items():
        assert HEADER_TEXT.fullmatch(name + content), f"header {name!r}: {content!r}"
    if sent.method == "HEAD":
        assert reply.body == b"", "a reply to HEAD has a body"
        code = ""
    elif reply.status == 200:
        code = "" if document(reply) is not None else "no document"
    else:
        code = check_error(document(reply))
    check_status(reply, code)
    if reply.exit_status is not None:
        assert (reply.exit_status, code in SHORTAGES) == (0, True), f"exit {reply.exit_status}"
    return f"{reply.status} {code}".strip()


def check_error(answer: Mapping[str, Any]) -> str:
    assert set(answer) == {"error", "code", "request_id"}, f"fields {sorted(answer)}"
    text = answer["error"]
    assert text.isprintable(), f"not printable: {text!r}"
    assert 10 < len(text) <= 300, f"{len(text)} characters: {text}"
    own = re.sub(r"'.*'", "''", text)  # without what it quotes from the request
    assert not INSIDES.search(own), f"shows the insides: {text}"
    return str(answer["code"])


def check_status(reply: HttpReply, code: str) -> None:
    status, shown = reply.status, reply.body[:400]
    if status == 503:
        assert code in ("MODEL_NOT_READY", ""), f"503 {shown!r}"
        assert int(reply.headers["retry-after"]) > 0
    elif status == 504:
        assert code in ("TIMED_OUT", ""), f"504 {shown!r}"
    else:
        assert status == 200 or status in REFUSED, f"{status} {shown!r}"


async def check_well(served: Served, stage: Stage) -> None:
    """Check that good requests to three models are answered right."""
    good = [
        ("scale", "FP32", [1, 3], [1, 2, 3], [2, 4, 6]),
        ("wide", "FP32", [1, 3], [1, 2, 3], [6 * WIDE]),
        ("text", "BYTES", [2], ["grün", ""], ["grün", ""]),
    ]
    for model, datatype, shape, data, expected in good:
        signature = stage.versions[model].signature
        assert signature is not None
        tensor = {"name": signature.inputs[0].name, "datatype": datatype}
        sent = Draft(model, signature, {"inputs": [tensor | {"shape": shape, "data": data}]})
        reply = await served.send(sent.to_event(), model)
        assert reply.status == 200, f"a good request to {model}: {reply.status} {reply.body!r}"
        assert document(reply)["outputs"][0]["data"] == expected, reply.body


def register(stage: Stage, models: int, rng: Random) -> int:
    """Register models until `models` are READY; return the rejected."""
    for name, content in required().items():
        version = stage.register(name, content)
        assert version.state is State.READY, version.reason
    stage.register("switched", scale_model())
    rejected = 0
    for name, content in candidates(rng):
        if len(stage.versions) >= models:
            break
        rejected += stage.register(name, content).state is not State.READY
    return rejected


async def send_all(stage: Stage, numbers: Sequence[int], seed: int, report: Report) -> None:
    served = Served(stage)
    try:
        for number in numbers:
            sent = request(seed, number, stage)
            try:
                await send(served, sent, report)
                if number % GOOD_EVERY == 0:
                    await check_well(served, stage)
            except AssertionError as error:
                fault = f"{number} {sent.model} ({', '.join(sent.kinds)}): {error}"
                print(fault, file=sys.stderr, flush=True)
                report.faults.append(fault)
    finally:
        report.started = served.started
        await served.stop()


async def send(served: Served, sent: Draft, report: Report) -> None:
    """Send a request, check the reply, and the memory after a shortage."""
    reply = await served.send(sent.to_event(), sent.model)
    outcome = check(sent, reply)
    for kind in sent.kinds:
        report.kinds[kind, reply.status] += 1
    report.outcomes[outcome] += 1
    if reply.exit_status is not None:
        report.replaced += 1
    elif outcome.split()[-1] in SHORTAGES:
        used_bytes, level_bytes = served.memory()
        assert used_bytes <= level_bytes, f"{used_bytes} bytes after {outcome}, not {level_bytes}"


def run(requests: int, seed: int, models: int, only: int | None = None) -> Report:
    """Send hostile requests to models; return the report."""
    report = Report()
    with stage(MEMORY_MB) as made:
        report.rejected = register(made, models, Random(seed))  # noqa: S311 (no secret)
        report.models = len(made.versions)
        numbers = range(requests) if only is None else [only]
        asyncio.run(send_all(made, numbers, seed, report))
        if only is not None:
            print(request(seed, only, made))
        log = made.log.path.read_text()
        report.faults += [line for line in log.splitlines() if "Traceback" in line]
    return report


def main() -> None:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    parser = argparse.ArgumentParser(prog="python -m tests.stress.hostile_requests")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--only", type=int, help="number of the one request to print and send")
    options = parser.parse_args()
    report = run(options.requests, options.seed, options.models, options.only)
    for outcome, times in report.outcomes.most_common():
        print(f"{times:6,}  {outcome}")
    for kind in sorted({kind for kind, _ in report.kinds}):
        counts = {status: n for (name, status), n in sorted(report.kinds.items()) if name == kind}
        print(f"{sum(counts.values()):6,}  {kind}: {counts}")
    print(
        f"{report.models} models READY, {report.rejected} rejected; "
        f"{report.started} environments, of which {report.replaced} ended after an answer"
    )
    if report.faults:
        sys.exit("\n".join([*report.faults, f"{len(report.faults)} faults"]))


if __name__ == "__main__":
    main()
