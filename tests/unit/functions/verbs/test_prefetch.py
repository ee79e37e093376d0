"""Prefetching for the first event, while the handler is imported."""

import base64
import json
import threading
import time
from typing import Any

import pytest

from functions.core.errors import ModelNotFound
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import PATIENCE_S

INFER = {"httpMethod": "POST", "path": "/prod/v2/models/digits/versions/latest/infer"}


class Prefetching:
    """Prefetching handler whose import ends after the first resolution; records its calls.

    It is the resolver and the model cache, too.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self.importable = threading.Event()
        self.error = error
        self.resolved: list[tuple[str, Any]] = []
        self.loads: list[str] = []
        self.arrivals: list[int | None] = []
        self.events: list[Any] = []
        self.handler = PrefetchingHandler(self.make, self, self)  # type: ignore[arg-type]

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
