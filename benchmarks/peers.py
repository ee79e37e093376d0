"""What does a prediction cost behind the usual model servers, and what behind our function?

    python -m benchmarks.peers [--rounds N] [--requests N] [--peers flask,fastapi,bentoml,mlserver,litserve] [--no-save]

The tiny perceptron, 784 floats as JSON, ten back. Each contender is started, asked until it answers, loaded by 1 client
and by 8, weighed and ended, once a round, in a rotating order, one at a time; a first, shorter round does not count.
  flask, fastapi, bentoml, mlserver, litserve
         children/peers/<name>/server.py, written as the quick start of each says, in an environment of its own with the
         same Python, onnxruntime and numpy: one worker, one thread of ONNX Runtime, the model a local file, its own
         defaults otherwise: logs, a connection a request for gunicorn, a second process for LitServe's worker. FastAPI
         has uvicorn's fast extras; MLServer's inference pool, a second process by default, is off. Asked over HTTP on
         loopback, connections kept where the server keeps them.
  ours   one process of the infer function under awslambdaric, AWS's runtime client, as deployed: events of API Gateway
         through our Runtime API (local/execution/runtime_api.py), the record from the registry (moto), the model from storage that
         answers after 15 ms and sends 90 MB/s ("s3-like"); "ours, unthrottled" starts from storage without that delay.
  empty  the same with children/empty.py for a handler, which answers at once: what the runtime client takes by itself.
  stack  the local stack as a user sees it: HTTP, our gateway, environments that start as they are needed.

cold start  from before the process is spawned to the first 200, in ms. The peers read a local file, ours fetches. For
            the stack: the first request while the function has no environment, everything else being up.
latency     in ms at 1 and at 8 clients, each with one request after the other, from a process of its own; for ours the
            time of our Runtime API, which is Lambda's on AWS, is in it.
CPU         user and system time of the server's processes over the requests, in µs, by the kernel's clocks of them. For
            ours that is the function's process, runtime client and log line included; the HTTP of its callers is API
            Gateway's work on AWS. For the stack it is everything: gateway, Runtime API, moto, environments.
memory      of the server's processes after the load, in 10⁶ bytes, shared pages once.

An environment of Lambda has one request at a time, so 8 clients of "ours" wait for each other; AWS, and the stack,
give them 8 environments, each as fast as at 1 client if it has a core. Not measured: TLS, the network, more workers,
batches. Telemetry is off for all; OPENBLAS_NUM_THREADS=1, which makes numpy start sooner, is set for the peers. An
answer that is not the reference's (within 1e-5), or no 200, ends the benchmark; a peer that cannot be started is listed
with the reason.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children.load import HOST, Connection
from benchmarks.cold_start import CHILDREN, spawn
from benchmarks.harness import cloud, measure, requests
from benchmarks.harness.measure import ROOT, TOLERANCE, Spread
from benchmarks.harness.models import Workload, workloads
from benchmarks.harness.usage import memory_mb
from local.client import start_stack
from local.execution import processes

CLIENTS = (1, 8)
OURS, UNTHROTTLED, EMPTY, STACK = "ours", "ours, unthrottled", "empty", "stack"
GOAL = ("fastapi", 0.5)  # CPU of ours over that peer's, at 1 client
AHEAD = {
    "cold_start_ms": "cold start",
    "cpu_us_1": "CPU",
    "memory_mb": "memory",
}  # in which ours shall be ahead of all
START_S, LOAD_S, POLL_S = 60.0, 120.0, 0.002
Metrics = dict[
    str, float
]  # cold_start_ms, memory_mb, and for 1 and 8 clients p50_ms_1, p99_ms_1, rps_1, cpu_us_1, …


@dataclass(frozen=True, slots=True)
class Peer:
    """How a server is started and asked; {port} and {folder} in `command` and `variables` are filled in."""

    name: str
    packages: tuple[str, ...]  # whose versions are recorded
    command: tuple[str, ...]  # the first word lies in its environment
    path: str = "/predict"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return CHILDREN / "peers" / self.name

    @property
    def environment(self) -> Path:
        return ROOT / f".venv-peer-{self.name}"

    def versions(self) -> str:
        """ "flask 3.1.3, gunicorn 27.0.1"."""
        [site] = self.environment.glob("lib/python3*/site-packages")
        found = {
            one.metadata["Name"].lower(): one.version
            for one in metadata.distributions(path=[str(site)])
        }
        return ", ".join(f"{name} {found[name]}" for name in self.packages)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "flask",
            ("flask", "gunicorn"),
            ("gunicorn", "--workers", "1", "--bind", f"{HOST}:{{port}}", "--chdir", "{folder}", "server:app"),
        ),
        Peer(
            "fastapi",
            ("fastapi", "uvicorn"),
            ("uvicorn", "--host", HOST, "--port", "{port}", "--app-dir", "{folder}", "server:app"),
        ),
        Peer(
            "bentoml",
            ("bentoml",),
            ("bentoml", "serve", "server:Predictor", "--working-dir", "{folder}", "--host", HOST, "--port", "{port}"),
            variables={"BENTOML_DO_NOT_TRACK": "true"},
        ),
        Peer(
            "mlserver",
            ("mlserver",),
            ("mlserver", "start", "{folder}"),
            path="/v2/models/tiny/infer",
            variables={
                "MLSERVER_HOST": HOST,
                "MLSERVER_HTTP_PORT": "{port}",
                "MLSERVER_GRPC_PORT": "{port1}",
                "MLSERVER_METRICS_PORT": "{port2}",
                "MLSERVER_PARALLEL_WORKERS": "0",
            },
        ),
        Peer("litserve", ("litserve",), ("python", "{folder}/server.py", "{port}")),
    )
}  # fmt: skip


class Trial:
    """What is measured with: the cloud, what is asked, and what has to be answered."""

    def __init__(self, where: cloud.Cloud, workload: Workload, janitor: processes.Janitor) -> None:
        self._cloud, self._workload, self._janitor = where, workload, janitor
        self._folder = where.folder / "peers"
        self._folder.mkdir()
        values = workload.values()
        event = requests.infer_event(workload)
        self._event = self._written("event.json", event)
        predict = self._written("predict.json", {"data": values.tolist()})
        infer = self._folder / "infer.json"
        infer.write_bytes(base64.b64decode(event["body"]))
        self._bodies = {"predict": predict, "infer": infer}
        raw = self._folder / "values"
        values.astype(np.float32).tofile(raw)
        shape = ",".join(map(str, values.shape))
        script = CHILDREN / "reference.py"
        _, answer = spawn(
            [script, where.model_path(workload), raw, shape], cloud.plain_environment, self._folder
        )
        self._expected = np.array(answer, np.float32).ravel()

    def peer(self, peer: Peer, count: int) -> Metrics:
        """One life of one peer, `count` requests a load."""
        with self._tmp() as tmp:
            port, port1, port2 = _ports(3)
            names = {"folder": peer.folder, "port": port, "port1": port1, "port2": port2}
            bin_folder = peer.environment / "bin"
            command = [
                str(bin_folder / peer.command[0]),
                *(word.format(**names) for word in peer.command[1:]),
            ]
            environment = cloud.plain_environment(tmp) | {
                "MODEL_PATH": str(self._cloud.model_path(self._workload)),
                "OPENBLAS_NUM_THREADS": "1",
                **{name: value.format(**names) for name, value in peer.variables.items()},
            }
            environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
            del environment["PYTHONPATH"]
            began = time.perf_counter()
            with self._serving(command, environment, tmp) as (process, said):
                cold, answer = self._first(process, said, port, peer.path, began)
                self._check(_prediction(answer), peer.name)
                loads = self._load(port, peer.path, process.pid, count)
                return {"cold_start_ms": cold, "memory_mb": memory_mb(process.pid), **loads}

    def ours(self, storage: str, count: int) -> Metrics:
        """One life of the function's process; without loads if `count` is 0."""
        done = self._function(
            self._cloud.template.functions[cloud.FUNCTION].handler, storage, count
        )
        self._check(requests.infer_prediction(done["answer"]).ravel(), OURS)
        if not count:
            return {"cold_start_ms": done["cold_start_ms"]}
        return {
            "cold_start_ms": done["cold_start_ms"],
            "memory_mb": done["memory_mb"],
            **_flat(done["loads"]),
        }

    def empty(self, count: int) -> Metrics:
        """One life of the runtime client around a handler that does nothing."""
        done = self._function("benchmarks.children.empty.lambda_handler", "unthrottled", count)
        return {
            "cold_start_ms": done["cold_start_ms"],
            "memory_mb": done["memory_mb"],
            **_flat(done["loads"]),
        }

    def stack(self, count: int) -> Metrics:
        """One life of the local stack, in which the model is uploaded and registered before anything is measured."""
        name = self._workload.name
        with self._tmp() as tmp, start_stack(state_dir=tmp) as stack:
            bucket = stack.outputs["ArtifactsBucketName"]
            body = self._cloud.model_path(self._workload).read_bytes()
            stack.client("s3").put_object(Bucket=bucket, Key=f"models/{name}/model.onnx", Body=body)
            port, _, stage = stack.api_url.rpartition(":")[2].partition("/")
            path = f"/{stage}/v2/models/{name}"
            _until_200(Connection(int(port), f"{path}/ready", None), 0.05, lambda: None)
            for function in ("RegisterFunction", "InferFunction"):
                stack.recycle(function)
            began = time.perf_counter()
            status, answer = self._connection(int(port), f"{path}/infer").ask()
            cold = (time.perf_counter() - began) * 1000
            if status != 200:
                raise RuntimeError(f"the stack answered {status}: {answer[:300]!r}")
            self._check(_prediction(answer), STACK)
            loads = self._load(int(port), f"{path}/infer", stack.pid, count)
            return {"cold_start_ms": cold, "memory_mb": memory_mb(stack.pid), **loads}

    @contextmanager
    def _tmp(self) -> Iterator[Path]:
        tmp = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)

    @contextmanager
    def _serving(
        self, command: Sequence[str], environment: Mapping[str, str], tmp: Path
    ) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """(process, the file of what it says); it ends with the block, and all its children with it."""
        said = tmp / "server.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=tmp, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._janitor.tell("add", process.pid)
        try:
            yield process, said
        finally:
            processes.end([process.pid])
            process.wait(timeout=10)
            self._janitor.tell("remove", process.pid)

    def _first(
        self, process: "subprocess.Popen[bytes]", said: Path, port: int, path: str, began: float
    ) -> tuple[float, bytes]:
        """(ms since `began`, body) of the first 200."""

        def alive() -> None:
            if process.poll() is not None:
                last = said.read_text(errors="replace").strip()[-500:]
                raise RuntimeError(f"ended with {process.returncode}: {last}")

        answer = _until_200(self._connection(port, path), POLL_S, alive)
        return (time.perf_counter() - began) * 1000, answer

    def _connection(self, port: int, path: str) -> Connection:
        return Connection(port, path, self._body(path).read_bytes())

    def _body(self, path: str) -> Path:
        return self._bodies[path.rpartition("/")[2]]

    def _function(self, handler: str, storage: str, count: int) -> Any:
        with self._tmp() as tmp:
            plan = {
                "handler": handler,
                "registry_url": self._cloud.registry_url,
                "storage_url": self._cloud.storage_urls[storage],
                "event": str(self._event),
                "folder": str(tmp),
                "loads": [{"clients": clients, "requests": count} for clients in CLIENTS if count],
            }
            return self._child("function.py", self._written("plan.json", plan))

    def _load(self, port: int, path: str, pid: int, count: int) -> Metrics:
        loads = [{"clients": clients, "requests": count} for clients in CLIENTS]
        plan = {
            "port": port,
            "path": path,
            "body": str(self._body(path)),
            "pid": pid,
            "loads": loads,
        }
        return _flat(self._child("load.py", self._written("load.json", plan)))

    def _child(self, script: str, plan: Path) -> Any:
        """What a script of ours printed.

        Raises:
            RuntimeError: it failed, and how.
        """
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(CHILDREN / script), str(plan)], cwd=self._folder, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=LOAD_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return json.loads(done.stdout)

    def _written(self, name: str, document: object) -> Path:
        path = self._folder / name
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def _check(self, prediction: np.ndarray, who: str) -> None:
        right = prediction.shape == self._expected.shape
        if not right or not np.allclose(prediction, self._expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise SystemExit(f"{who} answered something else than the model: {prediction[:10]}")


def _until_200(connection: Connection, pause_s: float, alive: Callable[[], None]) -> bytes:
    """The body of the first 200.

    Raises:
        RuntimeError: none came in time, or what `alive` raises.
    """
    deadline, last = time.perf_counter() + START_S, "nobody listens"
    while time.perf_counter() < deadline:
        try:
            status, body = connection.ask()
            if status == 200:
                return body
            last = f"{status} {body[:200]!r}"
        except OSError as error:
            last = str(error)
        alive()
        time.sleep(pause_s)
    raise RuntimeError(f"no answer within {START_S:.0f} s: {last}")


def _ports(count: int) -> list[int]:
    """Free ones, each another."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


def _prediction(body: bytes) -> np.ndarray:
    """The ten numbers in any of the answers, flat.

    >>> _prediction(b'[[1, 2]]').tolist()
    [1.0, 2.0]
    """
    answer = json.loads(body)
    if isinstance(answer, dict):
        answer = answer["prediction"] if "prediction" in answer else answer["outputs"][0]["data"]
    return np.array(answer, np.float32).ravel()


def _flat(loads: Sequence[Mapping[str, float]]) -> Metrics:
    """
    >>> _flat([{"clients": 8, "rps": 100.0}])
    {'rps_8': 100.0}
    """
    return {
        f"{name}_{one['clients']}": value
        for one in loads
        for name, value in one.items()
        if name != "clients"
    }


def results(
    taken: Mapping[str, Sequence[Metrics]], missing: Mapping[str, str], versions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry a contender, for a peer with the ratios of ours to it in the same round; for the missing the reason."""
    found: list[dict[str, Any]] = []
    for name, rounds in taken.items():
        entry: dict[str, Any] = {"contender": name, "n": len(rounds)}
        if name in versions:
            entry["versions"] = versions[name]
        for metric in rounds[0]:
            entry[metric] = Spread.of(_each(rounds, metric), 2).to_record()
        if name in PEERS and OURS in taken:
            entry["ours_over"] = {
                metric: measure.ratios(
                    _each(taken[OURS], metric), _each(rounds, metric)
                ).to_record()
                for metric in (*AHEAD, "cpu_us_8")
            }
        found.append(entry)
    return found + [{"contender": name, "missing": reason} for name, reason in missing.items()]


def _each(rounds: Sequence[Metrics], metric: str) -> list[float]:
    return [one[metric] for one in rounds]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The ratios are ours over the peer, in CPU at 1 client."""
    columns = [("cold ms", "cold_start_ms", 0)]
    for clients in CLIENTS:
        columns += [(f"p50/{clients}", f"p50_ms_{clients}", 2), ("p99", f"p99_ms_{clients}", 2)]
        columns += [("req/s", f"rps_{clients}", 0), ("CPU µs", f"cpu_us_{clients}", 0)]
    columns.append(("MB", "memory_mb", 0))
    rows: list[Sequence[str]] = [
        ("contender", "n", *(title for title, _, _ in columns), "ours/CPU", "p90")
    ]
    for entry in found:
        if "missing" in entry:
            continue
        cells = [
            f"{entry[name]['median']:.{digits}f}" if name in entry else ""
            for _, name, digits in columns
        ]
        over = entry["ours_over"]["cpu_us_1"] if "ours_over" in entry else {}
        ratio = [f"{over[part]:.2f}" if over else "" for part in ("median", "p90")]
        rows.append((entry["contender"], str(entry["n"]), *cells, *ratio))
    reasons = [
        f"{entry['contender']} was not measured: {entry['missing']}"
        for entry in found
        if "missing" in entry
    ]
    return "\n".join([measure.table(rows), *reasons])


def goals(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is asked of ours, and whether it is so."""
    by_name = {entry["contender"]: entry for entry in found}
    over = {name: entry["ours_over"] for name, entry in by_name.items() if "ours_over" in entry}
    lines = []
    peer, limit = GOAL
    if peer in over:
        ratio = over[peer]["cpu_us_1"]["median"]
        lines.append(
            f"CPU over {peer}'s: {ratio:.2f}, goal {limit}: {'met' if ratio <= limit else 'missed'}"
        )
    if EMPTY in by_name and OURS in by_name:
        client, all_of_it = (by_name[name]["cpu_us_1"]["median"] for name in (EMPTY, OURS))
        lines.append(f"of our CPU, {client:.0f} µs of {all_of_it:.0f} are the runtime client's")
    for metric, what in AHEAD.items() if over else ():
        medians = {name: ratios[metric]["median"] for name, ratios in over.items()}
        behind = [f"{name} ({median:.2f})" for name, median in medians.items() if median >= 1]
        lines.append(
            f"{what}: "
            + (f"behind {', '.join(behind)}" if behind else f"ahead of {', '.join(over)}")
        )
    return lines


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0]
    )
    measure.add_arguments(parser, rounds=5)
    parser.add_argument(
        "--requests", type=measure.count, default=1000, help="of a load; default: 1000"
    )
    parser.add_argument("--peers", type=measure.one_of(PEERS), default=list(PEERS))
    return parser.parse_args(words)


def startable(
    contenders: Mapping[str, Callable[[int], Metrics]], count: int, missing: dict[str, str]
) -> dict[str, Callable[[int], Metrics]]:
    """Those that live through a short round, which also compiles their byte code; of a peer that does not, the reason
    goes to `missing`.

    Raises:
        RuntimeError: it is ours that fails.
    """
    found = {}
    for name, contender in contenders.items():
        measure.progress(f"peers: warm-up, {name}")
        try:
            contender(count)
            found[name] = contender
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            if name not in PEERS:
                raise
            missing[name] = str(error)
    return found


def main() -> None:
    wanted = arguments()
    workload = workloads()["tiny"]
    janitor = processes.Janitor()
    missing = {}
    try:
        with cloud.start([workload], list(cloud.STORAGES)) as where:
            trial = Trial(where, workload, janitor)
            contenders: dict[str, Callable[[int], Metrics]] = {OURS: partial(trial.ours, "s3-like")}
            for name in wanted.peers:
                if (PEERS[name].environment / "bin").is_dir():
                    contenders[name] = partial(trial.peer, PEERS[name])
                else:
                    missing[name] = f"no environment, run `make .venv-peer-{name}/.done`"
            contenders[UNTHROTTLED] = lambda _: trial.ours("unthrottled", 0)
            contenders[EMPTY] = trial.empty
            contenders[STACK] = trial.stack
            contenders = startable(contenders, max(8, wanted.requests // 10), missing)
            measured = {
                name: partial(contender, wanted.requests) for name, contender in contenders.items()
            }
            taken = measure.interleave(measured, wanted.rounds, warm_up=0, what="peers")
    finally:
        janitor.close()
    found = results(
        taken, missing, {name: PEERS[name].versions() for name in taken if name in PEERS}
    )
    print(table(found), *goals(found), sep="\n")
    measure.finish(
        measure.result_line("peers", "as each name says", wanted.rounds, found), wanted.save
    )


if __name__ == "__main__":
    main()
