"""Lambda events as AWS builds them, from HTTP requests and SQS messages."""

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
    """API Gateway resource that matched a path, with path parameters."""

    resource: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """HTTP request; its path lacks API Gateway's stage and is percent-encoded."""

    method: str
    path: str
    stage_path: str  # as the client sent it
    query: str
    headers: Headers
    body: bytes
    source_ip: str = "127.0.0.1"
    protocol: str = "HTTP/1.1"


def match(routes: Iterable[Route], path: str) -> Match | None:
    """Return the most specific API Gateway resource that matches a path.

    From the left, a plain segment is more specific than {a}, and {a} than {a+}.

    >>> routes = [Route("GET", "/v2/{path+}", "F"), Route("GET", "/v2/health", "F")]
    >>> match(routes, "/v2/models/a%20b").parameters
    {'path': 'models/a b'}
    """
    matches = []
    for resource in {route.path for route in routes}:
        if fields := re.fullmatch(_pattern(resource), path.rstrip("/") or "/"):
            parameters = {name: unquote(value) for name, value in fields.groupdict().items()}
            matches.append(Match(resource, parameters))
    return min(matches, key=lambda match: _rank(match.resource), default=None)


def _rank(resource: str) -> list[int]:
    """Return a sort key that puts specific API resources first."""
    return [
        2 if segment.endswith("+}") else int(segment.startswith("{"))
        for segment in resource.split("/")
    ]


def _pattern(resource: str) -> str:
    """Convert an API resource path to a regular expression.

    Its parameters become named groups.
    """
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
    """Return True if API Gateway passes a media type as bytes.

    A missing type counts as JSON, as in API Gateway.
    """
    kind = (content_type.split(",")[0].split(";")[0].strip() or "application/json").lower()
    patterns = {"*/*", kind, kind.split("/")[0] + "/*"}
    return not patterns.isdisjoint(map(str.lower, api.binary_media_types))


def proxy_event(api: Api, request: Request, matched: Match, request_id: str) -> dict[str, Any]:
    """Convert an HTTP request to API Gateway's Lambda proxy event, version 1.0."""
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
    """Convert SQS messages from boto3 to a Lambda event."""
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
