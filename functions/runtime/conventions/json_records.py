"""Log records as JSON, as awslambdaric writes them under `LogFormat: JSON`.

https://docs.aws.amazon.com/lambda/latest/dg/python-logging.html
"""

import json
from typing import Any

from functions.runtime.log import TIMESTAMP

_OWN_NAMES = frozenset({"aws_request_id", "tenant_id"})  # attributes that the runtime client adds


def make_formatter(logging: Any) -> Any:
    """Return a formatter of log records as JSON lines.

    `logging` is imported by the handler alone, so it is an argument.
    """
    names = frozenset(vars(logging.makeLogRecord({}))) - {"taskName"} | _OWN_NAMES

    class JsonFormatter(logging.Formatter):  # type: ignore[misc]
        """Formatter of JSON lines, with an exception's type, message and stack."""

        def format(self, record: Any) -> str:
            fields = {
                "timestamp": self.formatTime(record, TIMESTAMP),
                "level": logging.getLevelName(min(50, max(0, record.levelno)) // 10 * 10),
                "message": _message(record),
                "logger": record.name,
                **_exception(record),
                "requestId": record.aws_request_id,
                "location": _location(record),
                "tenantId": record.tenant_id,
            }
            for name, value in vars(record).items():
                if name not in names and name not in fields:
                    fields[name] = value
            present = {name: value for name, value in fields.items() if value is not None}
            return json.dumps(present, ensure_ascii=False, default=str) + "\n"

    return JsonFormatter()


def _message(record: Any) -> Any:
    is_object = isinstance(record.msg, dict) and not record.args
    return record.msg if is_object else record.getMessage()


def _exception(record: Any) -> dict[str, Any]:
    """Return the fields that describe a record's exception, if it has one."""
    if not record.exc_info:
        return {}
    import traceback  # not at the top: few records have an exception

    kind, failure, trace = record.exc_info
    if kind is None:  # exc_info=True outside of an `except`
        return {}
    return {
        "stackTrace": traceback.format_tb(trace),
        "errorType": kind.__name__,
        "errorMessage": str(failure),
    }


def _location(record: Any) -> str | None:
    if not record.exc_info:
        return None
    return f"{record.pathname}:{record.funcName}:{record.lineno}"
