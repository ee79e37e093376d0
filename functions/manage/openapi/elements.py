"""Elements that the OpenAPI documents share: access, scopes and error replies."""

from collections.abc import Iterable, Mapping
from typing import Any

from functions.core.access.grants import Scope

Document = dict[str, Any]

OPENAPI = "3.1.0"
SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "Access key: Authorization: Bearer mfy_…",
    },
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "Access key."},
}
EITHER_KEY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
EXAMPLES = {
    400: ("INVALID_REQUEST", "limit: Input should be less than or equal to 100"),
    401: ("KEY_INVALID", "the access key is mistyped, unknown, revoked or expired"),
    403: ("SCOPE_MISSING", "this needs the scope deploy; yours has read"),
    404: ("MODEL_NOT_FOUND", "Request for unknown model: 'digits' is not found"),
    409: ("STATE_CONFLICT", "version 3 of 'digits' is REJECTED, not READY"),
    413: ("PAYLOAD_TOO_LARGE", "the body has more than 67108864 bytes after decompression"),
    415: ("UNSUPPORTED_ENCODING", "content-encoding 'br' is not offered: use gzip or deflate"),
    429: ("TOO_MANY_REQUESTS", "too many invalid access keys came; try again later"),
    503: ("UNAVAILABLE", "the registry does not answer; try again"),
    504: ("TIMED_OUT", "no answer within the time limit"),
}
MEANINGS = {
    400: "The request is wrong; the text names the field.",
    401: "No access key came, or none that is valid.",
    403: "The access key lacks the scope.",
    404: "There is none of this name, or not for this key.",
    409: "The present state forbids it; with `revision` where another one was expected.",
    413: "The body or the reply is too large.",
    415: "The body's compression is not offered.",
    429: "Too many requests or invalid keys; retry after the seconds in `retry-after`.",
    503: "A dependency failed, or the model is not ready; retry after `retry-after` seconds.",
    504: "No answer within the time limit.",
}


def error_responses(statuses: Iterable[int]) -> Document:
    """Return the error replies of an operation by status."""
    return {str(status): _error_response(status) for status in sorted(statuses)}


def _error_response(status: int) -> Document:
    code, text = EXAMPLES[status]
    example = {"error": text, "code": code, "request_id": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"}
    return error_response(status, "ErrorDocument", example)


def error_response(status: int, schema: str, example: Document) -> Document:
    """Return an error reply with a named schema and an example."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    return {"description": MEANINGS[status], "content": {"application/json": content}}


def scope_statuses(scope: Scope | None) -> set[int]:
    """Return the statuses by which a request without permission is answered.

    Every key has the scope `read`. Two different keys are a bad request.
    """
    if scope is None:
        return set()
    return {400, 401, 429, 503} | (set() if scope is Scope.READ else {403})


def access(scope: Scope | None) -> Document:
    """Return the field `security` of an operation."""
    return {"security": [] if scope is None else EITHER_KEY}


def scope_text(scope: Scope | None) -> str:
    """Return a sentence about the key that an operation needs."""
    if scope is None:
        return "Needs no key."
    return "Needs any key." if scope is Scope.READ else f"Needs a key with the scope `{scope}`."


def joined(*sentences: str | None) -> str:
    """Return the text of the sentences that there are."""
    return " ".join(sentence for sentence in sentences if sentence)


def without_titles(schema: Any) -> Any:
    """Return a schema without the titles that pydantic makes of names.

    >>> without_titles({"title": "A", "properties": {"title": {"title": "Title"}}})
    {'properties': {'title': {}}}
    """
    if isinstance(schema, list):
        return [without_titles(value) for value in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: {key: without_titles(entry) for key, entry in value.items()}
        if name == "properties"
        else without_titles(value)
        for name, value in schema.items()
        if not (name == "title" and isinstance(value, str))
    }
