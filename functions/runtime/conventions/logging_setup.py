"""Format of log records as Lambda's Python runtime sets it.

A cold start without log records does not import `logging`: it is set up when a handler does.
"""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from functions.runtime.log import FRAME_TEXT, Log, json_frame

FORMAT = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"


def configure_when_imported(log: Log, ids: Mapping[str, str | None], level: str | None) -> None:
    """Set `logging` up once it is imported; records go to `log`.

    `ids` has the current invocation's aws_request_id and tenant_id. `level` is Lambda's variable
    AWS_LAMBDA_LOG_LEVEL.
    """
    if "logging" in sys.modules:
        _configure(sys.modules["logging"], log, ids, level)
    else:
        sys.meta_path.insert(0, _Finder(log, ids, level))


class _Finder:
    """Finder of `logging` alone, which configures the module after its import."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        del path, target
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader)
        return spec

    def _wrap(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _configure(module, *self._arguments)

        loader.exec_module = exec_module


def _configure(logging: Any, log: Log, ids: Mapping[str, str | None], level: str | None) -> None:
    class LogHandler(logging.Handler):  # type: ignore[misc]
        """Handler that writes records to the function's log."""

        def emit(self, record: Any) -> None:
            record.__dict__.update(ids)
            frame = json_frame(record.levelno) if log.is_json else FRAME_TEXT
            log.write(self.format(record), frame)

    import time

    logging.Formatter.converter = time.gmtime
    handler = LogHandler()
    handler.setFormatter(_formatter(logging, log.is_json))
    root = logging.getLogger()
    name = "DEBUG" if level == "TRACE" else (level or "").upper()
    if name in logging.getLevelNamesMapping():
        root.setLevel(name)
    root.addHandler(handler)


def _formatter(logging: Any, is_json: bool) -> Any:
    if not is_json:
        return logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
    from functions.runtime.conventions.json_records import make_formatter

    return make_formatter(logging)
