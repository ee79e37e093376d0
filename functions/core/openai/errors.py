"""Errors in OpenAI's form, which its clients read.

https://platform.openai.com/docs/guides/error-codes
"""

from typing import Any

from functions.core.errors import InvalidRequest, PlatformError

CODES = {  # codes of OpenAI; others are ours in lower case
    "KEY_INVALID": "invalid_api_key",
    "KEY_MISSING": "invalid_api_key",
    "QUOTA_EXCEEDED": "insufficient_quota",
    "SCOPE_MISSING": "missing_scope",
    "TOO_MANY_REQUESTS": "rate_limit_exceeded",
}
BUG = "the server failed on this request; its log has the reason under the request's id"


class InvalidParameter(InvalidRequest):
    """Wrong value of a request's field.

    `param` is the field's name, e.g. messages[0].content.
    """

    code = "INVALID_VALUE"

    def __init__(self, param: str, message: str, *, code: str | None = None) -> None:
        super().__init__(f"{param}: {message}", code=code)
        self.param = param


def unsupported(param: str, message: str = "not supported; leave it out") -> InvalidParameter:
    """Return the error for a known field that is not supported."""
    return InvalidParameter(param, message, code="UNSUPPORTED_PARAMETER")


def context_exceeded(context: int, prompt: int, reply: int, param: str) -> InvalidParameter:
    """Return the error for more tokens than a model's context has."""
    wish = f"{prompt} in the prompt" + (f" and {reply} for the reply" if reply else "")
    return InvalidParameter(
        param,
        f"this model's maximum context length is {context} tokens, and you requested "
        f"{prompt + reply} tokens ({wish}); reduce the length of the prompt or of the reply",
        code="CONTEXT_LENGTH_EXCEEDED",
    )


def error_document(error: PlatformError) -> dict[str, Any]:
    """Return an error as OpenAI's JSON document."""
    code, param = error.instance_code, getattr(error, "param", None)
    if param is None and code == "MODEL_NOT_FOUND":
        param = "model"
    return describe_error(error.status, code, str(error), param)


def bug_document() -> dict[str, Any]:
    """Return the JSON document of an error of ours."""
    return describe_error(500, "INTERNAL_ERROR", BUG)


def describe_error(
    status: int, code: str, message: str, param: str | None = None
) -> dict[str, Any]:
    """Return the JSON document of an error with our code."""
    name = CODES.get(code, code.lower())
    kind = _type(status, code)
    return {"error": {"message": message, "type": kind, "param": param, "code": name}}


def _type(status: int, code: str) -> str:
    if code == "QUOTA_EXCEEDED":
        return "insufficient_quota"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
