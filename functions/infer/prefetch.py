"""Prefetch the first request's model, if possible during the handler's import.

Importing the code that parses requests and runs models takes as long as reading a registry record.
So INIT ends before that import is done, unless the function has little CPU (see main.py), and the
first event's record and model files are requested meanwhile (docs/decisions/0015-cold-start.md).
The caller's access key is read by the same request as the record.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import Any, Protocol

from functions.core.access.gate import Gate, presented_key
from functions.core.access.grant_items import grant_key
from functions.core.access.grants import Scope
from functions.core.access.keys import key_digest, parse_key
from functions.core.names import is_model_name
from functions.core.registry.registry import resolution_keys
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Version
from functions.core.serving.events import Event, parse_head
from functions.core.serving.model_cache import ModelCache
from functions.core.serving.paths import INFER, USER_HEADER, compile_path, requested_version


class Handler(Protocol):
    """Lambda handler type; accepts the time at which an event arrived.

    `began_ns` (of `time.perf_counter_ns`) is set for an event that waited for the handler.
    """

    def __call__(
        self, event: Event | bytes, context: Any, began_ns: int | None = None
    ) -> dict[str, Any] | bytes: ...

    def late_reply(self, context: Any) -> bytes:
        """Return the reply to an event that cannot be answered in time."""
        ...

    def refuse_large(self, context: Any, size_bytes: int) -> bytes:
        """Return the reply to an event that memory cannot hold."""
        ...

    def last_work(self) -> None:
        """Work before the process is ended."""
        ...


# Reads registry items by their keys before they are asked for
ReadAhead = Callable[[Sequence[tuple[str, str]]], AbstractContextManager[None]]

GRACE_S = 0.03  # lets the first event start its I/O before the import takes the GIL

TOO_LATE = "this environment did not start in time, so it ends; send the request again"

_infer_path = compile_path(INFER)


class PrefetchingHandler:
    """Handler that prefetches the first request's model before handling it.

    `make` runs in a thread: it imports the real handler and returns it. `gate` checks access keys:
    a model is loaded for callers who may call it. `read_ahead` reads what both the gate and the
    resolver will ask for.
    """

    takes_bytes = True  # for our runtime client

    def __init__(
        self,
        make: Callable[[], Handler],
        resolver: Resolver,
        models: ModelCache,
        gate: Gate | None = None,
        read_ahead: ReadAhead = lambda _: nullcontext(),
    ) -> None:
        self._make = make
        self._gate = gate
        self._read_ahead = read_ahead
        self._resolver = resolver
        self._models = models
        self._first = True  # no event has come yet
        self._handler: Handler | None = None
        self._error: BaseException | None = None
        self._prefetched = threading.Event()  # prefetching has started, or is impossible
        self._thread = threading.Thread(target=self._import, name="import", daemon=True)
        self._thread.start()

    def wait(self) -> Handler:
        """Wait until the real handler is imported, and return it.

        Raises:
            Exception: any error of `make`.
        """
        self._prefetched.set()
        self._thread.join()
        if self._handler is None:
            raise self._error or LookupError("no handler was made")
        return self._handler

    def __call__(self, event: Event | bytes, context: Any) -> dict[str, Any] | bytes:
        if not self._first:
            return (self._handler or self.wait())(event, context)
        self._first = False
        began_ns = time.perf_counter_ns()
        self._prefetch(event, str(getattr(context, "aws_request_id", "") or ""))
        return self.wait()(event, context, began_ns)

    def late_reply(self, context: Any) -> bytes:
        """Return the reply to an event that cannot be answered in time.

        Our runtime client calls this from another thread, and ends the process.
        """
        if self._handler is not None:
            return self._handler.late_reply(context)
        request_id = context.aws_request_id
        body = {"error": TOO_LATE, "code": "TIMED_OUT", "request_id": request_id}
        reply = {
            "statusCode": int(HTTPStatus.GATEWAY_TIMEOUT),
            "headers": {"content-type": "application/json", "x-request-id": request_id},
            "body": json.dumps(body),
            "isBase64Encoded": False,
        }
        return json.dumps(reply).encode()

    def refuse_large(self, context: Any, size_bytes: int) -> bytes:
        """Return the reply to an event that memory cannot hold."""
        return self.wait().refuse_large(context, size_bytes)

    def last_work(self) -> None:
        """Do the last work of a handler that was imported."""
        if self._handler is not None:
            self._handler.last_work()

    def _import(self) -> None:
        self._prefetched.wait(GRACE_S)
        try:
            self._handler = self._make()
        except BaseException as error:  # raised by `wait`
            self._error = error

    def _prefetch(self, event: Event | bytes, lambda_id: str) -> None:
        """Start loading the model that an inference request names, if any.

        Only a guess, which may fail: the real handler validates the request and reports errors.
        """
        try:
            event = parse_head(event) if isinstance(event, bytes) else event
            match = _infer_path.search(str(event.get("path") or event.get("rawPath") or ""))
            if match is None or not is_model_name(match["model"]):
                return
            headers = {name.lower(): text for name, text in (event.get("headers") or {}).items()}
            query = event.get("queryStringParameters") or {}
            reference = requested_version(match["version"], headers, query)
            request_id = str((event.get("requestContext") or {}).get("requestId") or lambda_id)
            version = self._permitted_version(headers, match["model"], reference, request_id)
            if version is not None:
                self._models.start_loading(version)
        except Exception:  # the real handler meets the same error, answers it and logs it
            return

    def _permitted_version(
        self, headers: Mapping[str, str], model: str, reference: int | str | None, request_id: str
    ) -> Version | None:
        """Return the version to load, None if the key forbids it."""
        user = headers.get(USER_HEADER)
        if self._gate is None:
            resolved = self._resolver.resolve(model, reference)
            return resolved.side_of(user, "", request_id).version
        key = presented_key(headers)
        key_id = parse_key(key)
        if key_id is None:
            return None
        items = [grant_key(key_id, key_digest(key)), *resolution_keys(model, reference)]
        with self._read_ahead(items):
            grant = self._gate.verify(key)
            if not grant.allows(Scope.INFER) or not grant.sees(model):
                return None
            resolved = self._resolver.resolve(model, reference)
            return resolved.side_of(user, grant.key_id, request_id).version
