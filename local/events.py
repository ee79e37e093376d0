"""Events as AWS builds them, from what came over HTTP or out of a queue."""

import base64
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from local.cloudformation import ACCOUNT, REGION
from local.template import Api, Route

Headers = Sequence[tuple[str, str]]
DROPPED = {
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
}


@dataclass(frozen=True, slots=True)
class Match:
    """The path of the API that a request means, and what its parameters are."""

    resource: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, its path without the stage and still percent-encoded."""

    method: str
    path: str
    stage_path: str  # as the client sent it
    query: str
    headers: Headers
    body: bytes
    source_ip: str = "127.0.0.1"
    protocol: str = "HTTP/1.1"


def match(routes: Iterable[Route], path: str) -> Match | None:
    """The most specific resource for `path`: a plain segment before {a}, {a} before {a+}, from the left.

    >>> match([Route("GET", "/v2/{path+}", "F"), Route("GET", "/v2/health", "F")], "/v2/models/a%20b").parameters
    {'path': 'models/a b'}
    """
    found = []
    for resource in {route.path for route in routes}:
        if matched := re.fullmatch(_pattern(resource), path.rstrip("/") or "/"):
            rank = [
                2 if segment.endswith("+}") else int(segment.startswith("{"))
                for segment in resource.split("/")
            ]
            found.append(
                (
                    rank,
                    Match(
                        resource,
                        {name: unquote(value) for name, value in matched.groupdict().items()},
                    ),
                )
            )
    return min(found, key=lambda one: one[0])[1] if found else None


def _pattern(resource: str) -> str:
    """A resource path as a regular expression with its parameters as named groups."""
    escaped = re.escape(resource)
    return re.sub(
        r"\\\{(\w+)(\\\+)?\\\}",
        lambda part: f"(?P<{part[1]}>{'.+' if part[2] else '[^/]+'})",
        escaped,
    )


def find_route(routes: Sequence[Route], method: str, resource: str) -> Route | None:
    by_method = {route.method: route for route in routes if route.path == resource}
    return by_method.get(method) or by_method.get("ANY")


def is_binary(api: Api, content_type: str) -> bool:
    """Whether the API treats a body of this type as bytes. A missing type counts as JSON, as in API Gateway."""
    kind = (content_type.split(",")[0].split(";")[0].strip() or "application/json").lower()
    return any(
        one in ("*/*", kind, kind.split("/")[0] + "/*")
        for one in map(str.lower, api.binary_media_types)
    )


def proxy_event(api: Api, request: Request, matched: Match, request_id: str) -> dict[str, Any]:
    """The Lambda proxy event of a REST API (payload version 1.0)."""
    port = "443"
    forwarded = [
        ("X-Amzn-Trace-Id", f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}"),
        ("X-Forwarded-For", request.source_ip),
        ("X-Forwarded-Port", port),
        ("X-Forwarded-Proto", "https"),
    ]
    headers = [
        (name, value) for name, value in request.headers if name.lower() not in DROPPED
    ] + forwarded
    by_name = {name.lower(): value for name, value in headers}
    query = parse_qsl(request.query, keep_blank_values=True)
    now = time.time()
    body: str | None = None
    binary = bool(request.body) and is_binary(api, by_name.get("content-type", ""))
    if request.body:
        body = (
            base64.b64encode(request.body).decode()
            if binary
            else request.body.decode("utf-8", "replace")
        )
    return {
        "resource": matched.resource,
        "path": request.path,
        "httpMethod": request.method,
        "headers": dict(headers),
        "multiValueHeaders": _grouped(headers),
        "queryStringParameters": dict(query) or None,
        "multiValueQueryStringParameters": _grouped(query) or None,
        "pathParameters": matched.parameters or None,
        "stageVariables": None,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": api.id,
            "domainName": by_name.get("host", "").split(":")[0],
            "domainPrefix": api.id,
            "extendedRequestId": uuid.uuid4().hex[:15] + "=",
            "httpMethod": request.method,
            "identity": {
                "sourceIp": request.source_ip,
                "userAgent": by_name.get("user-agent"),
                "apiKey": None,
            },
            "path": request.stage_path,
            "protocol": request.protocol,
            "requestId": request_id,
            "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "requestTimeEpoch": int(now * 1000),
            "resourceId": "local",
            "resourcePath": matched.resource,
            "stage": api.stage,
        },
        "body": body,
        "isBase64Encoded": binary,
    }


def sqs_event(messages: Iterable[Mapping[str, Any]], queue_arn: str) -> dict[str, Any]:
    """The event of an SQS event source mapping, from the messages that boto3 received."""
    return {
        "Records": [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": {
                    name: str(value) for name, value in message.get("Attributes", {}).items()
                },
                "messageAttributes": {
                    name: {key[0].lower() + key[1:]: value for key, value in attribute.items()}
                    for name, attribute in message.get("MessageAttributes", {}).items()
                },
                "md5OfBody": message["MD5OfBody"],
                "eventSource": "aws:sqs",
                "eventSourceARN": queue_arn,
                "awsRegion": REGION,
            }
            for message in messages
        ]
    }


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return groups
