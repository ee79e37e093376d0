"""Measured runs of model servers: cold start, latency, CPU and memory."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children.load import HOST, Connection
from benchmarks.harness import cloud, requests
from benchmarks.harness.child import CHILDREN, spawn, write_json
from benchmarks.harness.measure import ROOT
from benchmarks.harness.models import Workload
from benchmarks.harness.peer_servers import Peer
from benchmarks.harness.usage import memory_mb
from local.client import start_stack
from local.execution import processes

CLIENTS = (1, 8)
START_S = 60.0  # time limit for the first prediction
LOAD_S = 120.0  # time limit for all loads of one server
POLL_S, STACK_POLL_S = 0.002, 0.05
EMPTY_HANDLER = "benchmarks.children.empty.lambda_handler"
MAYFLY, AWS = "mayfly", "aws"  # runtime clients, as the function's variable names them
# Keys: cold_start_ms, memory_mb; for each number of clients, p50_ms_1, p99_ms_1, rps_1, cpu_us_1
Metrics = dict[str, float]


class ServerRuns:
    """Measured runs of peers, function and local stack with one model.

    All predictions are checked.
    """

    def __init__(self, aws: cloud.Cloud, workload: Workload, janitor: processes.Janitor) -> None:
        self._aws, self._workload, self._janitor = aws, workload, janitor
        self._folder = aws.folder / "peers"
        self._folder.mkdir()
        self._model = aws.model_path(workload)
        event = requests.infer_event(workload, key=aws.key)
        self._event = write_json(self._folder / "event.json", event)
        infer = self._folder / "infer.json"
        infer.write_bytes(base64.b64decode(event["body"]))
        predict = self._folder / "predict.json"
        write_json(predict, {"data": workload.values().tolist()})
        self._bodies = {"predict": predict, "infer": infer}
        self._expected = self._reference()

    def _reference(self) -> np.ndarray:
        values = self._workload.write_values(self._folder / "values")
        shape = ",".join(map(str, (1, *self._workload.shape)))
        command: list[str | Path] = [CHILDREN / "reference.py", self._model, values, shape]
        _, answer = spawn(command, cloud.plain_environment, self._folder)
        return np.array(answer, np.float32).ravel()

    def peer(self, peer: Peer, count: int) -> Metrics:
        """Run and measure a peer server, with `count` requests per load."""
        with self._tmp() as tmp:
            port, port1, port2 = _free_ports(3)
            names = {"folder": peer.folder, "port": port, "port1": port1, "port2": port2}
            program = str(peer.environment / "bin" / peer.command[0])
            command = [program, *(word.format(**names) for word in peer.command[1:])]
            environment = self._peer_environment(peer, names, tmp)
            started = time.perf_counter()
            with self._serving(command, environment, tmp) as process:
                body = self._first_body(process, tmp, port, peer.path)
                cold_start_ms = (time.perf_counter() - started) * 1000
                self._check(parse_prediction(body), peer.name)
                loads = self._load(port, peer.path, process.pid, count)
                used_mb = memory_mb(process.pid)
                return {"cold_start_ms": cold_start_ms, "memory_mb": used_mb, **loads}

    def _peer_environment(
        self, peer: Peer, names: Mapping[str, object], tmp: Path
    ) -> dict[str, str]:
        environment = cloud.plain_environment(tmp) | {
            "MODEL_PATH": str(self._model),
            "OPENBLAS_NUM_THREADS": "1",
            **{name: value.format(**names) for name, value in peer.variables.items()},
        }
        environment["PATH"] = f"{peer.environment / 'bin'}:{environment['PATH']}"
        del environment["PYTHONPATH"]
        return environment

    def function(self, storage: str, client: str, count: int) -> Metrics:
        """Run and measure the infer function; with `count` 0, only cold start.

        `client` is the runtime client, MAYFLY or AWS.
        """
        handler = self._aws.template.functions[cloud.FUNCTION].handler
        measured = self._run_function(handler, storage, client, count)
        self._check(requests.infer_prediction(measured["answer"]).ravel(), "the function")
        if not count:
            return {"cold_start_ms": measured["cold_start_ms"]}
        return _function_metrics(measured)

    def empty(self, client: str, count: int) -> Metrics:
        """Measure a runtime client around a handler that does nothing."""
        return _function_metrics(self._run_function(EMPTY_HANDLER, "unthrottled", client, count))

    def stack(self, count: int) -> Metrics:
        """Run and measure the local stack, after registering the model."""
        name = self._workload.name
        parameters = {"Auth": "none"}  # as the peers
        with self._tmp() as tmp, start_stack(parameters=parameters, state_dir=tmp) as stack:
            key = f"models/{name}/model.onnx"
            bucket = stack.outputs["ArtifactsBucketName"]
            stack.client("s3").put_object(Bucket=bucket, Key=key, Body=self._model.read_bytes())
            address, _, stage = stack.api_url.rpartition(":")[2].partition("/")
            port, path = int(address), f"/{stage}/v2/models/{name}"
            _poll(Connection(port, f"{path}/ready", None), STACK_POLL_S, check=lambda: None)
            for function in ("RegisterFunction", "InferFunction"):
                stack.recycle(function)
            started = time.perf_counter()
            status, body = self._connection(port, f"{path}/infer").ask()
            cold_start_ms = (time.perf_counter() - started) * 1000
            if status != 200:
                raise RuntimeError(f"the stack answered {status}: {body[:300]!r}")
            self._check(parse_prediction(body), "the stack")
            loads = self._load(port, f"{path}/infer", stack.pid, count)
            used_mb = memory_mb(stack.pid)
            return {"cold_start_ms": cold_start_ms, "memory_mb": used_mb, **loads}

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
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a server process during the block, then end all descendants.

        Its output is in server.log.
        """
        with (tmp / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=tmp,
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._janitor.tell("add", process.pid)
        try:
            yield process
        finally:
            processes.end([process.pid])
            process.wait(timeout=10)
            self._janitor.tell("remove", process.pid)

    def _first_body(
        self, process: "subprocess.Popen[bytes]", tmp: Path, port: int, path: str
    ) -> bytes:
        """Poll a started server until its first prediction; return the body."""

        def check() -> None:
            if process.poll() is not None:
                output = (tmp / "server.log").read_text(errors="replace").strip()[-500:]
                raise RuntimeError(f"ended with {process.returncode}: {output}")

        return _poll(self._connection(port, path), POLL_S, check)

    def _connection(self, port: int, path: str) -> Connection:
        return Connection(port, path, self._body(path).read_bytes())

    def _body(self, path: str) -> Path:
        return self._bodies[path.rpartition("/")[2]]

    def _run_function(self, handler: str, storage: str, client: str, count: int) -> Any:
        with self._tmp() as tmp:
            plan = {
                "handler": handler,
                "variables": self._function_variables(handler, storage, client, tmp),
                "event": self._event,
                "folder": str(tmp),
                "loads": _loads(count) if count else [],
            }
            return self._child("function.py", write_json(self._folder / "plan.json", plan))

    def _function_variables(
        self, handler: str, storage: str, client: str, tmp: Path
    ) -> dict[str, str]:
        return self._aws.lambda_environment(storage, tmp, self._aws.variables) | {
            "_HANDLER": handler,
            "RUNTIME_CLIENT": client,
            # The interpreter may be started without its own site-packages.
            "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
        }

    def _load(self, port: int, path: str, pid: int, count: int) -> Metrics:
        plan = {
            "port": port,
            "path": path,
            "body": str(self._body(path)),
            "pid": pid,
            "loads": _loads(count),
        }
        return flatten(self._child("load.py", write_json(self._folder / "load.json", plan)))

    def _child(self, script: str, plan: str) -> Any:
        """Run a script of benchmarks/children; return the JSON that it prints.

        Raises:
            RuntimeError: the script failed; the message has the end of its stderr.
        """
        done = subprocess.run(
            [sys.executable, str(CHILDREN / script), plan],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOAD_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{script}: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return json.loads(done.stdout)

    def _check(self, prediction: np.ndarray, server: str) -> None:
        requests.check_prediction(f"{server} answered", prediction, self._expected)


def _loads(count: int) -> list[dict[str, int]]:
    return [{"clients": clients, "requests": count} for clients in CLIENTS]


def _function_metrics(measured: Mapping[str, Any]) -> Metrics:
    return {
        "cold_start_ms": measured["cold_start_ms"],
        "memory_mb": measured["memory_mb"],
        **flatten(measured["loads"]),
    }


def _poll(connection: Connection, pause_s: float, check: Callable[[], None]) -> bytes:
    """Repeat an HTTP request until status 200; return the reply's body.

    Raises:
        RuntimeError: there was no 200 within START_S, or `check`, called after each attempt,
        raised.
    """
    deadline, failure = time.perf_counter() + START_S, "nobody listens"
    while time.perf_counter() < deadline:
        try:
            status, body = connection.ask()
            if status == 200:
                return body
            failure = f"{status} {body[:200]!r}"
        except OSError as error:
            failure = str(error)
        check()
        time.sleep(pause_s)
    raise RuntimeError(f"no answer within {START_S:.0f} s: {failure}")


def _free_ports(count: int) -> list[int]:
    """Return `count` distinct free TCP ports."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def parse_prediction(body: bytes) -> np.ndarray:
    """Parse any server's JSON reply into a flat array of predictions.

    >>> parse_prediction(b'[[1, 2]]').tolist()
    [1.0, 2.0]
    """
    answer = json.loads(body)
    if isinstance(answer, dict):
        answer = answer["prediction"] if "prediction" in answer else answer["outputs"][0]["data"]
    return np.array(answer, np.float32).ravel()


def flatten(summaries: Sequence[Mapping[str, float]]) -> Metrics:
    """Merge load summaries into one dictionary, names suffixed by client count.

    >>> flatten([{"clients": 8, "rps": 100.0}])
    {'rps_8': 100.0}
    """
    return {
        f"{name}_{summary['clients']}": value
        for summary in summaries
        for name, value in summary.items()
        if name != "clients"
    }
