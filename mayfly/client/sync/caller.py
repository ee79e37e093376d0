# Written by scripts/sync_client.py from mayfly/client/aio: change that.
"""Calls of a stack: request, retries, reply or error."""

import time
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from mayfly.client.errors import Disconnected, MayflyError, TimedOut
from mayfly.client.http1.events import LAST_EVENT, EventParser, event_document
from mayfly.client.http1.messages import Reply, Request, error_of, json_request, listed
from mayfly.client.http1.retries import RetryPolicy
from mayfly.client.signature_cache import SignatureCache
from mayfly.client.sync.transport import Transport, sleep

TIMEOUT_S = 60.0  # a call with its retries; API Gateway answers within 29 s


class Caller:
    """Sender of requests to one stack, with a key."""

    def __init__(self, url: str, key: str, timeout: float, retries: RetryPolicy) -> None:
        headers = {"user-agent": "mayfly-python"} | ({"x-api-key": key} if key else {})
        self.transport = Transport(url, headers)
        self.timeout = timeout
        self.retries = retries
        self.signatures = SignatureCache()

    def call(self, request: Request) -> Reply:
        """Return a request's reply; retry where that is safe.

        Raises:
            MayflyError: the last attempt's error.
        """
        deadline = time.monotonic() + (request.timeout or self.timeout)
        for attempt in count():
            try:
                reply = self.transport.send(request, deadline)
            except (Disconnected, TimedOut) as failure:
                error: MayflyError = failure
            else:
                if reply.status < 400:
                    return reply
                error = error_of(reply)
            left = deadline - time.monotonic()
            wait = self.retries.wait(error, attempt, left, safe=request.safe)
            if wait is None:
                raise error
            sleep(wait)
        raise AssertionError("unreachable")

    def events(self, request: Request) -> Iterator[Any]:
        """Yield the documents of a reply's events until the last, "[DONE]".

        Raises:
            MayflyError: the reply or an event of it is an error.
            Disconnected: the reply ended before its last event, so it may be cut.
        """
        deadline = time.monotonic() + (request.timeout or self.timeout)
        parser, complete = EventParser(), False
        for part in self.transport.stream(request, deadline):
            for text in parser.feed(part):
                complete = text == LAST_EVENT
                if not complete:
                    yield event_document(text)
        if not complete:
            raise Disconnected(
                f"the reply ended before its last event, {LAST_EVENT}: it is cut; ask again",
                sent=True,
            )

    def get(self, path: str) -> Any:
        """Return the document at a path."""
        return (self.call(json_request("GET", path))).json()

    def pages(self, path: str, name: str) -> Iterator[Any]:
        """Yield the items of a list, page by page."""
        page = self.get(path)
        while True:
            for item in listed(page, name):
                yield item
            if not page.get("next_cursor"):
                return
            joint = "&" if "?" in path else "?"
            cursor = quote(page["next_cursor"], safe="")
            page = self.get(f"{path}{joint}cursor={cursor}")

    def change(
        self, method: str, path: str, document: object = None, *, repeatable: bool = True
    ) -> Any:
        """Return the document that answers a change.

        A `repeatable` change has an Idempotency-Key, with which the service does it once.
        """
        headers = {"idempotency-key": uuid4().hex} if repeatable else {}
        request = json_request(method, path, document, headers=headers, safe=repeatable)
        reply = self.call(request)
        return reply.json() if reply.body else None
