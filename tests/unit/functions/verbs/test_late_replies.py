"""Replies of infer to requests that cannot be stopped."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from functions.core.traffic.traffic import split
from functions.core.usage.arms import read_arms
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import PATIENCE_S, Client, Context, DataPlane, reply_body, rows

MESSAGE = (
    "the model did not finish in time and could not be stopped, so this environment ends; "
    "send fewer rows or smaller values"
)


def late(handler: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a handler's late reply and the JSON in its body."""
    reply = json.loads(handler.late_reply(Context()))
    return reply, json.loads(reply_body(reply))


def waited(load: Callable[..., Any], loading: threading.Event) -> Callable[..., Any]:
    """Return a runtime's `load` that tells when it begins."""

    def load_loudly(*arguments: Any) -> Any:
        loading.set()
        return load(*arguments)

    return load_loudly


def test_a_request_in_progress_is_answered_and_logged(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    plane.register("demo", 2.0)
    handler = plane.handler()
    Client(handler).get("/v2")  # the first request
    plane.runtime.gate, loading = threading.Event(), threading.Event()
    plane.runtime.load = waited(plane.runtime.load, loading)  # type: ignore[method-assign]
    call = threading.Thread(
        target=Client(handler).post, args=("/v2/models/demo/infer", rows([1.0, 2.0, 3.0]))
    )
    call.start()
    assert loading.wait(PATIENCE_S)

    reply, body = late(handler)

    line = plane.lines[-1]
    plane.runtime.gate.set()
    call.join(PATIENCE_S)
    assert reply["statusCode"] == 504
    assert body == {"error": MESSAGE, "code": "TIMED_OUT", "request_id": "the-request"}
    assert reply["headers"]["x-request-id"] == "the-request"
    assert reply["headers"]["x-model-version"] == "1"
    assert (line["status"], line["code"], line["model"]) == (504, "TIMED_OUT", "demo")


def test_a_request_that_does_not_come_back_is_counted_as_failed(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    plane.register("demo", 2.0)
    plane.register("demo", 3.0)
    plane.releases.set_traffic("demo", "prod", split(1, 2, 99, sticky="request"), actor="ann")
    handler = plane.handler()
    plane.meter._due = 1e9  # nothing is written before the end
    plane.runtime.gate, loading = threading.Event(), threading.Event()
    plane.runtime.load = waited(plane.runtime.load, loading)  # type: ignore[method-assign]
    body = rows([1.0, 2.0, 3.0])
    call = threading.Thread(target=Client(handler).post, args=("/v2/models/demo/infer", body))
    call.start()
    assert loading.wait(PATIENCE_S)

    late(handler)
    handler.last_work()

    alias = plane.releases.alias("demo", "prod")
    arms = read_arms(plane.table, "demo", alias.traffic.id if alias and alias.traffic else "")
    plane.runtime.gate.set()
    call.join(PATIENCE_S)
    [arm] = arms.values()
    assert (arm.requests, arm.errors, arm.drawn) == (1, 1, 1)


def test_a_handler_before_its_first_request_has_a_late_reply(tmp_path: Path) -> None:
    reply, body = late(DataPlane(tmp_path).handler())

    assert (reply["statusCode"], body["request_id"]) == (504, "lambda-id")


def test_an_environment_that_is_still_importing_has_a_late_reply() -> None:
    importable = threading.Event()

    def make() -> Any:
        assert importable.wait(PATIENCE_S)
        raise LookupError("never made")

    handler = PrefetchingHandler(make, None, None)  # type: ignore[arg-type]

    reply, body = late(handler)

    importable.set()
    assert reply["statusCode"] == 504
    assert (body["code"], body["request_id"]) == ("TIMED_OUT", "lambda-id")
    assert "did not start in time" in body["error"]


def test_an_imported_handler_gives_its_own_late_reply(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    handler = PrefetchingHandler(plane.handler, plane.resolver, plane.models)
    handler.wait()

    assert late(handler)[1]["error"] == MESSAGE


def test_an_event_without_room_in_memory_is_refused_and_logged(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    handler = PrefetchingHandler(plane.handler, plane.resolver, plane.models)

    reply = json.loads(handler.refuse_large(Context(), 6_000_000))

    body = json.loads(reply_body(reply))
    assert (reply["statusCode"], body["code"]) == (413, "OUT_OF_MEMORY")
    assert body["request_id"] == "lambda-id"
    assert "6000000 bytes" in body["error"]
    assert reply["headers"]["x-cold-start"] == "1"
    line = plane.lines[-1]
    assert (line["status"], line["code"], line["bytes_in"]) == (413, "OUT_OF_MEMORY", 6_000_000)
