"""Infer handler in both forms: dicts for Lambda's runtime client, bytes and `after` for ours."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.core.protocol.infer_reply import BINARY_BYTES_MAX, REPLY_BYTES_MAX
from functions.core.serving import http
from functions.infer.handler import InferHandler
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import Client, Context, DataPlane, LaterContext, reply_body, rows

CHANGING = {"server-timing", "x-cold-start"}


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    plane = DataPlane(tmp_path)
    plane.register("demo", 2.0)
    return plane


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> InferHandler:
    plane = DataPlane(tmp_path_factory.mktemp("plane"))
    plane.register("demo", 2.0)
    return plane.handler()


# --- both forms

texts = st.text(st.one_of(st.characters(), st.sampled_from('\0\\"/\x7f\u2028\u2029\n\ud800😀')))
documents = st.builds(
    lambda values, extra: json.dumps(rows(values, **extra)).encode(),
    st.lists(st.floats(width=32), min_size=2, max_size=3),
    st.fixed_dictionaries(
        {}, optional={"id": texts, "parameters": st.dictionaries(texts, texts, max_size=2)}
    ),
)
bodies = st.one_of(documents, st.binary(), texts.map(lambda text: text.encode("utf-8", "replace")))
headers = st.fixed_dictionaries(
    {},
    optional={
        "Accept-Encoding": st.sampled_from(["gzip", "identity", "br"]),
        "content-encoding": st.sampled_from(["gzip", "deflate"]),
        "X-Model-Version": st.sampled_from(["1", "prod", "2", "no!"]),
        "x-any": texts,
    },
)
paths = st.one_of(
    st.sampled_from(["/v2/models/demo/infer", "/v2", "/v2/models/demo", "/v2/models/nobody/infer"]),
    texts.map(lambda text: f"/v2/models/{text}/infer"),
)


@given(bodies, st.booleans(), headers, paths, st.sampled_from(["POST", "GET"]), texts)
def test_bytes_are_answered_as_dicts_are(
    handler: InferHandler,
    body: bytes,
    is_base64: bool,
    headers: dict[str, str],
    path: str,
    method: str,
    request_id: str,
) -> None:
    text = base64.b64encode(body).decode() if is_base64 else body.decode("utf-8", "replace")
    event = {
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "requestContext": {"requestId": request_id},
        "body": text,
        "isBase64Encoded": is_base64,
    }
    answer = handler(event, Context())
    raw = handler(json.dumps(event).encode(), Context())

    assert isinstance(answer, dict)
    assert isinstance(raw, bytes)
    replies = [answer, json.loads(raw)]
    for reply in replies:
        reply["headers"] = {n: v for n, v in reply["headers"].items() if n not in CHANGING}
    assert replies[0] == replies[1]


@pytest.mark.parametrize("text", ["\0", "\u2028\u2029", '"\\"', "\x7f\x80", "😀", "\\ud800"])
def test_any_text_of_a_reply_is_carried_exactly(plane: DataPlane, text: str) -> None:
    for in_bytes in (False, True):
        client = Client(plane.handler(), in_bytes=in_bytes)
        assert client.post("/v2/models/demo/infer", rows([1, 2, 3], id=text)).json["id"] == text


def test_only_binary_and_compressed_bodies_travel_as_base64(plane: DataPlane) -> None:
    handler = plane.handler()

    def travels_as_base64(path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        event = {"path": path, "httpMethod": "POST", "headers": headers, "body": json.dumps(body)}
        reply = handler(event, Context())
        assert isinstance(reply, dict)
        assert reply_body(reply)
        return reply["isBase64Encoded"]

    many = rows(*[[1.0, 2.0, 3.0]] * 100)
    infer = "/v2/models/demo/infer"
    assert not travels_as_base64(infer, many, {})
    assert not travels_as_base64("/v2/nothing", {}, {"accept-encoding": "gzip"})
    assert travels_as_base64(infer, many, {"accept-encoding": "gzip"})
    assert travels_as_base64(infer, many | {"parameters": {"binary_data_output": True}}, {})


@pytest.mark.parametrize("in_bytes", [False, True], ids=["dict", "bytes"])
def test_a_json_reply_may_take_all_that_lambda_passes(plane: DataPlane, in_bytes: bool) -> None:
    client = Client(plane.handler(), in_bytes=in_bytes)

    def status(size: int) -> int:
        return client.post("/v2/models/demo/infer", rows([1, 2, 3], id="x" * size)).status

    small = client.post("/v2/models/demo/infer", rows([1, 2, 3]))
    room = REPLY_BYTES_MAX - len(small.body) - sum(map(len, str(small.headers)))
    assert status(room - 500) == 200
    assert status(room + 500) == 413
    half = client.post("/v2/models/demo/infer", rows([1, 2, 3], id='"' * (room // 3)))
    assert half.status == 413  # a quote takes four bytes: it is escaped in the body and around it


@pytest.mark.parametrize("in_bytes", [False, True], ids=["dict", "bytes"])
def test_a_binary_reply_may_take_three_quarters(plane: DataPlane, in_bytes: bool) -> None:
    client = Client(plane.handler(), in_bytes=in_bytes)

    def status(count: int) -> int:
        tensor = {"name": "x", "datatype": "FP32", "shape": [count // 3, 3]}
        tensor["parameters"] = {"binary_data_size": 4 * count}
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        body = head + bytes(4 * count)
        return client.post("/v2/models/demo/infer", body, headers=headers).status

    room = BINARY_BYTES_MAX // 4 // 3 * 3
    assert status(room - 300) == 200
    assert status(room) == 413


@pytest.mark.parametrize("in_bytes", [False, True], ids=["dict", "bytes"])
@pytest.mark.parametrize("event", [[], "text", None, 7, True])
def test_an_event_that_is_no_object_is_refused(
    plane: DataPlane, event: Any, in_bytes: bool
) -> None:
    reply = Client(plane.handler(), in_bytes=in_bytes).deliver(event)

    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert "the event is no JSON object but a" in reply.json["error"]
    assert reply.json["request_id"] == "lambda-id"


@pytest.mark.parametrize("in_bytes", [False, True], ids=["dict", "bytes"])
@pytest.mark.parametrize(
    "name", ["requestContext", "rawPath", "path", "headers", "queryStringParameters", "body"]
)
@pytest.mark.parametrize("value", [5, [1], True])
def test_an_event_with_a_field_of_a_wrong_type_is_refused(
    plane: DataPlane, name: str, value: Any, in_bytes: bool
) -> None:
    event = {"path": "/v2/models/demo/infer", "httpMethod": "POST", "body": "{}", name: value}

    reply = Client(plane.handler(), in_bytes=in_bytes).deliver(event)

    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert f"{name} of the event is a {type(value).__name__}" in reply.json["error"]
    assert [line["message"] for line in plane.lines] == ["request"]


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"requestContext": {"http": "GET"}}, 400),
        ({"path": "/v2", "httpMethod": ["GET"]}, 405),
        ({"path": "/v2", "requestContext": {"http": {"method": {"GET": 1}}}}, 405),
    ],
)
def test_a_method_of_a_wrong_type_is_refused(
    plane: DataPlane, event: dict[str, Any], status: int
) -> None:
    assert Client(plane.handler()).deliver(event).status == status


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff"])
def test_bytes_that_are_no_json_are_refused(plane: DataPlane, raw: bytes) -> None:
    reply = plane.handler()(raw, Context())

    assert isinstance(reply, bytes)
    assert json.loads(reply)["statusCode"] == 400
    assert b"the event is no JSON: send an event of API Gateway" in reply


def test_an_event_that_memory_cannot_hold_is_413(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: int) -> None:
        raise MemoryError

    shortages: list[bytes] = []
    handler = plane.handler(after_shortage=lambda reply, _: shortages.append(reply))
    monkeypatch.setattr(http, "check_room", no_room)

    raw = handler(b'{"body": "{\\"id\\": 1}"}', Context())

    assert isinstance(raw, bytes)
    reply = json.loads(raw)
    assert reply["statusCode"] == 413
    assert json.loads(reply["body"])["code"] == "OUT_OF_MEMORY"
    assert shortages == [raw]


def test_handlers_take_bytes(plane: DataPlane) -> None:
    assert plane.handler().takes_bytes
    assert PrefetchingHandler.takes_bytes


# --- after the reply


@pytest.mark.parametrize("form", [dict, lambda event: json.dumps(event).encode()])
def test_the_log_line_is_written_after_the_reply(
    plane: DataPlane, form: Callable[[Any], Any]
) -> None:
    handler, context = plane.handler(), LaterContext()
    handler(form({"path": "/v2/health/live"}), context)
    assert plane.lines == []

    context.post()
    [line] = plane.lines
    assert (line["action"], line["status"], line["cold"]) == ("live", 200, True)


def test_the_latency_of_a_late_line_is_that_of_the_reply(plane: DataPlane) -> None:
    handler, context = plane.handler(), LaterContext()
    began_ns = time.perf_counter_ns()
    handler({"path": "/v2/health/live"}, context)
    elapsed_ns = time.perf_counter_ns() - began_ns
    for _ in range(100):  # time that does not count
        handler({"path": "/v2/health/live"}, LaterContext())
    context.post()

    [line] = plane.lines
    assert 0 < line["latency_ms"] * 1e6 <= elapsed_ns


def test_a_bugs_line_comes_before_that_of_its_request(plane: DataPlane) -> None:
    plane.runtime.failure = ZeroDivisionError("secret")
    context = LaterContext()
    Client(plane.handler()).post("/v2/models/demo/infer", rows([1, 2, 3]), context=context)
    assert plane.lines == []

    context.post()
    assert [line["message"] for line in plane.lines] == ["bug", "request"]
    assert any("data_plane.py" in frame for frame in plane.lines[0]["traceback"])


def test_log_lines_come_before_the_look_at_memory(plane: DataPlane) -> None:
    plane.runtime.failure = MemoryError()
    context = LaterContext()

    def look_later(_: object, context: Any) -> None:
        context.after(lambda: plane.lines.append({"message": "looked"}))

    handler = plane.handler(after_shortage=look_later)
    Client(handler).post("/v2/models/demo/infer", rows([1, 2, 3]), context=context)
    context.post()

    assert [line["message"] for line in plane.lines] == ["request", "looked"]
