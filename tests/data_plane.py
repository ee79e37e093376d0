"""Infer function in memory: fake table, fake blobs, and a runtime that multiplies."""

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from functions.adapters.clock import iso
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.grants import Scope
from functions.core.access.key_store import KeyStore
from functions.core.errors import InvalidModel, PlatformError, Unavailable
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.core.registry.load_plan import Plan
from functions.core.registry.registry import Registry
from functions.core.registry.releases import Releases
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Reason, Source, State, Version
from functions.core.serving.model_cache import ModelCache
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.core.usage.meter import Meter
from functions.infer.exchange import Exchange
from functions.infer.handler import InferHandler
from functions.infer.shadow import run_copy
from tests.arrays import to_array, to_tensor
from tests.fakes import MemoryBlobs, MemoryTable

EPOCH_S = 1_795_334_330.0
NOW = "2026-11-22T08:00:00.000Z"
KEY_SECONDS = 60.0  # lifetime of a cached key
PATIENCE_S = 60.0  # for another thread; only a broken test waits so long
SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3), labels=("a", "b", "c")),)
)
PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


def join_loads() -> None:
    """Wait until every load in the background has ended."""
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


class Clock:
    """Clock that moves only when a test sets `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class BrokenTable(MemoryTable):
    """Table whose reads fail while `broken`."""

    broken = False

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Mapping[str, Any] | None]:
        if self.broken:
            raise Unavailable("the registry does not answer; try again")
        return super().get(keys)


class ScaleSession:
    """Session of y = factor * x; keeps the timeouts of its runs."""

    def __init__(self, factor: float, runtime: "ScaleRuntime") -> None:
        self.factor = factor
        self.runtime = runtime
        self.timeouts: list[float] = []

    def run(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        timeout_s: float,
        reply_bytes_max: int | None = None,  # its outputs are small
    ) -> dict[str, Tensor]:
        self.timeouts.append(timeout_s)
        self.runtime.runs.append(self.factor)
        if self.runtime.failure is not None:
            raise self.runtime.failure
        return dict.fromkeys(outputs, to_tensor(to_array(inputs["x"]) * np.float32(self.factor)))


class ScaleRuntime:
    """Runtime whose model files hold a number, the factor.

    A load waits for `gate`, if set. Records loads, runs, plans and the files in the folder.
    """

    def __init__(self) -> None:
        self.loads: list[float] = []
        self.seen: list[list[str]] = []
        self.runs: list[float] = []
        self.plans: list[Plan | None] = []
        self.gate: threading.Event | None = None
        self.failure: BaseException | None = None  # raised by every run
        self.refusals: list[BaseException] = []  # raised by the next loads, one each

    def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
        self.plans.append(plan)
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        self.seen.append(sorted(file.name for file in path.parent.iterdir()))
        if self.refusals:
            raise self.refusals.pop(0)
        try:
            factor = float(path.read_bytes().split()[0])
        except ValueError:
            raise InvalidModel("no number", code="NOT_LOADABLE") from None
        self.loads.append(factor)
        return ScaleSession(factor, self)


@dataclass
class Context:
    """Lambda context of an invocation."""

    remaining_ms: int = 29_000
    aws_request_id: str = "lambda-id"

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


class LaterContext(Context):
    """Context of our runtime client, which runs tasks once the reply is posted."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Callable[[], object]] = []

    def after(self, task: Callable[[], object]) -> None:
        self.tasks.append(task)

    def post(self) -> None:
        for task in self.tasks:
            task()


class DataPlane:
    """Execution environment of the infer function, with the services it calls."""

    def __init__(
        self, directory: Path, *, seconds: float = 5.0, memory_bytes: int = 1 << 30
    ) -> None:
        self.warnings: list[str] = []
        self.table, self.blobs = BrokenTable(), MemoryBlobs()
        self.runtime, self.clock = ScaleRuntime(), Clock()
        self.directory = directory
        self.registry = Registry(self.table, lambda: NOW, pause=lambda _: None)
        self.releases = Releases(self.table, lambda: NOW, pause=lambda _: None)
        self.resolver = Resolver(self.registry, seconds, self.clock, chance=lambda: 0.0)
        self.gate = Gate(
            partial(read_grant, self.table), KEY_SECONDS, self.clock, self.unix_s, lambda: 0.0
        )
        self.keys = KeyStore(self.table, lambda: iso(int(self.unix_s() * 1000)))
        self.models = ModelCache(
            self.blobs, self.runtime, memory_bytes=memory_bytes, directory=directory
        )
        self.meter = Meter(
            self.table,
            clock=self.clock,
            now=self.unix_s,
            chance=lambda: 0.0,
            warn=self.warnings.append,
        )
        self.statistics = Statistics(self.table, self.meter)
        self.service = InferenceService(self.registry, self.resolver, self.models, self.statistics)
        self.lines: list[dict[str, Any]] = []

    def register(
        self,
        model: str,
        factor: float | bytes = 2.0,
        signature: Signature = SIGNATURE,
        **record: Any,
    ) -> Version:
        """Record a READY version, as the register function does."""
        content = factor if isinstance(factor, bytes) else str(factor).encode()
        claimed = self.claim(model)
        ready = {
            "state": State.READY,
            "files": (self.blobs.add("model.onnx", content),),
            "signature": signature,
        }
        return self.registry.finish(replace(claimed, **ready, **record))

    def register_with_sample(self, model: str, factor: float = 2.0, sample: Any = None) -> Version:
        """Record a READY version whose plan asks for a warm-up with its sample."""
        content = json.dumps(sample or {"request": rows([1.0, 2.0, 3.0])}).encode()
        return self.register(
            model, factor, plan=PLAN, sample=self.blobs.add("sample.json", content)
        )

    def unix_s(self) -> float:
        """Return the time of day, which moves with `clock`."""
        return EPOCH_S + self.clock.now

    def create_key(self, *scopes: Scope, models: Sequence[str] = ("*",), **fields: Any) -> str:
        """Create an access key and return its text."""
        fields = {"actor": "anna", **fields}
        return self.keys.create("test", scopes=scopes, models=models, **fields)[1]

    def claim(self, model: str) -> Version:
        """Record a PENDING version."""
        return self.registry.claim(
            model, Source("up", f"models/{model}/x.onnx", str(self.table.transactions))
        )

    def reject(self, model: str) -> Version:
        """Record a REJECTED version."""
        reason = Reason("NOT_ONNX", "the file is no ONNX model")
        return self.registry.finish(replace(self.claim(model), state=State.REJECTED, reason=reason))

    def handler(self, **options: Any) -> InferHandler:
        """Return a handler that writes its log to `lines`."""
        options = {"meter": self.meter, "run_copy": self.run_copy, "write": self._read, **options}
        return InferHandler(self.service, **options)

    def run_copy(self, exchange: Exchange, context: Any) -> bool:
        return run_copy(exchange, context, self.models, self.meter.count_shadow)

    def _read(self, text: bytes) -> None:
        assert text.endswith(b"\n")
        assert text.count(b"\n") == 1
        self.lines.append(json.loads(text))


class ClockedPlane(DataPlane):
    """Data plane whose `models`, apart from the service's, run on a fake clock."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory)
        self.cache_clock = Clock()
        options = {"memory_bytes": 1 << 30, **options}
        self.models = ModelCache(
            self.blobs, self.runtime, directory=directory, clock=self.cache_clock, **options
        )

    def infer(self, version: Version, seconds: float = 60.0) -> float:
        """Load the version within `seconds`, as a request does, and return its factor."""
        with self.models.session(version, self.cache_clock.now + seconds) as session:
            return session.factor  # type: ignore[attr-defined, no-any-return]

    def register_with_weights(self, factor: float, graph: int = 10, weights: int = 1000) -> Version:
        """Record a version with a second file, of `weights` bytes, which the runtime maps."""
        text = f"{factor} "
        files = (
            self.blobs.add("model.onnx", text.ljust(graph).encode()),
            self.blobs.add("weights.bin", text.ljust(weights).encode()),
        )
        return replace(self.register("wide", factor), files=files)

    def refusal(self, version: Version) -> PlatformError:
        """Return the error of a request that must fail."""
        try:
            self.infer(version)
        except PlatformError as error:
            return error
        raise AssertionError(f"version {version.number} of {version.model} was served")


@dataclass(frozen=True)
class Reply:
    """HTTP reply as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """HTTP client that calls a handler with API Gateway events: dicts, or bytes."""

    def __init__(self, handler: Callable[[Any, Any], Any], *, in_bytes: bool = False) -> None:
        self.handler = handler
        self.in_bytes = in_bytes

    def send(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        context: Any = None,
    ) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        event = {
            "httpMethod": method,
            "path": path,
            "headers": dict(headers or {}),
            "queryStringParameters": dict(query) if query else None,
            "requestContext": {"requestId": "the-request"},
            "body": base64.b64encode(raw).decode() if raw else None,
            "isBase64Encoded": bool(raw),
        }
        return self.deliver(event, context)

    def deliver(self, event: Mapping[str, Any], context: Any = None) -> Reply:
        if self.in_bytes:
            raw = self.handler(json.dumps(event).encode(), context or Context())
        else:
            raw = json.dumps(self.handler(event, context or Context()))  # Lambda serialises it
        response = json.loads(raw)
        return Reply(response["statusCode"], response["headers"], reply_body(response))

    def get(self, path: str, **more: Any) -> Reply:
        return self.send("GET", path, **more)

    def post(self, path: str, body: bytes | object = b"", **more: Any) -> Reply:
        return self.send("POST", path, body, **more)


def reply_body(response: Mapping[str, Any]) -> bytes:
    """Return the body of a reply in API Gateway's format, as the caller gets it."""
    text: str = response["body"]
    return base64.b64decode(text, validate=True) if response["isBase64Encoded"] else text.encode()


def rows(*values: list[float], **more: Any) -> dict[str, Any]:
    """Return the body of an infer request with rows of three values."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), 3], "data": list(values)}
    return {"inputs": [tensor], **more}
