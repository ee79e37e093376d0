"""Errors of API and registration: HTTP status codes, length limit of texts.

Grouped by who is at fault and whether retrying helps:

    PlatformError
    ├── InvalidRequest         the caller must change the request         400
    │   ├── Unauthenticated    no access key came, or none that is valid  401
    │   ├── Forbidden          the access key lacks a scope               403
    │   ├── PathNotFound       nothing is at this path                    404
    │   ├── MethodNotAllowed   the path does not support this method      405
    │   ├── PayloadTooLarge    the body or the answer exceeds a limit     413
    │   ├── UnsupportedEncoding  the body's compression is not offered    415
    │   ├── TooManyRequests    try again later                            429
    │   └── ExecutionFailed    the model fails on these values            400
    ├── ModelNotFound          no such model, version or alias            404
    ├── KeyNotFound            no such access key                         404
    ├── UploadNotFound         no such upload                             404
    ├── StateConflict          the state in the registry forbids it       409
    │   └── NotServable        the version is rejected or archived        409
    ├── InvalidModel           this upload can never be served            REJECTED, never retried
    ├── Unsupported            a part of the protocol is not offered      501
    ├── Unavailable            a dependency failed; retry                 503
    │   └── NotReady           the model exists and is not served now     503
    └── TimedOut               no answer within the time limit            504

Anything else is a bug and is left to Lambda. Every message is one printable line of at most 300
characters that names the field at fault and what was expected.
"""

from types import TracebackType
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)

MESSAGE_LIMIT = 300
QUOTE_LIMIT = 80


def one_line(text: str, limit: int = MESSAGE_LIMIT) -> str:
    r"""Return `text` as one printable line of at most `limit` characters.

    >>> one_line("a\nb\x00c")
    'a b?c'
    """
    flat = " ".join(text.split())
    clean = "".join(c if c.isprintable() else "?" for c in flat[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def shown(value: object) -> str:
    """Quote a value for an error message, in at most 80 characters.

    >>> shown("x" * 1000) == "'" + "x" * 77 + "…"
    True
    """
    if isinstance(value, str):
        text, quoted = value, f"'{value[:QUOTE_LIMIT]}'"
    else:
        text = str(value) if isinstance(value, int | float | bool) else repr(value)
        quoted = text[: QUOTE_LIMIT + 1]
    if len(text) > QUOTE_LIMIT - 2:
        quoted = quoted[: QUOTE_LIMIT - 2] + "…"
    return one_line(quoted, QUOTE_LIMIT)


class PlatformError(Exception):
    """Base class of errors shown to API callers or stored with uploads.

    `code` is stable and machine-readable; the text may change. `instance_code` is the code of
    this error, where it is more specific than that of its class. `status` is that of an HTTP reply.
    """

    code: ClassVar[str] = "ERROR"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(one_line(message))
        self.instance_code = code or type(self).code

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {}

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the error's JSON document besides text and code."""
        return {}


class InvalidRequest(PlatformError):
    """Invalid HTTP request that the caller must change (400)."""

    code = "INVALID_REQUEST"
    status = 400


class Unauthenticated(InvalidRequest):
    """HTTP request without an access key, or with an invalid one (401)."""

    code = "KEY_INVALID"
    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"www-authenticate": "Bearer"}


class Forbidden(InvalidRequest):
    """HTTP request that the caller's access key does not permit (403)."""

    code = "SCOPE_MISSING"
    status = 403


class PathNotFound(InvalidRequest):
    """HTTP request for a path that does not exist (404)."""

    code = "PATH_NOT_FOUND"
    status = 404


class MethodNotAllowed(InvalidRequest):
    """HTTP request with a method that its path does not support (405).

    `allow` lists the supported methods.
    """

    code = "METHOD_NOT_ALLOWED"
    status = 405

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"allow": ", ".join(self.allow)}


class PayloadTooLarge(InvalidRequest):
    """HTTP request body, tensor or reply that exceeds a size limit (413).

    A body is limited as sent and as decompressed, a reply as encoded and as sent.
    """

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class UnsupportedEncoding(InvalidRequest):
    """HTTP request body in a Content-Encoding that is not supported (415)."""

    code = "UNSUPPORTED_ENCODING"
    status = 415

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"accept-encoding": "gzip, deflate"}


class TooManyRequests(InvalidRequest):
    """HTTP request to repeat after a pause (429)."""

    code = "TOO_MANY_REQUESTS"
    status = 429

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"retry-after": str(self.retry_after_s)}


class ExecutionFailed(InvalidRequest):
    """Model run that failed on input values of valid type (400).

    The model loads and its file is intact, so the caller has to send other values: an index within
    bounds, sizes that fit each other.
    """

    code = "EXECUTION_FAILED"


class ModelNotFound(PlatformError):
    """Reference to a model, version or alias that does not exist (404)."""

    code = "MODEL_NOT_FOUND"
    status = 404


class KeyNotFound(PlatformError):
    """Reference to an access key that does not exist (404)."""

    code = "KEY_NOT_FOUND"
    status = 404


class UploadNotFound(PlatformError):
    """Reference to an upload that does not exist (404)."""

    code = "UPLOAD_NOT_FOUND"
    status = 404


class StateConflict(PlatformError):
    """Registry change that a version's or alias's current state forbids (409).

    The caller should read the state again and decide anew. `revision` is the current one, if the
    caller expected another.
    """

    code = "STATE_CONFLICT"
    status = 409

    def __init__(
        self, message: str, *, code: str | None = None, revision: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.revision = revision

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the error's JSON document besides text and code."""
        return {} if self.revision is None else {"revision": self.revision}


class NotServable(StateConflict):
    """Request for a rejected or archived model version (409)."""

    code = "MODEL_NOT_SERVABLE"


class InvalidModel(PlatformError):
    """Invalid uploaded model, rejected for good; `code` says why, e.g. `NOT_ONNX`."""

    code = "INVALID_MODEL"
    status = 500  # on a request: the version was READY, so it is not the caller's fault


class Unsupported(PlatformError):
    """Request for an unimplemented part of the inference protocol (501)."""

    code = "UNSUPPORTED"
    status = 501


class Unavailable(PlatformError):
    """Temporary failure of a dependency or model; a retry may succeed (503)."""

    code = "UNAVAILABLE"
    status = 503

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP reply with this error."""
        return {"retry-after": str(self.retry_after_s)}


class NotReady(Unavailable):
    """Request for a pending model version or an unloaded model (503)."""

    code = "MODEL_NOT_READY"


class TimedOut(PlatformError):
    """Request that exceeded its own or the Lambda function's time limit (504)."""

    code = "TIMED_OUT"
    status = 504


def copy_error(error: E, trace: TracebackType | None = None) -> E:
    """Return a copy of an error with `trace` as its traceback.

    Errors are copied before they are raised again. The traceback of a raised error keeps its
    request and the request's body in memory.
    """
    from copy import copy  # not at the top: a cold start raises no error again

    try:
        return copy(error).with_traceback(trace)
    except TypeError:  # an exception of a library that cannot be copied
        return error.with_traceback(trace)
