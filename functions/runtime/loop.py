"""Loop of the runtime client: next event, handler, reply.

A handler is called with event and context. Its attributes change what it gets:

takes_bytes   True: the event is its bytes, and the bytes that it returns are the reply's JSON.
              Otherwise it gets parsed JSON and returns what can be serialized.
"""

from collections.abc import MutableMapping
from typing import Any, NoReturn

from functions.runtime.api import Invocation, RuntimeApi
from functions.runtime.context import Environment, LambdaContext
from functions.runtime.errors import Fault, error_of, fault_error
from functions.runtime.handler_loading import Handler
from functions.runtime.log import Log, log_error

TRACE_ID = "_X_AMZN_TRACE_ID"
JSON_TYPE = "application/json"
BYTES_TYPE = "application/unknown"  # bytes from a handler of parsed events, as AWS's client says


class Loop:
    """Loop of one execution environment: its invocations, one after the other."""

    def __init__(self, api: RuntimeApi, log: Log, environ: MutableMapping[str, str]) -> None:
        self._api = api
        self._log = log
        self._environ = environ
        self._environment = Environment(environ)
        self.ids: dict[str, str | None] = {"aws_request_id": "", "tenant_id": None}

    def run(self, handler: Handler) -> NoReturn:
        """Serve events until the process is ended.

        Raises:
            ApiError: the Runtime API refused a request.
            OSError: it is gone.
        """
        takes_bytes = bool(getattr(handler, "takes_bytes", False))
        while True:
            self._serve(self._api.next(), handler, takes_bytes)

    def _serve(self, invocation: Invocation, handler: Handler, takes_bytes: bool) -> None:
        self._begin(invocation)
        try:
            context = self._context(invocation)
            event = invocation.event if takes_bytes else _parsed(invocation)
            result = handler(event, context)
            payload = result if isinstance(result, bytes) else _serialized(result)
        except Fault as fault:
            error = fault_error(fault, invocation.request_id)
        except Exception as failure:  # the edge: Lambda is told what the handler raised
            error = error_of(failure, invocation.request_id)
        else:
            json = takes_bytes or not isinstance(result, bytes)
            self._api.respond(invocation, payload, JSON_TYPE if json else BYTES_TYPE)
            return
        log_error(self._log, error)
        self._api.fail(invocation, error)

    def _begin(self, invocation: Invocation) -> None:
        self.ids["aws_request_id"] = invocation.request_id
        self.ids["tenant_id"] = invocation.tenant_id
        if invocation.trace_id is not None:
            self._environ[TRACE_ID] = invocation.trace_id
        else:
            self._environ.pop(TRACE_ID, None)

    def _context(self, invocation: Invocation) -> LambdaContext:
        context = LambdaContext(
            self._environment,
            invocation.request_id,
            invocation.deadline_ms,
            invocation.function_arn,
            invocation.tenant_id,
        )
        if invocation.client_context:
            context.read_client_context(invocation.client_context)
        if invocation.identity:
            context.read_identity(invocation.identity)
        return context


def _parsed(invocation: Invocation) -> Any:
    from functions.runtime.marshalling import parse  # not at the top: infer takes bytes

    return parse(invocation.event, invocation.content_type)


def _serialized(result: object) -> bytes:
    from functions.runtime.marshalling import serialize

    return serialize(result)
