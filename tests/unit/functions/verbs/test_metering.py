"""Handler of /v2 and the meter: what is counted, and when it is written."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from functions.core.access.grants import Scope
from functions.core.errors import Unavailable
from functions.core.usage.counters import Counters
from functions.core.usage.items import RowKey
from tests.data_plane import Client, DataPlane, LaterContext, rows


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    plane = DataPlane(tmp_path)
    plane.register("demo")
    return plane


@pytest.fixture
def counted(plane: DataPlane) -> Callable[[], dict[RowKey, Counters]]:
    """Return a function that returns what is counted and not written."""
    plane.meter._due = math.inf  # nothing is written meanwhile
    return lambda: dict(plane.meter.unwritten())


Counted = Callable[[], dict[RowKey, Counters]]


def test_an_inference_is_counted_with_its_sizes_and_stages(
    plane: DataPlane, counted: Counted
) -> None:
    replies = [
        Client(plane.handler()).post("/v2/models/demo/infer", rows([1, 2, 3], [4, 5, 6]))
        for _ in range(2)  # two environments, as far as cold starts go
    ]

    [(row, counters)] = counted().items()
    assert row == RowKey("demo", 1, "prod")
    assert (counters.requests, counters.executions, counters.inferences) == (2, 2, 4)
    assert (counters.errors, counters.refused, counters.cold_starts) == (0, 0, 2)
    assert counters.bytes_out == sum(len(reply.body) for reply in replies)
    assert counters.bytes_in > 0
    assert min(counters.ms, counters.infer_ns, counters.input_ns, counters.output_ns) > 0
    assert counters.last_ms == int(plane.unix_s() * 1000)


def test_requests_are_counted_by_version_alias_and_key(plane: DataPlane, counted: Counted) -> None:
    client, key = Client(plane.handler(gate=plane.gate)), plane.create_key(Scope.INFER)
    for path in ("/v2/models/demo/infer", "/v2/models/demo/versions/1/infer"):
        assert client.post(path, rows([1, 2, 3]), headers={"x-api-key": key}).status == 200

    key_id = key.split("_")[1]
    assert list(counted()) == [RowKey("demo", 1, "prod", key_id), RowKey("demo", 1, "", key_id)]


def test_refused_and_failed_requests_are_counted_apart(plane: DataPlane, counted: Counted) -> None:
    client = Client(plane.handler())
    assert client.post("/v2/models/demo/infer", {"inputs": []}).status == 400
    plane.runtime.failure = ZeroDivisionError("a bug")
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 500

    [counters] = counted().values()
    assert (counters.requests, counters.refused, counters.errors) == (2, 1, 1)
    assert (counters.executions, counters.inferences) == (0, 0)
    assert counters.fail_ns > 0


def test_requests_that_reach_no_version_are_not_counted(plane: DataPlane, counted: Counted) -> None:
    client = Client(plane.handler())
    assert client.post("/v2/models/nobody/infer", rows([1, 2, 3])).status == 404
    assert client.get("/v2/models/demo").status == 200
    assert client.get("/v2/health/live").status == 200

    assert counted() == {}


def test_counts_are_written_after_the_reply(plane: DataPlane) -> None:
    context = LaterContext()
    Client(plane.handler()).post("/v2/models/demo/infer", rows([1, 2, 3]), context=context)
    assert list(plane.table.query("USAGE#demo", "")) == []

    context.post()
    [item] = plane.table.query("USAGE#demo", "")
    assert item["requests"] == 1


def test_a_client_without_after_writes_before_the_reply(plane: DataPlane) -> None:
    assert Client(plane.handler()).post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200

    [item] = plane.table.query("USAGE#demo", "")
    assert item["requests"] == 1


def test_a_warm_request_makes_no_call_but_the_due_write(plane: DataPlane) -> None:
    client = Client(plane.handler())
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    reads, transactions = plane.table.reads, plane.table.transactions
    for _ in range(100):
        client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    assert (plane.table.reads, plane.table.transactions) == (reads, transactions)

    plane.clock.now += 10
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    assert plane.table.transactions == transactions + 1


@pytest.mark.parametrize("error", [Unavailable("no answer"), ValueError("secret")], ids=repr)
def test_a_write_that_fails_changes_no_reply(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(plane.table, "add", fail)
    client = Client(plane.handler())

    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200
    bugs = [line for line in plane.lines if line["message"] == "bug"]
    assert len(bugs) == isinstance(error, ValueError)
    assert "secret" not in str(plane.lines)


def test_a_request_without_memory_is_counted_at_once(plane: DataPlane) -> None:
    """The environment may end after it, and a canary has to hear of it."""
    client = Client(plane.handler())
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    plane.runtime.failure = MemoryError()
    transactions = plane.table.transactions

    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 413
    assert plane.table.transactions == transactions + 1
