"""Prefetching for the first event, while the handler is imported."""

import base64
import json
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from functions.adapters.clock import utc_now
from functions.adapters.dynamodb_table import ItemTable, marshal
from functions.core.access.gate import Gate
from functions.core.access.grant_items import read_grant
from functions.core.access.grants import Grant, Scope
from functions.core.access.keys import new_id, new_key
from functions.core.errors import ModelNotFound
from functions.core.registry.registry import Registry
from functions.core.registry.resolver import Resolver
from functions.core.serving.service import InferenceService
from functions.infer.handler import InferHandler
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import PATIENCE_S, Client, Context, DataPlane, rows
from tests.fakes import MemoryTable

INFER = {"httpMethod": "POST", "path": "/prod/v2/models/digits/versions/latest/infer"}


class FakeResolved:
    """Resolved version that records by what its side of a split is chosen."""

    def __init__(self, version: str, sides: list[tuple[str | None, str, str]]) -> None:
        self.version = version
        self._sides = sides

    def side_of(self, user: str | None, key_id: str, request_id: str) -> "FakeResolved":
        self._sides.append((user, key_id, request_id))
        return self


class Prefetching:
    """Prefetching handler whose import ends after the first resolution; records its calls.

    It is the resolver and the model cache, too.
    """

    def __init__(self, error: Exception | None = None, gate: Gate | None = None) -> None:
        self.importable = threading.Event()
        self.error = error
        self.resolved: list[tuple[str, Any]] = []
        self.loads: list[str] = []
        self.sides: list[tuple[str | None, str, str]] = []  # user, key and request of a split
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
        return FakeResolved("the version", self.sides)

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


@pytest.mark.parametrize(
    ("event", "side"),
    [
        (
            {"headers": {"X-Mayfly-User": "ann"}, "requestContext": {"requestId": "r"}},
            ("ann", "", "r"),
        ),
        ({"requestContext": {"requestId": "r"}}, (None, "", "r")),
        ({"requestContext": None}, (None, "", "lambda-id")),
    ],
    ids=["user", "request", "invocation"],
)
def test_the_side_of_a_split_is_chosen_as_the_handler_does(
    event: dict[str, Any], side: tuple[str | None, str, str]
) -> None:
    prefetching = Prefetching()

    prefetching.handler(INFER | event, Context())

    assert prefetching.sides == [side]


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
    """Reads of one key's permissions."""

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant
        self.reads = 0

    def __call__(self, key_id: str, sha256: str, now_s: float) -> Grant | None:
        self.reads += 1
        return self.grant


def prefetch_with_key(door: Door, **headers: str) -> Prefetching:
    """Send a first request with these headers; the handler is imported meanwhile."""
    prefetching = Prefetching(gate=Gate(door, 60.0, time.monotonic))
    prefetching.importable.set()
    prefetching.handler({**INFER, "headers": headers}, None)
    return prefetching


def test_a_model_is_loaded_for_a_key_that_may_infer() -> None:
    door = Door(Grant("a", frozenset({Scope.INFER}), ("digits",)))
    prefetching = prefetch_with_key(door, Authorization=f"Bearer {new_key(new_id())}")

    assert prefetching.loads == ["the version"]
    assert prefetching.sides == [(None, "a", "None")] or prefetching.sides == [(None, "a", "")]
    assert door.reads == 1


class CountedCalls:
    """DynamoDB client with the items of a fake table; keeps its operations."""

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.operations: list[tuple[str, int]] = []  # with the number of keys

    def __call__(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        keys = request["RequestItems"]["t"]["Keys"] if operation == "BatchGetItem" else []
        self.operations.append((operation, len(keys)))
        names = [(key["pk"]["S"], key["sk"]["S"]) for key in keys]
        items = [marshal(item) for item in self.table.get(names) if item]
        return {"Responses": {"t": items}} if keys else {"Items": []}


def first_request(plane: DataPlane, key: str) -> tuple[int, list[tuple[str, int]]]:
    """Send a first request; return its status and the operations of DynamoDB before it."""
    calls = CountedCalls(plane.table)
    table = ItemTable(calls, "t")
    gate = Gate(partial(read_grant, table), 60.0, plane.clock, plane.unix_s)
    resolver = Resolver(Registry(table, utc_now), 5.0, plane.clock)
    service = InferenceService(plane.registry, resolver, plane.models, plane.statistics)
    handler = PrefetchingHandler(
        lambda: InferHandler(service, gate=gate, write=lambda _: None),
        resolver,
        plane.models,
        gate,
        table.read_ahead,
    )
    reply = Client(handler).post(
        "/v2/models/digits/infer", rows([1, 2, 3]), headers={"x-api-key": key}
    )
    operations = list(calls.operations)
    table.get([("MODEL#digits", "META")])
    assert len(calls.operations) == len(operations) + 1  # nothing that was read ahead is left
    return reply.status, operations


def test_key_and_record_are_one_read_of_the_table(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    plane.register("digits")
    good = plane.create_key(Scope.INFER)
    expired = plane.create_key(Scope.INFER, valid_until=int(plane.unix_s()) + 1)
    plane.clock.now += 2

    # The key with META, alias and switch; then the version that the alias points at
    assert first_request(plane, good) == (200, [("BatchGetItem", 4), ("BatchGetItem", 1)])
    for key in (expired, new_key(new_id())):
        assert first_request(plane, key) == (401, [("BatchGetItem", 4)])


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
