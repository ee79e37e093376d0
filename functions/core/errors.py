"""Whose fault is it, and does retrying help?

    PlatformError
    ├── InvalidRequest       the caller must change the request         400
    │   ├── PathNotFound                                                404
    │   ├── MethodNotAllowed                                            405
    │   ├── PayloadTooLarge                                             413
    │   └── UnsupportedEncoding                                         415
    ├── ModelNotFound        no such model, version or alias            404
    ├── StateConflict        what stands in the registry forbids it     409
    ├── InvalidModel         this upload can never be served            recorded as REJECTED, never retried
    ├── Unsupported          a part of the protocol not offered here    501
    ├── ExecutionFailed      the model refused these values             500
    ├── Unavailable          a dependency failed, or not now; retry     503
    │   └── NotReady         the registry says: known, and not served   503
    └── TimedOut             no answer within the time limit            504

Anything else is a bug and is left to Lambda. Every message is one printable line of at most 300 characters that names
what is at fault and what was expected.
"""

from typing import ClassVar

MESSAGE_LIMIT = 300
QUOTE_LIMIT = 80


def one_line(text: str, limit: int = MESSAGE_LIMIT) -> str:
    r"""`text` on one line, without unprintable characters, cut to `limit`.

    >>> one_line("a\nb\x00c")
    'a b?c'
    """
    flat = " ".join(text.split())
    clean = "".join(c if c.isprintable() else "?" for c in flat[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def shown(value: object) -> str:
    """What a caller sent, as an error may repeat it: quoted, printable, at most 80 characters.

    >>> shown("x" * 1000) == "'" + "x" * 77 + "…"
    True
    """
    text = (
        value
        if isinstance(value, str)
        else str(value)
        if isinstance(value, int | float | bool)
        else repr(value)
    )
    quoted = f"'{text[:QUOTE_LIMIT]}'" if isinstance(value, str) else text[: QUOTE_LIMIT + 1]
    return one_line(
        quoted if len(text) <= QUOTE_LIMIT - 2 else quoted[: QUOTE_LIMIT - 2] + "…", QUOTE_LIMIT
    )


class PlatformError(Exception):
    """Base of everything that is meant to be told to somebody.

    `code` is stable and machine-readable; the text may change.
    """

    code: ClassVar[str] = "ERROR"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(one_line(message))
        self.instance_code = code or type(self).code


class InvalidRequest(PlatformError):
    """When the caller must change the request."""

    code = "INVALID_REQUEST"


class PathNotFound(InvalidRequest):
    """When there is nothing at a path."""

    code = "PATH_NOT_FOUND"


class MethodNotAllowed(InvalidRequest):
    """When the path exists but not for this method. `allow` lists the methods that do."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class PayloadTooLarge(InvalidRequest):
    """When a request, its inflated body, its tensors or its answer exceed a limit."""

    code = "PAYLOAD_TOO_LARGE"


class UnsupportedEncoding(InvalidRequest):
    """When a request body is compressed in a way that is not offered."""

    code = "UNSUPPORTED_ENCODING"


class ModelNotFound(PlatformError):
    """When no model, version or alias has this name."""

    code = "MODEL_NOT_FOUND"


class StateConflict(PlatformError):
    """When what stands in the registry forbids a change; look again, and decide again."""

    code = "STATE_CONFLICT"


class InvalidModel(PlatformError):
    """When an upload can never be served. `code` names the reason, e.g. `NOT_ONNX`."""

    code = "INVALID_MODEL"


class Unsupported(PlatformError):
    """When a part of the protocol is not offered here."""

    code = "UNSUPPORTED"


class ExecutionFailed(PlatformError):
    """When the model itself failed on values that fit its signature."""

    code = "EXECUTION_FAILED"


class Unavailable(PlatformError):
    """When a dependency failed or the model cannot be served now; the same call may succeed later."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NotReady(Unavailable):
    """When a model or version is known and not served: pending, rejected, archived or unloaded."""

    code = "MODEL_NOT_READY"


class TimedOut(PlatformError):
    """When there was no answer within the time limit of the request or of the function."""

    code = "TIMED_OUT"
