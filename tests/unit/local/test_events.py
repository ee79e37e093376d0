"""Events and answers of the local stack, in the formats of API Gateway and SQS."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from local.events import Match, Request, find_route, is_binary, match, proxy_event, sqs_event
from local.execution.environment import exit_reason
from local.execution.pool import Result
from local.gateway import Refused, gateway_response, proxy_response, streamed_response
from local.poller import failed_messages
from local.template import Api, GatewayResponse, Route

ROUTES = (
    Route("GET", "/v2", "F"),
    Route("GET", "/v2/{path+}", "F"),
    Route("POST", "/v2/{path+}", "F"),
    Route("ANY", "/v2/models/{name}", "G"),
    Route("GET", "/v2/health/ready", "H"),
)


def make_api(types: tuple[str, ...] = ("*/*",), **responses: GatewayResponse) -> Api:
    return Api("api", "prod", types, responses, ROUTES)


@pytest.mark.parametrize(
    ("path", "resource", "parameters"),
    [
        ("/v2", "/v2", {}),
        ("/v2/", "/v2", {}),
        ("/v2/health/ready", "/v2/health/ready", {}),
        ("/v2/health/ready/", "/v2/health/ready", {}),
        ("/v2/models/a%20b", "/v2/models/{name}", {"name": "a b"}),
        ("/v2/models/a/infer", "/v2/{path+}", {"path": "models/a/infer"}),
    ],
)
def test_the_most_specific_resource_wins(
    path: str, resource: str, parameters: dict[str, str]
) -> None:
    assert match(ROUTES, path) == Match(resource, parameters)


@pytest.mark.parametrize("path", ["/", "/v1", "/v22", "/prod/v2"])
def test_other_paths_have_no_resource(path: str) -> None:
    assert match(ROUTES, path) is None


def test_methods_are_looked_up_within_the_resource() -> None:
    assert find_route(ROUTES, "DELETE", "/v2/models/{name}") == ROUTES[3]
    # another resource, /v2/{path+}, has a POST
    assert find_route(ROUTES, "POST", "/v2/health/ready") is None


def test_a_proxy_event_holds_the_request_as_received() -> None:
    headers = [
        ("Host", "h:1"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Content-Length", "2"),
        ("user-agent", "ua"),
    ]
    request = Request("POST", "/v2/a%20b", "/prod/v2/a%20b", "q=1&q=%202&e=", headers, b"\x00\xff")
    event = proxy_event(make_api(), request, Match("/v2/{path+}", {"path": "a b"}), "id")

    assert event["path"] == "/v2/a%20b"
    assert event["resource"] == event["requestContext"]["resourcePath"] == "/v2/{path+}"
    assert event["requestContext"]["path"] == "/prod/v2/a%20b"
    assert event["headers"]["X-Twice"] == "2"
    assert event["multiValueHeaders"]["X-Twice"] == ["1", "2"]
    assert "Content-Length" not in event["headers"]
    assert event["queryStringParameters"] == {"q": " 2", "e": ""}
    assert event["multiValueQueryStringParameters"] == {"q": ["1", " 2"], "e": [""]}
    assert event["requestContext"]["identity"]["userAgent"] == "ua"
    assert base64.b64decode(event["body"]) == b"\x00\xff"
    assert event["isBase64Encoded"] is True
    json.dumps(event)


def test_an_empty_request_has_nulls() -> None:
    request = Request("GET", "/v2", "/prod/v2", "", [], b"")
    event = proxy_event(make_api(), request, Match("/v2", {}), "id")

    assert event["body"] is None
    assert event["queryStringParameters"] is None
    assert event["multiValueQueryStringParameters"] is None
    assert event["pathParameters"] is None
    assert event["stageVariables"] is None
    assert event["isBase64Encoded"] is False


@pytest.mark.parametrize(
    ("types", "content_type", "binary"),
    [
        (("*/*",), "", True),
        ((), "application/octet-stream", False),
        (("application/octet-stream",), "application/octet-stream; a=b", True),
        (("image/*",), "image/png", True),
        (("image/*",), "", False),
    ],
)
def test_a_body_is_binary_if_its_media_type_matches(
    types: tuple[str, ...], content_type: str, binary: bool
) -> None:
    assert is_binary(make_api(types), content_type) is binary


def test_a_function_s_answer_becomes_an_http_response() -> None:
    answer = {
        "statusCode": 200,
        "headers": {"X-One": 1, "x-many": "lost", "Server": "mine", "Content-Length": "999"},
        "multiValueHeaders": {"X-Many": ["a", "b"]},
        "body": base64.b64encode(b"\x00").decode(),
        "isBase64Encoded": True,
    }
    response = proxy_response(make_api(), json.dumps(answer).encode(), "")

    assert (response.status, response.body) == (200, b"\x00")
    assert response.headers["X-One"] == "1"
    assert response.headers.getall("X-Many") == ["a", "b"]
    assert response.headers["x-amzn-Remapped-Server"] == "mine"
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        [],
        {},
        {"statusCode": "x"},
        {"statusCode": 200, "body": {}},
        {"statusCode": 200, "headers": 5},
        {"statusCode": 200, "body": "?", "isBase64Encoded": True},
    ],
)
def test_a_malformed_answer_is_refused(answer: Any) -> None:
    with pytest.raises(Refused, match="INTEGRATION_FAILURE"):
        proxy_response(make_api(), json.dumps(answer).encode(), "")


@pytest.mark.parametrize(
    "head",
    [
        {"statusCode": True},
        {"statusCode": 99},
        {"statusCode": 100},
        {"statusCode": 600},
        {"statusCode": -1},
        {"statusCode": 200, "headers": {"X-A": "b\r\nSet-Cookie: c"}},
        {"statusCode": 200, "headers": {"X-A": "b\0"}},
        {"statusCode": 200, "headers": {"X A": "b"}},
        {"statusCode": 200, "headers": {"": "b"}},
        {"statusCode": 200, "multiValueHeaders": {"X-A": ["b", "c\n"]}},
    ],
    ids=str,
)
def test_a_head_that_cannot_be_sent_is_refused(head: dict[str, Any]) -> None:
    metadata = json.dumps(head).encode()

    with pytest.raises(Refused, match="INTEGRATION_FAILURE"):
        proxy_response(make_api(), metadata, "")
    with pytest.raises(Refused, match="INTEGRATION_FAILURE"):
        asyncio.run(streamed_response(as_stream([metadata + bytes(8)])))


def test_gateway_responses_follow_the_template() -> None:
    api = make_api(
        DEFAULT_4XX=GatewayResponse(None, '{"error": $context.error.messageString}'),
        MISSING_AUTHENTICATION_TOKEN=GatewayResponse(404, '{"error": "no"}', {"X-A": "b"}),
    )

    missing = gateway_response(api, "MISSING_AUTHENTICATION_TOKEN", "id")
    assert (missing.status, missing.body, missing.headers["X-A"]) == (404, b'{"error": "no"}', "b")
    assert gateway_response(api, "THROTTLED", "id").body == b'{"error": "Too Many Requests"}'
    failure = gateway_response(api, "INTEGRATION_FAILURE", "id")
    assert failure.body == b'{"message":"Internal server error"}'


async def as_stream(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_streams_metadata_ends_at_eight_nulls(size: int) -> None:
    metadata = b'{"statusCode": 206, "headers": {"X-A": "b", "Connection": "c"}, "cookies": ["d"]}'
    stream = metadata + bytes(8) + b"\0payload"
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]

    async def read() -> tuple[Any, bytes]:
        rest = as_stream(parts)
        response, payload = await streamed_response(rest)
        return response, b"".join([payload, *[part async for part in rest]])

    response, payload = asyncio.run(read())

    assert (response.status, payload) == (206, b"\0payload")
    assert {name.lower(): value for name, value in response.headers.items()} == {
        "x-a": "b",
        "set-cookie": "d",
        "content-type": "application/json",
    }


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b'{"statusCode": 200}',
        b'{"statusCode": 200}' + bytes(7),
        b"{}" + bytes(8),
        b"[]" + bytes(8),
        b"text" + bytes(8),
        b'{"statusCode": 200}' + b" " * 16_384 + bytes(8),
        b'{"statusCode": 200, "cookies": ["a\\nb"]}' + bytes(8),
    ],
    ids=[
        "empty",
        "no delimiter",
        "seven",
        "no status",
        "no object",
        "no JSON",
        "over 16 KB",
        "a cookie of two lines",
    ],
)
def test_a_stream_without_metadata_is_a_failure(stream: bytes) -> None:
    with pytest.raises(Refused) as refused:
        asyncio.run(streamed_response(as_stream([stream])))

    assert refused.value.kind == "INTEGRATION_FAILURE"


def test_an_sqs_event_has_lambda_s_field_names() -> None:
    message = {
        "MessageId": "m",
        "ReceiptHandle": "r",
        "Body": "b",
        "MD5OfBody": "5",
        "Attributes": {"ApproximateReceiveCount": 1},
        "MessageAttributes": {"a": {"StringValue": "v", "DataType": "String"}},
    }
    (record,) = sqs_event([message], "arn:aws:sqs:us-east-1:1:q")["Records"]

    assert record == {
        "messageId": "m",
        "receiptHandle": "r",
        "body": "b",
        "md5OfBody": "5",
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {"a": {"stringValue": "v", "dataType": "String"}},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:1:q",
        "awsRegion": "us-east-1",
    }


@pytest.mark.parametrize(
    ("payload", "failed"),
    [
        ("null", ""),
        ("", ""),
        ("{}", ""),
        ('{"batchItemFailures": null}', ""),
        ('{"batchItemFailures": []}', ""),
        ('{"batchItemFailures": [{"itemIdentifier": "b"}]}', "b"),
        ('{"batchItemFailures": [{"itemIdentifier": "z"}]}', "abc"),
        ('{"batchItemFailures": [{"itemIdentifier": null}]}', "abc"),
        ('{"batchItemFailures": [{}]}', "abc"),
        ('{"batchItemFailures": 5}', "abc"),
        ('"text"', "abc"),
        ("{", "abc"),
    ],
)
def test_malformed_partial_failures_fail_the_whole_batch(payload: str, failed: str) -> None:
    assert failed_messages(Result("id", payload.encode(), False, ""), "abc", True) == set(failed)


def test_without_partial_failures_an_error_fails_the_whole_batch() -> None:
    assert failed_messages(Result("id", b"{", False, ""), "abc", False) == set()
    assert failed_messages(Result("id", b"null", True, ""), "abc", True) == set("abc")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-9, "Runtime exited with error: signal: killed"),
        (-11, "Runtime exited with error: signal: segmentation fault"),
        (3, "Runtime exited with error: exit status 3"),
        (0, "Runtime exited without providing a reason"),
    ],
)
def test_exit_statuses_have_lambda_s_messages(status: int, reason: str) -> None:
    assert exit_reason(status) == reason
