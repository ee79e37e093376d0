"""A data plane in memory: the registry over a dictionary, blobs in a dictionary, a runtime that multiplies."""

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from functions.core.errors import InvalidModel, Unavailable
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.core.registry.load_plan import Plan
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Reason, Source, State, Version
from functions.core.serving.model_cache import ModelCache
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.infer.handler import Handler, make_handler
from tests.arrays import to_array, to_tensor
from tests.fakes import MemoryBlobs, MemoryTable

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3), labels=("a", "b", "c")),)
)


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class BrokenTable(MemoryTable):
    """A table that fails while `broken`."""

    broken = False

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Mapping[str, Any] | None]:
        if self.broken:
            raise Unavailable("the registry does not answer; try again")
        return super().get(keys)


class ScaleSession:
    """y = factor * x."""

    def __init__(self, factor: float, runtime: "ScaleRuntime") -> None:
        self.factor = factor
        self.runtime = runtime
        self.timeouts: list[float] = []

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Sequence[str], timeout_s: float
    ) -> dict[str, Tensor]:
        self.timeouts.append(timeout_s)
        self.runtime.runs.append(self.factor)
        if self.runtime.failure is not None:
            raise self.runtime.failure
        return dict.fromkeys(outputs, to_tensor(to_array(inputs["x"]) * np.float32(self.factor)))


class ScaleRuntime:
    """Loads files that hold a number. `gate`, when set, is waited for; `loads` are the numbers it loaded."""

    def __init__(self) -> None:
        self.loads: list[float] = []
        self.seen: list[list[str]] = []
        self.runs: list[float] = []
        self.plans: list[Plan | None] = []
        self.gate: threading.Event | None = None
        self.failure: BaseException | None = None  # of every run
        self.refusals: list[BaseException] = []  # of the next loads

    def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
        self.plans.append(plan)
        if self.gate is not None:
            self.gate.wait(10)
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
    """What Lambda hands over beside the event."""

    remaining_ms: int = 29_000
    aws_request_id: str = "lambda-id"

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


class DataPlane:
    """An environment of the infer function, and everything around it."""

    def __init__(
        self, directory: Path, *, seconds: float = 5.0, memory_bytes: int = 1 << 30
    ) -> None:
        self.table, self.blobs, self.runtime, self.clock = (
            BrokenTable(),
            MemoryBlobs(),
            ScaleRuntime(),
            Clock(),
        )
        self.directory = directory
        self.registry = Registry(
            self.table, lambda: "2026-11-22T08:00:00.000Z", pause=lambda _: None
        )
        self.resolver = Resolver(self.registry, seconds, self.clock, chance=lambda: 0.0)
        self.models = ModelCache(
            self.blobs, self.runtime, memory_bytes=memory_bytes, directory=directory
        )
        self.statistics = Statistics()
        self.service = InferenceService(self.registry, self.resolver, self.models, self.statistics)
        self.lines: list[dict[str, Any]] = []

    def register(
        self,
        model: str,
        factor: float | bytes = 2.0,
        signature: Signature = SIGNATURE,
        **record: Any,
    ) -> Version:
        """A READY version, as the register function leaves it."""
        content = factor if isinstance(factor, bytes) else str(factor).encode()
        claimed = self.claim(model)
        ready = {
            "state": State.READY,
            "files": (self.blobs.add("model.onnx", content),),
            "signature": signature,
        }
        return self.registry.finish(replace(claimed, **ready, **record))

    def claim(self, model: str) -> Version:
        """A PENDING version."""
        return self.registry.claim(
            model, Source("up", f"models/{model}/x.onnx", str(self.table.transactions))
        )

    def reject(self, model: str) -> Version:
        reason = Reason("NOT_ONNX", "the file is no ONNX model")
        return self.registry.finish(replace(self.claim(model), state=State.REJECTED, reason=reason))

    def handler(self, **options: Any) -> Handler:
        return make_handler(self.service, write=self._read, **options)

    def _read(self, text: str) -> None:
        assert text.endswith("\n")
        assert text.count("\n") == 1
        self.lines.append(json.loads(text))


@dataclass(frozen=True)
class Reply:
    """An answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Speaks to a handler as API Gateway does."""

    def __init__(self, handler: Callable[[Any, Any], dict[str, Any]]) -> None:
        self.handler = handler

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
        answer = self.handler(event, context or Context())
        json.dumps(answer)  # Lambda does
        return Reply(answer["statusCode"], answer["headers"], base64.b64decode(answer["body"]))

    def get(self, path: str, **more: Any) -> Reply:
        return self.send("GET", path, **more)

    def post(self, path: str, body: bytes | object = b"", **more: Any) -> Reply:
        return self.send("POST", path, body, **more)


def rows(*values: list[float], **more: Any) -> dict[str, Any]:
    """An infer request for the model that multiplies."""
    return {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [len(values), 3], "data": list(values)}
        ],
        **more,
    }
