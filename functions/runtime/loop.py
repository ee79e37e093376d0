"""Loop of the runtime client: next event, handler, reply, further work.

A handler is called with event and context. Its attributes change that:

takes_bytes   True: it gets the event's bytes. Otherwise it gets the parsed JSON.
late_reply    Called with the context, from another thread, if the handler has not returned half a
              second (at most a tenth of its time) before the deadline. Returns the reply's JSON as
              bytes. The process ends once that is posted.
last_work     Called before the process is ended: after a late reply, and when work after a reply
              did not end in time, or ended the environment. It may run in another thread, beside
              the stuck one, and is cut off at the deadline.
refuse_large  Called with the context and a number of bytes for an event of that size, which memory
              cannot hold. Returns the reply's JSON as bytes.
streams       True: its route streams, so a reply that is no StreamedReply is sent as a stream of
              one chunk. API Gateway answers 502 to any other.

A handler returns bytes, which are sent as they are, a `StreamedReply`, or what can be serialized.
"""

from collections.abc import MutableMapping
from typing import Any, NoReturn

from functions.core.watchdog import Watchdog
from functions.runtime.after_reply import AfterReply
from functions.runtime.api import ApiError, Invocation, RuntimeApi
from functions.runtime.context import Environment, LambdaContext
from functions.runtime.conventions.handler_loading import Handler
from functions.runtime.errors import OUT_OF_MEMORY, Fault, FunctionError, error_of, fault_error
from functions.runtime.late_reply import Ending, LateReply
from functions.runtime.log import Log, log_error
from functions.runtime.replies import StreamedReply, as_stream
from functions.runtime.streaming import StreamSender

TRACE_ID = "_X_AMZN_TRACE_ID"
JSON_TYPE = "application/json"
BYTES_TYPE = "application/unknown"  # bytes from a handler of parsed events, as AWS's client says


class Loop:
    """Loop of one execution environment: its invocations, one after the other."""

    def __init__(
        self,
        api: RuntimeApi,
        log: Log,
        environ: MutableMapping[str, str],
        watchdog: Watchdog,
    ) -> None:
        self._api = api
        self._log = log
        self._environ = environ
        self._watchdog = watchdog
        self._environment = Environment(environ, log)
        self.ids: dict[str, str | None] = {"aws_request_id": "", "tenant_id": None}

    def run(self, handler: Handler) -> NoReturn:
        """Serve events until the process is ended.

        Raises:
            ApiError: the Runtime API refused a request.
            OSError: it is gone.
        """
        self._handler = handler
        self._takes_bytes = bool(getattr(handler, "takes_bytes", False))
        make_late = getattr(handler, "late_reply", None)
        parts = self._api, self._log, self._watchdog
        self._is_streaming = bool(getattr(handler, "streams", False))
        streams = self._is_streaming
        ending = Ending(self._log, getattr(handler, "last_work", None))
        self._after = AfterReply(self._log, self._watchdog, ending)
        self._late = LateReply(*parts, make_late, ending, streams=streams) if make_late else None
        self._streams = StreamSender(*parts, ending, self._late)
        while True:
            self._serve_next()

    def _serve_next(self) -> None:
        invocation = self._api.next()
        self._begin(invocation)
        context = self._serve(invocation)
        # Work comes before the API's answer is read, which is likely to be there afterwards.
        end = None if context is None or not context.has_work else self._after.run(context)
        self._api.confirm()
        if end is not None:
            self._after.end(end)

    def _serve(self, invocation: Invocation) -> LambdaContext | None:
        """Answer an event; return its context, unless that is malformed."""
        context = None
        try:
            context = self._context(invocation)
            result = self._call(invocation, context)
            if self._is_streaming and not isinstance(result, StreamedReply):
                result = as_stream(result)
            if isinstance(result, StreamedReply):
                self._streams.send(invocation, context, result)
                return context
            payload = result if isinstance(result, bytes) else _serialized(result)
        except ApiError:  # refusal of a streamed reply
            raise
        except Fault as fault:
            self._fail(invocation, fault_error(fault, invocation.request_id))
        except Exception as failure:  # the edge: Lambda is told what the handler raised
            self._fail(invocation, error_of(failure, invocation.request_id))
        else:
            json = self._takes_bytes or not isinstance(result, bytes)
            self._api.respond(invocation, payload, JSON_TYPE if json else BYTES_TYPE)
        return context

    def _call(self, invocation: Invocation, context: LambdaContext) -> Any:
        if invocation.dropped_bytes:
            return self._refuse_large(invocation, context)
        event, invocation.event = invocation.event, b""  # a large one lives no longer than needed
        argument = event if self._takes_bytes else _parsed(event, invocation.content_type)
        if self._late is None:
            return self._handler(argument, context)
        self._late.begin(invocation, context)
        try:
            return self._handler(argument, context)
        finally:
            self._late.end()

    def _refuse_large(self, invocation: Invocation, context: LambdaContext) -> Any:
        refuse = getattr(self._handler, "refuse_large", None)
        if refuse is not None:
            return refuse(context, invocation.dropped_bytes)
        size = invocation.dropped_bytes
        raise Fault(OUT_OF_MEMORY, f"there is no memory for an event of {size} bytes; send less")

    def _fail(self, invocation: Invocation, error: FunctionError) -> None:
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


def _parsed(event: bytes, content_type: str | None) -> Any:
    from functions.runtime.conventions.marshalling import parse  # not at the top: infer takes bytes

    return parse(event, content_type)


def _serialized(result: object) -> bytes:
    from functions.runtime.conventions.marshalling import serialize

    return serialize(result)
