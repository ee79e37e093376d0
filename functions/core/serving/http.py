"""HTTP requests and responses, converted from and to API Gateway events.

An event and a reply are dicts under Lambda's runtime client, and JSON text (bytes) under ours.
"""

import binascii
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import pybase64

from functions.core.errors import InvalidRequest
from functions.core.protocol.effort import check_room, reading_bytes
from functions.core.records import field, mutable_record
from functions.core.serving.events import MARK, Event, find_body, without_body

_FIELDS = {
    "requestContext": dict,
    "rawPath": str,
    "path": str,
    "headers": dict,
    "queryStringParameters": dict,
    "body": str,
}
_CONTEXT_FIELDS = {"http": dict}
CLIENTS = 64  # cached lists of header names: a client sends the same ones each time


@mutable_record
class HttpRequest:
    """Parsed HTTP request: method, path, headers, query and body.

    `path` has no stage; header names are lower case.
    """

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes


@mutable_record
class HttpResponse:
    """HTTP response: status, body and headers.

    The handler adds headers until it is sent. A body that is not `binary` is JSON in UTF-8, which
    holds no control characters, and travels as text; a binary one travels as base64.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    binary: bool = False

    def to_event(self) -> dict[str, Any]:
        """Convert an HTTP response to API Gateway's format."""
        binary, body = self.binary, self.body
        return {
            "statusCode": self.status,
            "headers": self.headers,
            "body": pybase64.b64encode_as_string(body) if binary else str(body, "utf-8"),
            "isBase64Encoded": binary,
        }

    def to_bytes(self) -> bytes:
        """Convert an HTTP response to API Gateway's format as JSON text.

        The body's JSON is not written again: its quotes and backslashes are escaped.
        """
        if self.binary:
            body, flag = pybase64.b64encode(self.body), b"true"
        else:
            body, flag = self.body.replace(b"\\", b"\\\\").replace(b'"', b'\\"'), b"false"
        status, headers = str(self.status).encode(), _dump(self.headers)
        parts = (b'{"statusCode":', status, b',"headers":', headers, b',"body":"', body)
        return b"".join((*parts, b'","isBase64Encoded":', flag, b"}"))

    def event_size(self) -> int:
        """Return the bytes of the reply's JSON text, which Lambda limits.

        It has spaces after commas and colons, as Lambda's runtime client writes them.
        """
        if self.binary:
            body_bytes = -(-len(self.body) // 3) * 4
        else:
            body_bytes = len(self.body) + self.body.count(b'"') + self.body.count(b"\\")
        empty = HttpResponse(self.status, b"", self.headers, self.binary).to_event()
        return body_bytes + len(json.dumps(empty, ensure_ascii=False).encode("utf-8", "replace"))


def _dump(headers: dict[str, str]) -> bytes:
    try:
        return orjson.dumps(headers)
    except TypeError:  # a lone surrogate in a request id
        return json.dumps(headers).encode()


def json_response(status: int, value: object) -> HttpResponse:
    """Return an HTTP response with `value` as its JSON body.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot spell.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    body = text.encode("utf-8", "replace")
    return HttpResponse(status, body, {"content-type": "application/json"})


def load_event(raw: bytes) -> Any:
    """Parse a Lambda event in JSON; decode a base64 "body" to bytes.

    Raises:
        InvalidRequest: the event is no JSON.
        MemoryError: there is not enough to read it.
    """
    if (body := find_body(raw, is_checked=True)) is not None:  # base64 holds no quote
        try:
            start, end = body
            event = orjson.loads(without_body(raw, body))
            if event["body"] == MARK and event["isBase64Encoded"] is True:
                event["body"] = pybase64.b64decode(memoryview(raw)[start:end], None, True)
                return event
        except (ValueError, LookupError, TypeError):
            pass  # an unusual event: it is read as a whole
    return _load_whole(raw)


def _load_whole(raw: bytes) -> Any:
    check_room(reading_bytes(raw, 0, len(raw)))
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw)  # takes lone surrogates, too
    except (ValueError, RecursionError):
        raise InvalidRequest("the event is no JSON: send an event of API Gateway") from None


def request_id(event: object) -> str:
    """Return API Gateway's id of the request in an event, or "".

    Raises:
        InvalidRequest: the event is no JSON object.
    """
    if not isinstance(event, dict):
        kind = type(event).__name__
        raise InvalidRequest(f"the event is no JSON object but a {kind}: send one of API Gateway")
    context = event.get("requestContext")
    return str(context.get("requestId") or "") if isinstance(context, dict) else ""


def parse_event(event: Event, root: str) -> HttpRequest:
    """Parse an API Gateway event into an HTTP request.

    Accepts events of REST APIs (payload v1), HTTP APIs and function URLs (v2).

    `root` is the first path segment that the function serves, e.g. "/v2". Segments before it are a
    stage or the base path of a custom domain, and are removed.

    Raises:
        InvalidRequest: a field has another type than API Gateway's, or the body is labelled base64
            and is not.
    """
    try:
        return _parse(event, root)
    except (AttributeError, TypeError):
        _check_fields(event, _FIELDS)
        _check_fields(event.get("requestContext") or {}, _CONTEXT_FIELDS)
        raise  # a bug of ours


def _check_fields(event: Event, fields: Mapping[str, type]) -> None:
    """Refuse an event with a field of a wrong type."""
    for name, expected in fields.items():
        value = event.get(name)
        if value and not isinstance(value, expected):
            kind = type(value).__name__
            raise InvalidRequest(f"{name} of the event is a {kind}: send an event of API Gateway")


def _parse(event: Event, root: str) -> HttpRequest:
    context = event.get("requestContext") or {}
    http = context.get("http") or {}
    path = event.get("rawPath") or event.get("path") or "/"
    headers = event.get("headers") or {}
    query = event.get("queryStringParameters")
    return HttpRequest(
        str(event.get("httpMethod") or http.get("method") or "GET"),
        _below(_unquoted(path) if "%" in path else path, root),
        {
            name: str(value)
            for name, value in zip(_lower(tuple(headers)), headers.values(), strict=True)
        },
        {str(name): str(value) for name, value in query.items()} if query else {},
        _body(event),
    )


@lru_cache(maxsize=CLIENTS)
def _lower(names: tuple[str, ...]) -> list[str]:
    """Return the names of a request's headers in lower case."""
    return [name.lower() for name in names]


def _body(event: Event) -> bytes:
    body = event.get("body") or ""
    if isinstance(body, bytes):  # decoded by `load_event`
        return body
    if not event.get("isBase64Encoded"):
        return body.encode("utf-8", "surrogatepass")
    try:
        return pybase64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("the body is labelled base64 and is not") from error


def _unquoted(path: str) -> str:
    from urllib.parse import unquote  # not at the top: few paths need it, and it takes 2 ms

    return unquote(path)


def _below(path: str, root: str) -> str:
    """Remove the stage or base path: all segments before `root`.

    >>> _below("/prod/v2/models/m", "/v2"), _below("/v2", "/v2"), _below("/v20/x", "/v2")
    ('/v2/models/m', '/v2', '/v20/x')
    """
    if path.startswith(root + "/"):
        return path
    at = (path + "/").find(root + "/")
    return path[at:] if at >= 0 else path
