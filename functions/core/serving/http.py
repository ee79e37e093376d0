"""HTTP requests and responses, converted from and to API Gateway events."""

import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pybase64

from functions.core.errors import InvalidRequest

Event = Mapping[str, Any]


@dataclass(slots=True)
class HttpRequest:
    """Parsed HTTP request: method, path, headers, query and body.

    `path` has no stage; header names are lower case.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    request_id: str


@dataclass(slots=True)
class HttpResponse:
    """HTTP response: status, body and headers.

    The handler adds headers until it is sent.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def to_event(self) -> dict[str, Any]:
        """Convert an HTTP response to API Gateway's format, body in base64."""
        return {
            "statusCode": self.status,
            "headers": self.headers,
            "body": pybase64.b64encode_as_string(self.body),
            "isBase64Encoded": True,
        }


def json_response(status: int, value: object) -> HttpResponse:
    """Return an HTTP response with `value` as its JSON body.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot spell.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    body = text.encode("utf-8", "replace")
    return HttpResponse(status, body, {"content-type": "application/json"})


def parse_event(event: Event, root: str) -> HttpRequest:
    """Parse an API Gateway event into an HTTP request.

    Accepts events of REST APIs (payload v1), HTTP APIs and function URLs (v2).

    `root` is the first path segment that the function serves, e.g. "/v2". Segments before it are a
    stage or the base path of a custom domain, and are removed.

    Raises:
        InvalidRequest: the body is labelled base64 and is not.
    """
    context = event.get("requestContext") or {}
    http = context.get("http") or {}
    path = event.get("rawPath") or event.get("path") or "/"
    headers = event.get("headers") or {}
    body = event.get("body") or ""
    if event.get("isBase64Encoded"):
        try:
            raw = pybase64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest("the body is labelled base64 and is not") from error
    else:
        raw = body.encode("utf-8", "surrogatepass")
    query = event.get("queryStringParameters")
    return HttpRequest(
        event.get("httpMethod") or http.get("method") or "GET",
        _below(unquote(path) if "%" in path else path, root),
        dict(zip(map(str.lower, headers), map(str, headers.values()), strict=True)),
        {str(name): str(value) for name, value in query.items()} if query else {},
        raw,
        str(context.get("requestId") or ""),
    )


def _below(path: str, root: str) -> str:
    """Remove the stage or base path: all segments before `root`.

    >>> _below("/prod/v2/models/m", "/v2"), _below("/v2", "/v2"), _below("/v20/x", "/v2")
    ('/v2/models/m', '/v2', '/v20/x')
    """
    if path.startswith(root + "/"):
        return path
    at = (path + "/").find(root + "/")
    return path[at:] if at >= 0 else path
