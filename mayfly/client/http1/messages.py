"""HTTP requests and replies as both transports carry them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlencode

from mayfly.client import errors
from mayfly.client.errors import MayflyError

Body: TypeAlias = bytes | bytearray | memoryview

_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """HTTP request; `path` begins after the base URL.

    `safe` means that it may be sent twice: it changes nothing, or has an Idempotency-Key.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""
    safe: bool = True
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """HTTP reply; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body's JSON document.

        Raises:
            ServerError: the body is no JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise errors.ServerError(
                f"the reply is no JSON but begins with {self.body[:40]!r}: "
                "is the URL that of a Mayfly stack, with its stage?",
                status=self.status,
            ) from None


def json_request(method: str, path: str, document: object = None, **more: Any) -> Request:
    """Return a request whose body is a JSON document."""
    if document is None:
        return Request(method, path, **more)
    headers = {**_JSON, **more.pop("headers", {})}
    body = json.dumps(document, separators=(",", ":")).encode()
    return Request(method, path, headers=headers, body=body, **more)


def listed(document: Any, name: str) -> list[Any]:
    """Return the list in a document.

    Raises:
        ServerError: there is none, so that another server answered.
    """
    items = document.get(name) if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise errors.ServerError(f"the reply has no {name}: is the URL that of a Mayfly stack?")
    return items


def with_query(path: str, **query: object) -> str:
    """Return a path with a query of the non-empty fields.

    >>> with_query("/models", search="a b", state="", cursor=None)
    '/models?search=a+b'
    """
    fields = {name: value for name, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(fields)}" if fields else path


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, None without a usable one.

    >>> retry_after({"retry-after": "2"}), retry_after({"retry-after": "Wed"}), retry_after({})
    (2.0, None, None)
    """
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None


def error_of(reply: Reply) -> MayflyError:
    """Return the error that an HTTP reply stands for."""
    document = _document(reply)
    nested = document.get("error")
    if isinstance(nested, dict):  # as OpenAI's API writes it
        document = {**document, **nested, "error": nested.get("message")}
    text = str(document.get("error") or document.get("message") or "") or _without_text(reply)
    facts: dict[str, Any] = {
        "status": reply.status,
        "code": str(document.get("code") or ""),
        "request_id": str(document.get("request_id") or reply.headers.get("x-request-id", "")),
        "details": document.get("details"),
    }
    kind = _class(reply.status, facts["code"])
    if issubclass(kind, errors.QuotaExceeded | errors.Unavailable):
        facts["retry_after"] = retry_after(reply.headers)
    if issubclass(kind, errors.InvalidInput):
        facts["input"] = str(document.get("param") or "")  # OpenAI's API names the field
    if kind is errors.Conflict:
        revision = document.get("revision")
        facts["revision"] = revision if isinstance(revision, int) else None
    return kind(text, **facts)


def _class(status: int, code: str) -> type[MayflyError]:
    if code.upper() == "MODEL_NOT_FOUND":  # OpenAI's API has codes in lower case
        return errors.ModelNotFound
    return _CLASSES.get(status) or (errors.ServerError if status >= 500 else errors.InvalidInput)


_CLASSES: dict[int, type[MayflyError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    429: errors.QuotaExceeded,
    501: errors.InvalidInput,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.TimedOut,
}


def _document(reply: Reply) -> dict[str, Any]:
    try:
        document = json.loads(reply.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _without_text(reply: Reply) -> str:
    if reply.status == 401:
        return "the key is missing or not valid: set MAYFLY_KEY, or run mayfly login"
    if reply.status == 403:
        return "the URL or its signature is refused: does the URL end with the stage, e.g. /live?"
    return f"the service answered {reply.status} without a text"
