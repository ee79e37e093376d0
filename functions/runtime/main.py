"""Entry point of the runtime client: load the handler, serve events."""

import os
import sys
from typing import NoReturn

from functions.core.watchdog import PROCESS_WATCHDOG
from functions.runtime.api import ApiError, RuntimeApi
from functions.runtime.conventions.handler_loading import Handler, load_handler
from functions.runtime.conventions.logging_setup import configure_when_imported
from functions.runtime.conventions.search_path import extend
from functions.runtime.errors import Fault, error_of, fault_error
from functions.runtime.log import Log, log_error, open_log
from functions.runtime.loop import Loop


def main() -> NoReturn:
    """Serve Lambda events until the process is ended.

    The connection is made before the handler is imported, which takes longer.
    """
    extend(sys.path, os.environ, sys.prefix)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    log = open_log(os.environ)
    api = RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"])
    loop = Loop(api, log, os.environ, PROCESS_WATCHDOG)
    configure_when_imported(log, loop.ids, os.environ.get("AWS_LAMBDA_LOG_LEVEL"))
    try:
        api.connect()
        loop.run(_load(os.environ["_HANDLER"], api, log))
    except (ApiError, OSError) as error:  # Lambda starts another process
        log.error([f"[ERROR] Runtime.LambdaRuntimeClientError: {error}"])
        sys.exit(1)


def _load(name: str, api: RuntimeApi, log: Log) -> Handler:
    try:
        return load_handler(name)
    except Fault as fault:
        error = fault_error(fault)
    except Exception as failure:  # the edge: Lambda is told what the handler's module raised
        error = error_of(failure)
    log_error(log, error)
    api.report_init_error(error)
    sys.exit(1)
