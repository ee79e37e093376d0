"""Errors of functions in the shape that Lambda and its log expect.

Types and messages are those of awslambdaric 4.2.2, AWS's runtime client.
"""

import os
from collections.abc import Sequence

MARSHAL_ERROR = "Runtime.MarshalError"
UNMARSHAL_ERROR = "Runtime.UnmarshalError"
SYNTAX_ERROR = "Runtime.UserCodeSyntaxError"
HANDLER_NOT_FOUND = "Runtime.HandlerNotFound"
IMPORT_ERROR = "Runtime.ImportModuleError"
BUILT_IN_CONFLICT = "Runtime.BuiltInModuleConflict"
MALFORMED_HANDLER = "Runtime.MalformedHandlerName"
CONTEXT_ERROR = "Runtime.LambdaContextUnmarshalError"
OUT_OF_MEMORY = "Runtime.OutOfMemory"

_OWN = __file__.rpartition("/")[0] + "/"  # files whose frames are not the function's


class Fault(Exception):
    """Error that Lambda names itself, e.g. a handler that does not exist."""

    def __init__(self, error_type: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.type = error_type
        self.message = message
        self.trace = trace or []


class FunctionError:
    """Error of an invocation or of INIT, as Lambda reports it.

    `cause_type` is its type in X-Ray's words, `frames` has file, line and function.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        trace: list[str],
        request_id: str,
        cause_type: str,
        frames: Sequence[tuple[str, int, str]] = (),
    ) -> None:
        self.type = error_type
        self.message = message
        self.trace = trace
        self.request_id = request_id
        self._cause_type = cause_type
        self._frames = frames

    def to_json(self) -> str:
        """Return the JSON that is posted to the Runtime API."""
        return _dumps(self.to_record())

    def to_record(self) -> dict[str, object]:
        """Return the fields that the Runtime API and a JSON log show."""
        return {
            "errorMessage": self.message,
            "errorType": self.type,
            "requestId": self.request_id,
            "stackTrace": self.trace,
        }

    def xray_cause(self) -> str:
        """Return the JSON that X-Ray shows as the cause of the error."""
        stack = [
            {"label": name, "path": path, "line": number} for path, number, name in self._frames
        ]
        exception = {"message": self.message, "type": self._cause_type, "stack": stack}
        cause = {
            "working_directory": os.getcwd(),  # noqa: PTH109 (pathlib takes time to import)
            "exceptions": [exception],
            "paths": sorted({path for path, _, _ in self._frames}),
        }
        return _dumps(cause)


def fault_error(fault: Fault, request_id: str = "") -> FunctionError:
    """Return the error to report for a fault."""
    cause_type = "LambdaValidationError"
    return FunctionError(fault.type, fault.message, fault.trace, request_id, cause_type)


def error_of(failure: BaseException, request_id: str = "") -> FunctionError:
    """Return the error to report for an exception of the function.

    Its stack trace begins with the function's first frame.
    """
    import traceback  # not at the top: it takes time, and most environments have no error

    frames = [
        (frame.filename, frame.lineno or 0, frame.name, frame.line)
        for frame in traceback.extract_tb(failure.__traceback__)
    ]
    while frames and frames[0][0].startswith(_OWN):
        del frames[0]
    name = type(failure).__name__
    places = [frame[:3] for frame in frames]
    trace = traceback.format_list(frames)
    return FunctionError(name, str(failure), trace, request_id, name, places)


def _dumps(value: object) -> str:
    import json

    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # a message may hold half a surrogate pair
