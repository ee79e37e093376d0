"""Infer handler with API Gateway events: statuses, headers, bodies, log lines."""

import gzip
import json
import random
import re
import struct
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.http import InferResult

from functions.core import errors
from functions.core.errors import (
    ExecutionFailed,
    InvalidModel,
    PlatformError,
    TimedOut,
    Unavailable,
)
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry.version import Reason
from functions.core.serving.service import InferenceService
from functions.core.serving.statistics import Statistics
from functions.core.usage.meter import Meter
from functions.infer import handler as module
from functions.infer import responses
from functions.infer.handler import InferHandler
from tests.data_plane import Client, Context, DataPlane, ScaleSession, rows


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    plane = DataPlane(tmp_path)
    plane.register("demo", 2.0)
    plane.register("demo", 3.0)
    return plane


@pytest.fixture(params=[False, True], ids=["dict", "bytes"])
def client(plane: DataPlane, request: pytest.FixtureRequest) -> Client:
    """Client of the handler in both forms: as Lambda's runtime client calls it, and as ours."""
    return Client(plane.handler(), in_bytes=request.param)


def load(name: str) -> dict[str, Any]:
    return json.loads((Path("events") / f"{name}.json").read_text())


def binary(*values: float, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose tensor follows the JSON as bytes, and its header."""
    raw = struct.pack(f"<{len(values)}f", *values)
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(values) // 3, 3],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


# --- inference


def test_an_inference_names_the_version_that_answered(client: Client) -> None:
    reply = client.deliver(load("apigw_infer"))

    assert reply.status == 200
    assert reply.json == {
        "model_name": "demo",
        "model_version": "1",
        "id": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]}],
    }
    assert reply.headers["x-model-version"] == "1"
    assert reply.headers["x-model-alias"] == "prod"
    assert reply.headers["x-request-id"] == "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "headers", "query", "version", "alias"),
    [
        ("/v2/models/demo/infer", {}, {}, "1", "prod"),
        ("/v2/models/demo/versions/2/infer", {}, {}, "2", None),
        ("/v2/models/demo/versions/latest/infer", {}, {}, "2", "latest"),
        ("/prod/v2/models/demo/versions/latest/infer/", {}, {}, "2", "latest"),
        ("/v2/models/demo/infer", {"X-Model-Version": "latest"}, {"version": "1"}, "2", "latest"),
        ("/v2/models/demo/infer", {}, {"version": "2"}, "2", None),
        ("/v2/models/demo/versions/1/infer", {"x-model-version": "2"}, {}, "1", None),
    ],
)
def test_a_version_is_requested_by_path_header_or_query(
    client: Client,
    path: str,
    headers: dict[str, str],
    query: dict[str, str],
    version: str,
    alias: str | None,
) -> None:
    reply = client.post(path, rows([1, 2, 3]), headers=headers, query=query)

    assert reply.json["model_version"] == reply.headers["x-model-version"] == version
    assert reply.headers.get("x-model-alias") == alias
    assert reply.json["outputs"][0]["data"][0] == (2.0 if version == "1" else 3.0)


def test_an_alias_may_replace_a_version_in_the_path(client: Client) -> None:
    reply = client.deliver(load("apigw_infer_alias"))

    assert (reply.status, reply.headers["x-model-version"], reply.headers["x-model-alias"]) == (
        200,
        "2",
        "latest",
    )


def test_a_binary_inference_is_an_octet_stream(client: Client) -> None:
    reply = client.deliver(load("apigw_infer_binary"))

    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    assert struct.unpack("<3f", reply.body[length:]) == (2.0, 4.0, 6.0)
    assert json.loads(reply.body[:length])["model_version"] == "1"


def test_the_first_request_and_every_load_are_cold(client: Client) -> None:
    paths = ["/v2/health/live", "/v2/models/demo", "/v2/models/demo/infer", "/v2/models/demo/infer"]
    methods = ["GET", "GET", "POST", "POST"]
    cold = [
        client.send(m, p, rows([1, 2, 3])).headers["x-cold-start"]
        for m, p in zip(methods, paths, strict=True)
    ]

    assert cold == ["1", "0", "1", "0"]


def test_server_timing_has_the_duration_of_each_stage(client: Client) -> None:
    timing = client.post("/v2/models/demo/infer", rows([1, 2, 3])).headers["server-timing"]

    entries = dict(entry.split(";dur=") for entry in timing.split(", "))
    assert list(entries) == ["receive", "resolve", "decode", "load", "compute", "encode"]
    assert all(float(ms) >= 0 for ms in entries.values())


@pytest.mark.parametrize(
    ("encoding", "squeeze"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("GZIP", gzip.compress),
    ],
)
def test_request_bodies_may_be_compressed(client: Client, encoding: str, squeeze: Any) -> None:
    body = squeeze(json.dumps(rows([1, 2, 3])).encode())

    assert (
        client.post("/v2/models/demo/infer", body, headers={"Content-Encoding": encoding}).status
        == 200
    )


def test_the_size_of_a_decompressed_body_is_limited(plane: DataPlane) -> None:
    client = Client(plane.handler(inflated_limit=1000))
    reply = client.post(
        "/v2/models/demo/infer", gzip.compress(b" " * 10_000), headers={"Content-Encoding": "gzip"}
    )

    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_only_inferences_are_compressed(client: Client) -> None:
    many = [[1.0, 2.0, 3.0]] * 100
    accept = {"Accept-Encoding": "gzip"}
    reply = client.post("/v2/models/demo/infer", rows(*many), headers=accept)

    assert reply.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(reply.body))["outputs"][0]["shape"] == [100, 3]
    for reply in (
        client.get("/v2/models/demo", headers=accept),
        client.post("/v2/models/demo/infer", b"{" * 1000, headers=accept),
        client.get("/v2/" + "x" * 500, headers=accept),
    ):
        assert "content-encoding" not in reply.headers
        assert reply.json


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_the_reply_limit_counts_the_bytes_that_are_sent(client: Client, is_binary: bool) -> None:
    body, headers = binary(*[1.0] * 3 * 550_000, binary_data_output=is_binary)  # 6.6 MB
    reply = client.post("/v2/models/demo/infer", body, headers=headers)
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "Accept-Encoding" in reply.json["error"]

    headers["Accept-Encoding"] = "gzip"
    reply = client.post("/v2/models/demo/infer", body, headers=headers)
    assert (reply.status, reply.headers["content-encoding"]) == (200, "gzip")
    length = reply.headers.get("inference-header-content-length")
    result = InferResult.from_response_body(
        gzip.decompress(reply.body), header_length=None if length is None else int(length)
    )
    assert result.as_numpy("y").tolist() == [[2.0, 2.0, 2.0]] * 550_000


def test_a_reply_that_compression_cannot_make_small_enough_is_refused(client: Client) -> None:
    noise = random.Random(0)  # noqa: S311 (no secret)
    body, headers = binary(*[noise.random() for _ in range(3 * 500_000)], binary_data_output=True)
    headers["Accept-Encoding"] = "gzip"
    reply = client.post("/v2/models/demo/infer", body, headers=headers)

    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "the reply, compressed, takes " in reply.json["error"]
    assert "in base64, and Lambda's limit is 6291556: send fewer rows" in reply.json["error"]
    assert "content-encoding" not in reply.headers


def test_a_reply_too_large_for_lambda_is_refused(
    plane: DataPlane, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, headers = binary(*[1.0] * 3 * 400_000, binary_data_output=True)
    reply = client.post("/v2/models/demo/infer", body, headers=headers)
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")

    monkeypatch.setattr(responses, "REPLY_BYTES_MAX", 100)
    assert client.get("/v2/models/demo").status == 413


def test_a_run_is_limited_by_the_remaining_time_and_the_callers_timeout(
    plane: DataPlane, client: Client
) -> None:
    version = plane.registry.resolve("demo", None).version
    with plane.models.session(version, time.monotonic() + 60) as session:
        began = time.monotonic()
        client.post("/v2/models/demo/infer", rows([1, 2, 3]), context=Context(remaining_ms=9000))
        elapsed = time.monotonic() - began
        client.post("/v2/models/demo/infer", rows([1, 2, 3], parameters={"timeout": 50_000}))
        by_remaining_time, by_caller = session.timeouts  # type: ignore[attr-defined]

    assert 8.0 - elapsed <= by_remaining_time <= 8.0
    assert by_caller == 0.05
    reply = client.post("/v2/models/demo/infer", rows([1, 2, 3]), context=Context(remaining_ms=0))
    assert (reply.status, reply.json["code"]) == (504, "TIMED_OUT")


# --- refusals

REFUSALS = [
    ("GET", "/nothing", b"", {}, 404, "PATH_NOT_FOUND"),
    ("GET", "/v2/models/demo/infer", b"", {}, 405, "METHOD_NOT_ALLOWED"),
    ("POST", "/v2/models/demo/generate", b"", {}, 501, "UNSUPPORTED"),
    ("GET", "/v2/systemsharedmemory/status", b"", {}, 501, "UNSUPPORTED"),
    ("POST", "/v2/models/nobody/infer", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("POST", "/v2/models/No%20Body/infer", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("GET", "/v2/models/nobody", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("GET", "/v2/models/nobody/ready", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("GET", "/v2/models/demo/versions/9", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("GET", "/v2/models/demo/versions/staging/config", b"", {}, 404, "MODEL_NOT_FOUND"),
    ("GET", "/v2/models/demo/versions/Staging!", b"", {}, 400, "INVALID_REQUEST"),
    ("POST", "/v2/models/demo/infer", b"", {}, 400, "INVALID_REQUEST"),
    ("POST", "/v2/models/demo/infer", b"{", {}, 400, "INVALID_REQUEST"),
    (
        "POST",
        "/v2/models/demo/infer",
        b"garbage",
        {"content-encoding": "gzip"},
        400,
        "INVALID_REQUEST",
    ),
    (
        "POST",
        "/v2/models/demo/infer",
        b"x",
        {"content-encoding": "br"},
        415,
        "UNSUPPORTED_ENCODING",
    ),
    ("POST", "/v2/repository/index", b"[]", {}, 400, "INVALID_REQUEST"),
    ("POST", "/v2/repository/index", b'{"ready":1}', {}, 400, "INVALID_REQUEST"),
    (
        "POST",
        "/v2/repository/models/demo/load",
        b'{"parameters":{"config":"{}"}}',
        {},
        400,
        "INVALID_REQUEST",
    ),
    (
        "POST",
        "/v2/repository/models/demo/load",
        b'{"parameters":{"file:1/m":"eA=="}}',
        {},
        400,
        "INVALID_REQUEST",
    ),
    ("POST", "/v2/repository/models/nobody/load", b"{}", {}, 404, "MODEL_NOT_FOUND"),
    ("POST", "/v2/repository/models/No!/load", b"{}", {}, 404, "MODEL_NOT_FOUND"),
    ("POST", "/v2/repository/models/nobody/unload", b"{}", {}, 404, "MODEL_NOT_FOUND"),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "code"), REFUSALS)
def test_every_refusal_is_json_with_error_code_and_request_id(
    client: Client,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    reply = client.send(method, path, body, headers=headers)

    assert (reply.status, reply.json["code"]) == (status, code)
    assert set(reply.json) == {"error", "code", "request_id"}
    assert 0 < len(reply.json["error"]) <= 300
    assert reply.headers["content-type"] == "application/json"
    assert {"x-request-id", "x-cold-start", "server-timing"} <= set(reply.headers)
    assert reply.json["request_id"] == reply.headers["x-request-id"] == "the-request"


@pytest.mark.parametrize(
    "name", ["apigw_infer_bad_shape", "apigw_infer_broken_json", "apigw_infer_unknown_model"]
)
def test_the_recorded_bad_events_are_refused(client: Client, name: str) -> None:
    assert client.deliver(load(name)).status == (404 if name.endswith("model") else 400)


def test_error_texts_that_clients_parse_are_tritons(client: Client) -> None:
    def text(method: str, path: str) -> str:
        return client.send(method, path).json["error"]

    assert text("POST", "/v2/models/nobody/infer").startswith("Request for unknown model: 'nobody'")
    assert text("GET", "/v2/models/No%20Body").startswith("Request for unknown model: 'No Body'")
    assert text("POST", "/v2/repository/models/nobody/load").startswith("failed to load 'nobody', ")
    assert text("POST", "/v2/repository/models/nobody/unload").startswith(
        "failed to unload 'nobody', "
    )


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/health/live", "/v2/models", "/v2/models/demo/ready", "/v2/models/demo/config",
     "/live/v2/models/demo/versions/2", "/v2/models/nobody", "/v2/models/empty/ready", "/v2/no"],
)  # fmt: skip
def test_head_is_answered_as_get_without_a_body(
    plane: DataPlane, client: Client, path: str
) -> None:
    plane.claim("empty")
    get, head = client.get(path), client.send("HEAD", path)

    assert (head.status, head.body) == (get.status, b"")
    changing = {"server-timing", "x-cold-start"}
    assert [(name, head.headers.get(name)) for name in get.headers if name not in changing] == [
        (name, value) for name, value in get.headers.items() if name not in changing
    ]
    assert plane.lines[-1]["bytes_out"] == 0


def test_head_of_a_path_that_takes_post_has_no_body(client: Client) -> None:
    reply = client.send("HEAD", "/v2/models/demo/infer")

    assert (reply.status, reply.headers["allow"], reply.body) == (405, "POST", b"")


def test_some_statuses_have_headers_of_their_own(plane: DataPlane, client: Client) -> None:
    plane.claim("empty")

    assert client.send("PUT", "/v2/models/demo/infer").headers["allow"] == "POST"
    assert client.post("/v2/models/demo").headers["allow"] == "GET, HEAD"
    assert client.post("/v2/models/demo/infer", b"x", headers={"content-encoding": "br"}).headers[
        "accept-encoding"
    ] == ("gzip, deflate")
    assert int(client.get("/v2/models/empty/ready").headers["retry-after"]) > 0


def _all(kind: type[PlatformError]) -> Iterator[type[PlatformError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all(below)


def test_every_platform_error_has_a_status() -> None:
    """The tree at the top of errors.py names the status of each."""
    shared = {kind for kind in _all(PlatformError) if kind.__module__ == errors.__name__}
    rows = re.findall(r"[├└]── (\w+) .*?(\d{3}|REJECTED.*)$", str(errors.__doc__), re.MULTILINE)
    documented = {name: status for name, status in rows if status.isdigit()}

    assert {kind.__name__ for kind in shared} == {"PlatformError", *dict(rows)}
    assert documented == {
        kind.__name__: str(kind.status) for kind in shared if kind.__name__ in documented
    }
    assert all(400 <= kind.status <= 599 and kind.status != 422 for kind in shared)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (ExecutionFailed("Gather: index 7 is out of bounds"), 400, "EXECUTION_FAILED"),
        (MemoryError(), 413, "OUT_OF_MEMORY"),
        (TimedOut("the model was stopped"), 504, "TIMED_OUT"),
        (Unavailable("not now"), 503, "UNAVAILABLE"),
    ],
)
def test_a_failed_run_names_its_version_and_is_counted(
    plane: DataPlane, client: Client, failure: Exception, status: int, code: str
) -> None:
    plane.runtime.failure = failure
    reply = client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    plane.runtime.failure = None

    assert (reply.status, reply.json["code"]) == (status, code)
    assert (reply.headers["x-model-version"], reply.headers["x-model-alias"]) == ("1", "prod")
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200
    [stats] = client.get("/v2/models/demo/versions/1/stats").json["model_stats"]
    assert (
        stats["inference_stats"]["fail"]["count"]
        == stats["inference_stats"]["success"]["count"]
        == 1
    )


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (MemoryError(), 413),
        (TimedOut("the model was stopped"), 504),
        (Unavailable("no memory", code="MODELS_BUSY"), 503),
        (Unavailable("no memory", code="MODEL_TOO_LARGE"), 503),
    ],
)
def test_after_a_shortage_the_environment_looks_at_its_memory(
    plane: DataPlane, failure: Exception, status: int
) -> None:
    shortages: list[tuple[Any, Any]] = []
    handler = plane.handler(after_shortage=lambda *arguments: shortages.append(arguments))
    client = Client(handler)

    for error in (None, ExecutionFailed("no"), Unavailable("not now")):
        plane.runtime.failure = error
        client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    assert shortages == []
    plane.runtime.failure = failure
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    [(reply, context)] = shortages
    assert (reply["statusCode"], context.aws_request_id) == (status, "lambda-id")


def test_the_memory_of_a_request_is_free_when_its_refusal_is_written(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a failed request's memory is freed before replying.

    Otherwise the reply runs out of memory, too, and becomes a 5xx.
    """
    kept: list[weakref.ref[Any]] = []

    class Large(list[int]):
        pass

    def run(*_: object) -> None:
        values = Large([1])
        kept.append(weakref.ref(values))
        raise MemoryError

    alive: list[bool] = []
    refusal = module.refusal

    def look(*arguments: Any) -> Any:
        alive.append(kept[0]() is not None)
        return refusal(*arguments)

    monkeypatch.setattr(ScaleSession, "run", run)
    monkeypatch.setattr(module, "refusal", look)

    assert Client(plane.handler()).post("/v2/models/demo/infer", rows([1, 2, 3])).status == 413
    assert alive == [False]


def test_a_model_that_the_runtime_refuses_is_a_server_error(
    plane: DataPlane, client: Client
) -> None:
    plane.runtime.refusals = [InvalidModel("cannot load it", code="NOT_LOADABLE")]

    reply = client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    assert (reply.status, reply.json["code"]) == (500, "NOT_LOADABLE")


def test_a_bug_is_logged_and_the_environment_continues(plane: DataPlane, client: Client) -> None:
    plane.runtime.failure = ZeroDivisionError("secret payload")
    reply = client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    plane.runtime.failure = None

    assert reply.status == 500
    assert reply.json == {
        "error": "internal error",
        "code": "INTERNAL_ERROR",
        "request_id": "the-request",
    }
    bug, line = plane.lines
    assert bug["type"] == "builtins.ZeroDivisionError"
    assert any("data_plane.py" in frame for frame in bug["traceback"])
    assert "secret" not in json.dumps(bug)
    assert (line["status"], line["code"]) == (500, "INTERNAL_ERROR")
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200


@pytest.mark.parametrize(
    "event", [{}, {"body": "%%%", "isBase64Encoded": True}, {"headers": None, "path": None}]
)
def test_an_event_of_any_shape_is_answered(client: Client, event: dict[str, Any]) -> None:
    assert client.deliver(event).status in (400, 404)


def test_an_event_without_a_context_is_answered(plane: DataPlane) -> None:
    assert plane.handler()(load("apigw_infer"), None)["statusCode"] == 200


# --- server and models


def test_health(plane: DataPlane, client: Client) -> None:
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.deliver(load("apigw_health_ready")).json == {"live": True, "ready": True}
    assert plane.runtime.loads == []

    plane.table.broken = True
    assert client.get("/v2/health/live").status == 200
    reply = client.get("/v2/health/ready")
    assert reply.status == 503
    assert "error" in reply.json


def test_server_metadata_lists_the_implemented_extensions(client: Client) -> None:
    document = client.get("/v2").json

    assert document == client.get("/v2/").json
    assert document["name"] == "mayfly"
    assert {"binary_tensor_data", "generate", "statistics", "model_repository"} <= set(
        document["extensions"]
    )
    assert not {"system_shared_memory", "trace", "logging", "sequence"} & set(
        document["extensions"]
    )


def test_models_that_have_a_ready_version_are_listed(plane: DataPlane, client: Client) -> None:
    plane.claim("pending")
    plane.register("another")

    assert client.get("/v2/models").json == {"models": ["another", "demo"]}


def test_model_metadata(client: Client) -> None:
    document = client.deliver(load("apigw_model_metadata")).json

    assert document["versions"] == ["1", "2"]
    assert document["properties"]["version"] == "1"
    assert client.get("/v2/models/demo/versions/latest").json["properties"]["version"] == "2"


def test_ready_reports_whether_the_model_is_in_memory(client: Client) -> None:
    reply = client.get("/v2/models/demo/versions/latest/ready")
    assert reply.json == {"name": "demo", "version": "2", "ready": True}
    assert reply.headers["x-model-residency"] == "cold"

    client.post("/v2/models/demo/versions/2/infer", rows([1, 2, 3]))
    assert client.get("/v2/models/demo/versions/2/ready").headers["x-model-residency"] == "warm"


@pytest.mark.parametrize("route", ["", "/ready", "/config", "/stats", "/infer"])
def test_only_a_version_that_may_become_ready_is_503(
    plane: DataPlane, client: Client, route: str
) -> None:
    plane.claim("pending")
    plane.reject("rejected")
    for _ in ("prod", "archived", "latest"):
        plane.register("archived")
    plane.releases.archive("archived", 2, actor="ann")
    plane.clock.now += 10
    method = "POST" if route == "/infer" else "GET"

    for path in ("pending", "pending/versions/1"):
        reply = client.send(method, f"/v2/models/{path}{route}")
        assert (reply.status, reply.json["code"]) == (503, "MODEL_NOT_READY")
        assert int(reply.headers["retry-after"]) > 0
    for path in ("rejected", "rejected/versions/1", "archived/versions/2"):
        for _ in range(2):  # the second answer is cached
            reply = client.send(method, f"/v2/models/{path}{route}")
            assert (reply.status, reply.json["code"]) == (409, "MODEL_NOT_SERVABLE")
            assert reply.json["error"].startswith("Model version not ready")
            assert "retry-after" not in reply.headers
    assert {line.get("Errors", 0) for line in plane.lines if line["status"] == 409} == {0}


def test_a_new_version_is_seen_without_a_restart(plane: DataPlane, client: Client) -> None:
    assert client.get("/v2/models/new/ready").status == 404
    plane.register("new")
    plane.clock.now += 1.0
    assert client.get("/v2/models/new/ready").status == 200


def test_statistics_of_one_version_one_model_and_all_models(client: Client) -> None:
    client.post("/v2/models/demo/infer", rows([1, 2, 3], [4, 5, 6]))
    client.post("/v2/models/demo/versions/2/infer", rows([1, 2, 3]))

    everything = client.get("/v2/models/stats").json["model_stats"]
    assert [(s["name"], s["version"], s["inference_count"]) for s in everything] == [
        ("demo", "1", 2),
        ("demo", "2", 1),
    ]
    assert client.get("/v2/models/demo/stats").json["model_stats"] == everything
    assert client.get("/v2/models/demo/versions/2/stats").json["model_stats"] == everything[1:]
    assert client.get("/v2/models/nobody/stats").status == 404


def test_a_fresh_environment_lists_what_it_serves_with_zeros(
    plane: DataPlane, client: Client
) -> None:
    plane.reject("broken")
    plane.claim("pending")
    plane.register("off")
    plane.registry.serve("off", False)
    plane.register("other")

    rows_ = client.get("/v2/models/stats").json["model_stats"]
    served = [("demo", "1"), ("demo", "2"), ("other", "1")]
    assert [(row["name"], row["version"]) for row in rows_] == served
    assert {row["inference_count"] for row in rows_} == {0}
    assert {part["count"] for row in rows_ for part in row["inference_stats"].values()} == {0}
    assert client.get("/v2/models/demo/stats").json["model_stats"] == rows_[:2]


def test_statistics_are_those_of_all_environments(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    plane.register("m")
    clients = []
    for _ in range(2):
        meter = Meter(plane.table, now=plane.unix_s, clock=plane.clock)
        statistics = Statistics(plane.table, meter)
        service = InferenceService(plane.registry, plane.resolver, plane.models, statistics)
        clients.append(Client(InferHandler(service, meter=meter, write=lambda _: None)))
    for client in (clients[0], *clients):
        assert client.post("/v2/models/m/infer", rows([1, 2, 3])).status == 200
    # Each has written its first inference; the second one's counts are in memory.

    counts = [
        client.get(f"/v2/models{path}").json["model_stats"][0]["inference_count"]
        for client in clients
        for path in ("/stats", "/m/stats", "/m/versions/1/stats")
    ]
    assert counts == [3] * 3 + [2] * 3
    assert clients[0].get("/v2/models/stats").json["delay_seconds"] == 10


def test_a_model_called_stats(plane: DataPlane, client: Client) -> None:
    plane.register("stats")

    names = [stats["name"] for stats in client.get("/v2/models/stats").json["model_stats"]]
    assert names == ["demo", "demo", "stats"]
    assert client.get("/v2/models/stats/versions/prod").json["name"] == "stats"
    assert client.post("/v2/models/stats/infer", rows([1, 2, 3])).status == 200
    assert client.get("/v2/models/stats/stats").json["model_stats"][0]["inference_count"] == 1


# --- repository


def test_the_index_has_the_state_of_every_version(plane: DataPlane, client: Client) -> None:
    plane.reject("broken")
    plane.claim("pending")
    plane.register("off")
    plane.registry.serve("off", False)

    index = client.deliver(load("apigw_repository_index")).json
    assert index == [
        {
            "name": "broken",
            "version": "1",
            "state": "UNAVAILABLE",
            "reason": "the file is no ONNX model",
        },
        {"name": "demo", "version": "1", "state": "READY", "reason": ""},
        {"name": "demo", "version": "2", "state": "READY", "reason": ""},
        {"name": "off", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "pending", "version": "1", "state": "LOADING", "reason": "pending"},
    ]
    assert client.post("/v2/repository/index", {"ready": False}).json == index
    ready = client.post("/v2/repository/index", {"ready": True}).json
    assert [(row["name"], row["version"]) for row in ready] == [("demo", "1"), ("demo", "2")]


def test_the_models_that_are_listed_are_those_that_can_be_called(
    plane: DataPlane, client: Client
) -> None:
    plane.register("off")
    assert client.get("/v2/models").json == {"models": ["demo", "off"]}
    assert client.post("/v2/repository/models/off/unload").status == 200
    assert client.get("/v2/models").json == {"models": ["demo"]}
    assert {row["name"] for row in client.post("/v2/repository/index").json} == {"demo", "off"}

    assert client.post("/v2/repository/models/off/load").status == 200
    assert client.get("/v2/models").json == {"models": ["demo", "off"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"parameters": {"config": "{}"}}, "parameter 'config' is not offered"),
        ({"parameters": {"file:1/m": "eA=="}}, "parameter 'file:1/m' is not offered"),
        ({"parameters": {"version": "2"}}, "parameter 'version' has no effect: leave it out"),
        ({"parameters": {"unload_dependents": 1}}, ""),
        ({"version": 2}, "parameter 'version' has no effect"),
        ({"parameters": []}, "parameters must be an object, not a list"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_parameter_without_an_effect_is_refused_by_name(
    plane: DataPlane, client: Client, verb: str, body: dict[str, Any], says: str
) -> None:
    plane.registry.serve("demo", verb == "unload")
    reply = client.post(f"/v2/repository/models/demo/{verb}", body)

    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith(f"failed to {verb} 'demo', {says}")
    assert bool(plane.registry.unloaded_models(["demo"])) is (verb == "load")  # as before


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{}", b'{"parameters":null}', b'{"parameters":{}}', b"\xef\xbb\xbf{}",
     b'{"parameters":{"unload_dependents":null,"config":null}}'],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_load_and_unload_take_an_empty_body_and_nulls(
    client: Client, verb: str, body: bytes
) -> None:
    assert client.post(f"/v2/repository/models/demo/{verb}", body).status == 200


@pytest.mark.parametrize("body", [b'{"ready":null}', b'\xef\xbb\xbf{"ready":false}', b"{}", b""])
def test_the_index_takes_null_for_an_absent_filter(client: Client, body: bytes) -> None:
    assert len(client.post("/v2/repository/index", body).json) == 2


def test_the_index_ends_with_the_uploads_that_became_no_version(
    plane: DataPlane, client: Client
) -> None:
    versions = client.post("/v2/repository/index").json
    for key in ("models/x.onnx", "models/My Model/job/x.onnx", "models/m/" + "n" * 900 + ".pkl"):
        plane.registry.note_ignored(key, Reason("ANY", "say why: do this"))

    index = client.post("/v2/repository/index").json

    assert index[: len(versions)] == versions
    ignored = {row["name"]: row for row in index[len(versions) :]}
    assert ignored["My Model"] == {
        "name": "My Model",
        "state": "UNAVAILABLE",
        "reason": "say why: do this (models/My Model/job/x.onnx)",
    }
    assert ignored.keys() == {"x.onnx", "My Model", "m"}
    assert ignored["m"]["reason"].endswith("nnn.pkl)")
    assert len(ignored["m"]["reason"]) == 300
    ready = client.post("/v2/repository/index", {"ready": True}).json
    assert {row["state"] for row in ready} == {"READY"}


def test_a_model_whose_name_has_capitals_is_another_than_that_without(
    plane: DataPlane, client: Client
) -> None:
    plane.register("Demo")

    reply = client.post("/v2/models/Demo/infer", rows([1, 2, 3]))

    assert (reply.status, reply.json["model_name"]) == (200, "Demo")
    assert client.post("/v2/models/DEMO/infer", rows([1, 2, 3])).status == 404
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).json["model_name"] == "demo"


@pytest.mark.parametrize(
    "path", ["index", "models/demo/load", "models/demo/unload", "../models/demo/infer"]
)
def test_a_small_body_of_millions_of_lists_is_413(client: Client, path: str) -> None:
    bomb = gzip.compress(b'{"parameters":[' + b"[]," * 5_000_000 + b"[]]}")
    path = f"/v2/repository/{path}".replace("repository/../", "")

    reply = client.post(path, bomb, headers={"content-encoding": "gzip"})

    assert len(bomb) < 20_000
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "5000003 lists and objects" in reply.json["error"]


def test_unload_and_load(plane: DataPlane, client: Client) -> None:
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200
    version = plane.registry.resolve("demo", None).version

    reply = client.post(
        "/v2/repository/models/demo/unload", {"parameters": {"unload_dependents": False}}
    )
    assert (reply.status, reply.body) == (200, b"{}")
    assert not plane.models.holds(version)
    assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 503

    reply = client.post("/v2/repository/models/demo/load")
    assert (reply.status, reply.body) == (200, b"{}")
    assert reply.headers["x-model-version"] == "1"
    assert reply.headers["x-cold-start"] == "1"
    assert plane.models.holds(version)
    reply = client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    assert (reply.status, reply.headers["x-cold-start"]) == (200, "0")


# --- log


def test_the_log_line_of_an_inference_has_its_metrics(plane: DataPlane) -> None:
    client = Client(plane.handler(model_metrics=2))
    client.post("/v2/models/demo/infer", rows([1.25, 2.5, 3.75]))
    client.post("/v2/models/demo/versions/1/infer", rows([1.25, 2.5, 3.75]))

    first, second = plane.lines
    assert first["message"] == "request"
    assert (first["model"], first["version"], first["alias"], first["status"]) == (
        "demo",
        1,
        "prod",
        200,
    )
    assert (first["action"], first["cold"], first["request_id"]) == ("infer", True, "the-request")
    assert first["bytes_in"] > 0 < first["bytes_out"]
    [directive] = first["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Mayfly"
    assert directive["Dimensions"] == [[], ["Model", "Alias"]]
    assert (first["Model"], first["Alias"], second["Alias"]) == ("demo", "prod", "-")
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert units == {
        "Requests": "Count",
        "Errors": "Count",
        "Latency": "Milliseconds",
        "ModelLoadMs": "Milliseconds",
    }
    assert all(isinstance(first[name], int | float) for name in units)
    assert (first["Requests"], first["Errors"], first["Latency"]) == (1, 0, first["latency_ms"])
    assert "ModelLoadMs" not in second
    assert second["alias"] is None
    assert "1.25" not in json.dumps(plane.lines)


def test_no_more_models_have_metrics_of_their_own_than_allowed(plane: DataPlane) -> None:
    client = Client(plane.handler(model_metrics=1))
    for reference in ("prod", "latest", "prod", "1"):
        client.post(f"/v2/models/demo/versions/{reference}/infer", rows([1, 2, 3]))

    assert [line.get("Alias") for line in plane.lines] == ["prod", None, "prod", None]
    for line in plane.lines:
        [directive] = line["_aws"]["CloudWatchMetrics"]
        assert directive["Dimensions"] == ([[], ["Model", "Alias"]] if "Alias" in line else [[]])
        assert line["model"] == "demo"  # a query of the log finds all


def test_no_model_has_metrics_of_its_own_by_default(plane: DataPlane, client: Client) -> None:
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    [line] = plane.lines
    assert line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [[]]
    assert not {"Model", "Alias"} & line.keys()


def test_an_unknown_model_is_neither_a_dimension_nor_logged(plane: DataPlane) -> None:
    client = Client(plane.handler(model_metrics=100))
    client.post("/v2/models/made-up-by-a-caller/infer", rows([1, 2, 3]))
    client.get("/v2/models/made-up-by-a-caller")
    client.get("/v2/made-up-by-a-caller")

    assert "made-up" not in json.dumps(plane.lines)
    infer, metadata, unknown = plane.lines
    assert infer["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [[]]
    assert (infer["code"], infer["Errors"]) == ("MODEL_NOT_FOUND", 0)
    assert "_aws" not in metadata
    assert unknown["action"] == "unknown"


def test_a_server_error_counts_in_the_metrics(plane: DataPlane, client: Client) -> None:
    plane.runtime.failure = Unavailable("x")
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    [line] = plane.lines
    assert (line["level"], line["Errors"], line["code"]) == ("ERROR", 1, "UNAVAILABLE")


def test_values_that_a_model_fails_on_raise_no_alarm(plane: DataPlane, client: Client) -> None:
    plane.runtime.failure = ExecutionFailed("Gather: index 7 is out of bounds")
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    [line] = plane.lines
    assert (line["level"], line["Errors"], line["code"]) == ("INFO", 0, "EXECUTION_FAILED")


def test_sampled_lines_count_for_those_that_are_not_logged(plane: DataPlane) -> None:
    chances = iter([0.25, 0.5, 0.24, 0.75] * 25)
    client = Client(plane.handler(sample_rate=0.25, chance=lambda: next(chances)))
    for _ in range(1 + 100):  # the first is cold
        assert client.post("/v2/models/demo/infer", rows([1, 2, 3])).status == 200

    cold, *sampled = plane.lines
    assert (cold["cold"], cold["Requests"], "sample_rate" in cold) == (True, 1, False)
    assert {(line["sample_rate"], line["Requests"], line["Errors"]) for line in sampled} == {
        (0.25, 4, 0)
    }
    assert sum(line["Requests"] for line in plane.lines) == 101


def test_errors_and_cold_starts_are_always_logged(plane: DataPlane) -> None:
    client = Client(plane.handler(sample_rate=0.001, chance=lambda: 1.0))
    client.get("/v2/health/live")
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    client.post("/v2/models/demo/infer", b"{")
    plane.runtime.failure = Unavailable("x")
    client.post("/v2/models/demo/infer", rows([1, 2, 3]))

    assert [(line["status"], line["cold"]) for line in plane.lines] == [
        (200, True), (200, True), (400, False), (503, False),
    ]  # fmt: skip
    assert [line.get("Requests") for line in plane.lines] == [None, 1, 1, 1]


@pytest.mark.parametrize("rate", [0, -1, 1.1, float("nan")])
def test_a_sample_rate_must_be_a_share(plane: DataPlane, rate: float) -> None:
    with pytest.raises(ValueError, match="sample rate"):
        plane.handler(sample_rate=rate)


@pytest.mark.parametrize("name", ['é\n"', "\ud800", "x" * 300])
def test_any_request_id_can_be_logged(plane: DataPlane, client: Client, name: str) -> None:
    client.deliver(load("apigw_infer") | {"requestContext": {"requestId": name}})

    [line] = plane.lines
    assert line["request_id"] == (ascii(name) if name == "\ud800" else name)


def test_classification_uses_the_labels_of_the_signature(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path)
    plane.register(
        "m",
        signature=Signature(
            (TensorSpec("x", "FP32", (-1, 3)),),
            (TensorSpec("y", "FP32", (-1, 3), ("a", "b", "c")),),
        ),
    )
    body = rows([1, 3, 2], outputs=[{"name": "y", "parameters": {"classification": 2}}])

    reply = Client(plane.handler()).post("/v2/models/m/infer", body)

    assert reply.json["outputs"][0]["data"] == ["6.000000:1:b", "4.000000:2:c"]
