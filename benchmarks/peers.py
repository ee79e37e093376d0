"""Model servers compared with the infer function: cold start, latency, CPU, memory.

    python -m benchmarks.peers [--rounds N] [--requests N] [--no-save]
                               [--peers flask,fastapi,bentoml,mlserver,litserve]

The model is the tiny perceptron: 784 values as JSON, ten back. Once per round, in a rotating order
and one at a time, each contender is started, asked until it answers, loaded by 1 client and by 8
clients, measured and ended. A shorter warm-up round comes first and is discarded. A prediction
that differs from the reference's by more than 1e-5, or a status other than 200, ends the benchmark.
A peer that cannot be started is listed with the reason.

Contenders:
flask, fastapi, bentoml, mlserver, litserve
       children/peers/<name>/server.py, written as each quick start says, in a virtual environment
       of its own with the same Python, onnxruntime and numpy. Each has one worker, one ONNX Runtime
       thread, the model as a local file, and otherwise its defaults: logs, one connection per
       request (gunicorn), a second process for the worker (LitServe). FastAPI has uvicorn's fast
       extras. MLServer's inference pool, by default a second process, is off. Requests are HTTP on
       loopback, over connections that stay open where the server keeps them.
ours   The infer function's process under our runtime client, as deployed. It gets API Gateway
       events from a Runtime API as lean as the peers' clients (children/runtime_api.py), reads the
       version from the registry (moto) and the model from "s3-like" storage, which waits 15 ms and
       sends 90 MB/s. It checks an access key, as no peer does. "ours, unthrottled" starts from
       storage without delay.
empty  The same process with children/empty.py as handler, which answers at once: the share of the
       runtime client. "ours, AWS's client" and "empty, AWS's client" run under awslambdaric.
stack  The local stack as a user sees it: HTTP, the local gateway, environments that start on
       demand.

Metrics:
cold start  Time in ms from before the process is started to the first 200. The peers read a local
            file, ours downloads. For the stack: the first request while the function has no
            environment and everything else is running.
latency     In ms at 1 and at 8 clients, each with one request after the other, from a separate
            process. For ours it includes the Runtime API, which is Lambda's on AWS.
CPU         User and system time of the server's processes per request in µs, from the kernel's CPU
            clocks. For ours that is the function's process with runtime client and log line; on AWS
            the callers' HTTP is API Gateway's work. For the stack it is everything: gateway,
            Runtime API, moto, environments.
memory      Of the server's processes after the load in 10⁶ bytes, shared pages once.

An environment of Lambda has one request at a time, so that the 8 clients of "ours" wait for each
other. AWS, and the stack, give them 8 environments, each as fast as at 1 client if it has a core.
OPENBLAS_NUM_THREADS=1 is set for the peers, because it makes numpy start sooner. Telemetry is off.

Not measured: TLS, the network, several workers, batches.
"""

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.harness import cloud, measure, options
from benchmarks.harness.measure import Spread
from benchmarks.harness.models import workloads
from benchmarks.harness.peer_servers import PEERS
from benchmarks.harness.server_runs import AWS, CLIENTS, MAYFLY, Metrics, ServerRuns
from local.execution import processes

OURS, UNTHROTTLED, EMPTY, STACK = "ours", "ours, unthrottled", "empty", "stack"
UNDER_AWS = {OURS: "ours, AWS's client", EMPTY: "empty, AWS's client"}
CPU_PEER, CPU_GOAL = "fastapi", 0.5  # CPU time of ours over this peer's, at 1 client
# Metrics in which ours has the goal to be below every peer, and their names.
GOAL_METRICS = {"cold_start_ms": "cold start", "cpu_us_1": "CPU", "memory_mb": "memory"}
Contender = Callable[[int], Metrics]  # takes the number of requests per load


def results(
    metrics: Mapping[str, Sequence[Metrics]],
    missing: Mapping[str, str],
    versions: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return one result entry per contender, with our function's ratio to peers.

    Ratios compare the same round. A peer in `missing` has the reason instead.
    """
    entries: list[dict[str, Any]] = []
    for name, rounds in metrics.items():
        entry: dict[str, Any] = {"contender": name, "n": len(rounds)}
        if name in versions:
            entry["versions"] = versions[name]
        for metric in rounds[0]:
            entry[metric] = Spread.from_values(_values(rounds, metric), 2).to_record()
        if name in PEERS and OURS in metrics:
            entry["ours_over"] = _ratios(metrics[OURS], rounds)
        if (base := UNDER_AWS.get(name, "")) in metrics:
            entry["over_aws_client"] = _ratios(rounds, metrics[base])
        entries.append(entry)
    return entries + [{"contender": name, "missing": reason} for name, reason in missing.items()]


def _ratios(ours: Sequence[Metrics], peer: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    return {
        metric: measure.ratios(_values(ours, metric), _values(peer, metric)).to_record()
        for metric in (*GOAL_METRICS, "cpu_us_8")
    }


def _values(rounds: Sequence[Metrics], metric: str) -> list[float]:
    return [metrics[metric] for metrics in rounds]


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Format server results as a text table.

    Ratios are those of CPU time at 1 client.
    """
    columns = [("cold ms", "cold_start_ms", 0)]
    for clients in CLIENTS:
        columns += [(f"p50/{clients}", f"p50_ms_{clients}", 2), ("p99", f"p99_ms_{clients}", 2)]
        columns += [("req/s", f"rps_{clients}", 0), ("CPU µs", f"cpu_us_{clients}", 0)]
    columns.append(("MB", "memory_mb", 0))
    titles = [title for title, _, _ in columns]
    rows: list[Sequence[str]] = [("contender", "n", *titles, "ours/CPU", "p90")]
    reasons = []
    for entry in entries:
        if "missing" in entry:
            reasons.append(f"{entry['contender']} was not measured: {entry['missing']}")
            continue
        cells = [
            f"{entry[name]['median']:.{digits}f}" if name in entry else ""
            for _, name, digits in columns
        ]
        over = entry["ours_over"]["cpu_us_1"] if "ours_over" in entry else {}
        ratio = [f"{over[part]:.2f}" if over else "" for part in ("median", "p90")]
        rows.append((entry["contender"], str(entry["n"]), *cells, *ratio))
    return "\n".join([measure.table(rows), *reasons])


def goals(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence per performance goal, with the measured result."""
    by_name = {entry["contender"]: entry for entry in entries}
    over = {name: entry["ours_over"] for name, entry in by_name.items() if "ours_over" in entry}
    sentences = []
    if CPU_PEER in over:
        ratio = over[CPU_PEER]["cpu_us_1"]["median"]
        verdict = "met" if ratio <= CPU_GOAL else "missed"
        sentences.append(f"CPU over {CPU_PEER}'s: {ratio:.2f}, goal {CPU_GOAL}: {verdict}")
    if EMPTY in by_name and OURS in by_name:
        client, total = (by_name[name]["cpu_us_1"]["median"] for name in (EMPTY, OURS))
        sentences.append(f"of our CPU, {client:.0f} µs of {total:.0f} are the runtime client's")
    for name, base in UNDER_AWS.items():
        if "over_aws_client" in by_name.get(name, {}):
            ratio = by_name[name]["over_aws_client"]["cpu_us_1"]["median"]
            sentences.append(f"CPU of {name} over {base}: {ratio:.2f}")
    for metric, name in GOAL_METRICS.items() if over else ():
        medians = {peer: ratios[metric]["median"] for peer, ratios in over.items()}
        sentences.append(f"{name}: {_standing(medians)}")
    return sentences


def _standing(ratios: Mapping[str, float]) -> str:
    """Return "behind …" with faster peers, or "ahead of …" with all.

    `ratios` are our function's values over each peer's.

    >>> _standing({"flask": 1.02, "fastapi": 0.5}), _standing({"fastapi": 0.5})
    ('behind flask (1.02)', 'ahead of fastapi')
    """
    behind = [f"{peer} ({ratio:.2f})" for peer, ratio in ratios.items() if ratio >= 1]
    return f"behind {', '.join(behind)}" if behind else f"ahead of {', '.join(ratios)}"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the model server benchmark."""
    parser = options.make_parser("peers", __doc__, rounds=5)
    requests_help = "of a load; default: 1000"
    parser.add_argument("--requests", type=options.positive, default=1000, help=requests_help)
    parser.add_argument("--peers", type=options.choice_of(PEERS), default=list(PEERS))
    return parser.parse_args(words)


def make_contenders(
    runs: ServerRuns, peers: Sequence[str], missing: dict[str, str]
) -> dict[str, Contender]:
    """Return a function per contender that measures one server run.

    A peer without a virtual environment is put into `missing` instead.
    """
    contenders: dict[str, Contender] = {
        OURS: partial(runs.function, "s3-like", MAYFLY),
        UNDER_AWS[OURS]: partial(runs.function, "s3-like", AWS),
    }
    for name in peers:
        if (PEERS[name].environment / "bin").is_dir():
            contenders[name] = partial(runs.peer, PEERS[name])
        else:
            missing[name] = f"no environment, run `make .venv-peer-{name}/.done`"
    contenders[UNTHROTTLED] = lambda _: runs.function("unthrottled", MAYFLY, 0)
    contenders[EMPTY] = partial(runs.empty, MAYFLY)
    contenders[UNDER_AWS[EMPTY]] = partial(runs.empty, AWS)
    contenders[STACK] = runs.stack
    return contenders


def warmed_up(
    contenders: Mapping[str, Contender], count: int, missing: dict[str, str]
) -> dict[str, Contender]:
    """Run each contender once; return the contenders that work.

    `count` is the number of requests per load. The run also compiles the byte code. A peer that
    fails is put into `missing` with the reason.

    Raises:
        RuntimeError: a contender that is no peer failed.
    """
    working = {}
    for name, contender in contenders.items():
        measure.progress(f"peers: warm-up, {name}")
        try:
            contender(count)
            working[name] = contender
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            if name not in PEERS:
                raise
            missing[name] = str(error)
    return working


def main() -> None:
    chosen = arguments()
    workload = workloads()["tiny"]
    janitor = processes.Janitor()
    missing: dict[str, str] = {}
    try:
        with cloud.start([workload], list(cloud.STORAGES)) as aws:
            runs = ServerRuns(aws, workload, janitor)
            contenders = make_contenders(runs, chosen.peers, missing)
            contenders = warmed_up(contenders, max(8, chosen.requests // 10), missing)
            measured = {name: partial(run, chosen.requests) for name, run in contenders.items()}
            metrics = measure.interleave(measured, chosen.rounds, warm_up=0, label="peers")
    finally:
        janitor.close()
    versions = {name: PEERS[name].versions() for name in metrics if name in PEERS}
    entries = results(metrics, missing, versions)
    print(table(entries), *goals(entries), sep="\n")
    line = measure.result_line("peers", "as each name says", chosen.rounds, entries)
    measure.finish(line, chosen.save)


if __name__ == "__main__":
    main()
