"""Prefetching for the first event, while the handler is imported."""

import base64
import json
import threading
import time
from typing import Any

import pytest

from functions.core.access.gate import Gate
from functions.core.access.grants import Grant, Scope
from functions.core.access.keys import new_id, new_key
from functions.core.errors import ModelNotFound
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import PATIENCE_S

INFER = {"httpMethod": "POST", "path": "/prod/v2/models/digits/versions/latest/infer"}


class Prefetching:
    """Prefetching handler whose import ends after the first resolution; records its calls.

    It is the resolver and the model cache, too.
    """

    def __init__(self, error: Exception | None = None, gate: Gate | None = None) -> None:
        self.importable = threading.Event()
        self.error = error
        self.resolved: list[tuple[str, Any]] = []
        self.loads: list[str] = []
        self.arrivals: list[int | None] = []
        self.events: list[Any] = []
        self.handler = PrefetchingHandler(self.make, self, self, gate)  # type: ignore[arg-type]

    def make(self) -> Any:
        assert self.importable.wait(PATIENCE_S)

        def handler(event: Any, context: Any, began_ns: int | None = None) -> dict[str, Any]:
            self.arrivals.append(began_ns)
            self.events.append(event)
            return {"statusCode": 200}

        return handler

    def resolve(self, model: str, reference: Any) -> Any:
        self.resolved.append((model, reference))
        self.importable.set()
        if self.error:
            raise self.error
        return type("Resolved", (), {"version": "the version"})

    def start_loading(self, version: str) -> None:
        self.loads.append(version)


def test_the_first_model_is_loaded_before_the_handler_is_imported() -> None:
    prefetching = Prefetching()
    before = time.perf_counter_ns()

    assert prefetching.handler(INFER, None) == {"statusCode": 200}
    assert prefetching.handler(INFER, None) == {"statusCode": 200}

    assert prefetching.resolved == [("digits", "latest")]
    assert prefetching.loads == ["the version"]
    first, second = prefetching.arrivals
    assert first is not None
    assert before <= first <= time.perf_counter_ns()  # so its wait counts in its latency
    assert second is None


def test_only_the_first_event_of_an_imported_handler_is_prefetched() -> None:
    prefetching = Prefetching()
    prefetching.importable.set()
    prefetching.handler.wait()

    for _ in range(3):
        assert prefetching.handler(INFER, None) == {"statusCode": 200}
    assert prefetching.loads == ["the version"]


@pytest.mark.parametrize(
    ("event", "reference"),
    [
        ({"path": "/v2/models/digits/infer", "headers": {"X-Model-Version": "3"}}, 3),
        (
            {"rawPath": "/v2/models/digits/infer", "queryStringParameters": {"version": "prod"}},
            "prod",
        ),
        ({"path": "/v2/models/digits/infer", "headers": None, "queryStringParameters": None}, None),
    ],
)
def test_the_version_is_read_as_the_handler_reads_it(event: dict[str, Any], reference: Any) -> None:
    prefetching = Prefetching()

    prefetching.handler(event, None)

    assert prefetching.resolved == [("digits", reference)]


def test_an_event_in_bytes_is_prefetched_and_passed_on_as_bytes() -> None:
    prefetching = Prefetching()
    body = base64.b64encode(b"x" * 100_000).decode()
    raw = json.dumps(INFER | {"body": body, "isBase64Encoded": True}).encode()

    prefetching.handler(raw, None)

    assert prefetching.resolved == [("digits", "latest")]
    assert prefetching.events == [raw]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_event_are_left_to_the_handler(raw: bytes) -> None:
    prefetching = Prefetching()
    prefetching.importable.set()

    assert prefetching.handler(raw, None) == {"statusCode": 200}
    assert prefetching.resolved == []


@pytest.mark.parametrize(
    "error", [ModelNotFound("no such model"), RuntimeError("access is denied")]
)
def test_the_handler_answers_although_prefetching_failed(error: Exception) -> None:
    prefetching = Prefetching(error)

    assert prefetching.handler(INFER, None) == {"statusCode": 200}
    assert prefetching.loads == []


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"path": "/v2/models/digits/ready"},
        {"path": "/v2/models/NO NAME/infer"},
        {"path": "/v2/models/digits/versions/-1/infer"},
        {"path": "/v2/models/digits/infer", "headers": ["no", "mapping"]},
    ],
)
def test_nothing_is_prefetched_unless_the_event_is_an_inference(event: dict[str, Any]) -> None:
    prefetching = Prefetching()
    prefetching.importable.set()

    assert prefetching.handler(event, None) == {"statusCode": 200}
    assert prefetching.resolved == []


def test_an_import_error_is_raised_for_every_event() -> None:
    def broken() -> Any:
        raise LookupError("a variable is missing")

    handler = PrefetchingHandler(broken, None, None)  # type: ignore[arg-type]

    for _ in range(2):
        with pytest.raises(LookupError, match="a variable is missing"):
            handler({}, None)


class Door:
    """Reads of one key's permissions, which wait until the model is being resolved."""

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant
        self.reads = 0
        self.resolving = threading.Event()

    def __call__(self, key_id: str, sha256: str) -> Grant | None:
        self.reads += 1
        assert self.resolving.wait(PATIENCE_S)
        return self.grant


def prefetch_with_key(door: Door, **headers: str) -> Prefetching:
    """Send a first request; the key is read while the model is resolved."""
    prefetching = Prefetching(gate=Gate(door, 60.0, time.monotonic))
    resolve = prefetching.resolve

    def resolve_and_open(model: str, reference: Any) -> Any:
        door.resolving.set()
        return resolve(model, reference)

    prefetching.resolve = resolve_and_open  # type: ignore[method-assign]
    if not headers:
        prefetching.importable.set()
    prefetching.handler({**INFER, "headers": headers}, None)
    return prefetching


def test_the_key_is_read_while_the_model_is_resolved() -> None:
    door = Door(Grant("a", frozenset({Scope.INFER}), ("digits",)))
    prefetching = prefetch_with_key(door, Authorization=f"Bearer {new_key(new_id())}")

    assert prefetching.loads == ["the version"]
    assert door.reads == 1


@pytest.mark.parametrize(
    "grant",
    [
        None,
        Grant("a", frozenset({Scope.READ}), ("*",)),
        Grant("a", frozenset({Scope.INFER}), ("faces",)),
        Grant("a", frozenset({Scope.INFER}), ("*",), valid_until=1),
    ],
)
def test_nothing_is_loaded_for_a_key_that_may_not_infer(grant: Grant | None) -> None:
    prefetching = prefetch_with_key(Door(grant), **{"x-api-key": new_key(new_id())})

    assert prefetching.loads == []
    assert prefetching.arrivals


def test_nothing_is_read_without_a_key() -> None:
    door = Door(None)
    prefetching = prefetch_with_key(door)

    assert (prefetching.resolved, prefetching.loads, door.reads) == ([], [], 0)
    assert prefetching.arrivals
