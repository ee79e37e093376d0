"""HTTP requests and responses as Lambda events: as dicts, and as JSON text."""

import base64
import json
from typing import Any

import pytest
from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller
from hypothesis import given
from hypothesis import strategies as st

from functions.core.errors import InvalidRequest, PayloadTooLarge
from functions.core.protocol.infer_reply import REPLY_BYTES_MAX
from functions.core.serving import events, http
from functions.core.serving.events import find_body, parse_head, without_body
from functions.core.serving.http import HttpResponse, json_response, load_event, parse_event
from functions.infer.responses import check_size
from tests.data_plane import reply_body

HEADERS = {"content-type": "application/json", "x-request-id": "grün \u2028 \U0001f600"}


# --- events


def as_text(event: Any, spaces: bool) -> bytes:
    separators = (", ", ": ") if spaces else (",", ":")
    return json.dumps(event, separators=separators).encode()


bodies = st.one_of(
    st.none(),
    st.text(),
    st.sampled_from(["*", "%%%", "QUI=", "QUI", 'a"body":"b', "\\", '","body":"']),
    st.binary(max_size=200).map(lambda raw: base64.b64encode(raw).decode()),
)
members = st.dictionaries(
    st.sampled_from(["headers", "body", "requestContext", 'x"body', "queryStringParameters"]),
    st.recursive(bodies, lambda inner: st.dictionaries(st.sampled_from(["body", "a"]), inner)),
)


@given(
    st.permutations(["members", "body", "flag"]),
    members,
    bodies,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, events.LONG_BYTES]),
)
def test_an_event_in_bytes_is_read_as_json_reads_it(
    order: list[str],
    more: dict[str, Any],
    body: str | None,
    flag: bool,
    spaces: bool,
    long_bytes: int,
) -> None:
    parts: dict[str, dict[str, Any]] = {
        "members": {name: value for name, value in more.items() if name != "body"},
        "body": {"body": body},
        "flag": {"isBase64Encoded": flag},
    }
    event = {name: value for part in order for name, value in parts[part].items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "LONG_BYTES", long_bytes)
        loaded = load_event(as_text(event, spaces))

    if isinstance(loaded["body"], bytes):
        assert flag
        assert isinstance(body, str)
        loaded["body"] = base64.b64encode(loaded["body"]).decode()
    assert loaded == event


def test_a_base64_body_is_decoded_without_being_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    loads = http.orjson.loads

    def look(text: bytes) -> Any:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(http.orjson, "loads", look)
    event = {"path": "/v2", "body": base64.b64encode(b"x" * 999).decode(), "isBase64Encoded": True}

    assert load_event(as_text(event, True))["body"] == b"x" * 999
    assert parsed == [b'{"path": "/v2", "body": "*", "isBase64Encoded": true}']


@pytest.mark.parametrize(
    ("event", "body"),
    [
        ({"body": "QU\\u0049=", "isBase64Encoded": True}, b"AB"),
        ({"body": "QUI=", "isBase64Encoded": False}, b"QUI="),
        ({"requestContext": {"body": "QUI="}, "isBase64Encoded": True}, b""),
        ({"requestContext": {"body": "QUI="}, "body": "QUM=", "isBase64Encoded": True}, b"AC"),
        ({"body": {"body": "QUI="}, "path": "*"}, None),
    ],
)
def test_an_unusual_body_is_read_as_a_whole(event: dict[str, Any], body: bytes | None) -> None:
    raw = as_text(event, False).replace(b"\\\\", b"\\")

    if body is None:
        assert load_event(raw)["body"] == {"body": "QUI="}
    else:
        assert parse_event(load_event(raw), "/v2").body == body


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"body": "\xff"}', b"[" * 100_000, b"nul"])
def test_an_event_that_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the event is no JSON: send an event of API Gateway"):
        load_event(raw)


@pytest.mark.parametrize("event", [[], "text", None, 7])
def test_an_event_that_is_no_object_is_refused(event: Any) -> None:
    with pytest.raises(InvalidRequest, match="the event is no JSON object but a"):
        http.request_id(load_event(json.dumps(event).encode()))


def test_the_head_of_an_event_needs_no_body() -> None:
    event = {"path": "/v2", "body": "A" * 1000, "headers": {"a": "b"}}
    raw = json.dumps(event).encode()
    body = find_body(raw)

    assert body is not None
    assert len(without_body(raw, body)) < 80
    assert parse_head(raw) == event | {"body": "*"}
    with pytest.raises(ValueError, match="no JSON object"):
        parse_head(b"[]")


# --- replies

texts = st.text(st.one_of(st.characters(), st.sampled_from('\0\\"/\x7f\u2028\u2029\n\ud800😀')))


@given(st.one_of(texts, st.dictionaries(texts, texts)), st.dictionaries(texts, texts, max_size=3))
def test_a_json_body_travels_as_text_in_both_forms(value: Any, headers: dict[str, str]) -> None:
    response = json_response(200, value)
    response.headers |= headers
    event = response.to_event()

    assert json.loads(response.to_bytes()) == event
    assert event["isBase64Encoded"] is False
    assert event["body"].encode() == response.body


@given(st.binary())
def test_a_binary_body_travels_as_base64_in_both_forms(body: bytes) -> None:
    response = HttpResponse(200, body, dict(HEADERS), binary=True)
    event = response.to_event()

    assert json.loads(response.to_bytes()) == event
    assert event["isBase64Encoded"] is True
    assert reply_body(event) == body


def written(response: HttpResponse) -> bytes:
    """Return the reply as Lambda's runtime client for Python 3.13 posts it."""
    text, _ = LambdaMarshaller().marshal_response(response.to_event())
    assert isinstance(text, str)
    return text.encode()


RESPONSES = {
    "text": json_response(200, ['"\\/\u2028\x7f\0 grün', 0.5] * 9),
    "binary": HttpResponse(200, b"\xff" * 100, dict(HEADERS), binary=True),
    "padded": HttpResponse(404, b"\xff" * 101, {}, binary=True),
    "empty": HttpResponse(200, b"", dict(HEADERS)),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_the_size_of_a_reply_is_that_which_lambda_counts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EXECUTION_ENV", "AWS_Lambda_python3.13")
    response = RESPONSES[name]

    assert response.event_size() == len(written(response))
    assert len(response.to_bytes()) <= response.event_size()


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_a_reply_of_lambdas_limit_passes_and_a_larger_one_does_not(
    binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EXECUTION_ENV", "AWS_Lambda_python3.13")
    unit = b"\xff" * 3 if binary else b'""'  # 4 bytes, in base64 or with its quotes escaped
    response = HttpResponse(200, b"", dict(HEADERS), binary)
    response.body = unit * ((REPLY_BYTES_MAX - response.event_size()) // 4)
    response.headers["x-request-id"] += "x" * (REPLY_BYTES_MAX - response.event_size())

    assert len(written(response)) == REPLY_BYTES_MAX
    check_size(response)
    response.headers["x-request-id"] += "x"
    with pytest.raises(PayloadTooLarge, match=f"takes {REPLY_BYTES_MAX + 1} bytes"):
        check_size(response)
