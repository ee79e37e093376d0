"""The first event, met before the code that answers it is there.

What reads a request and runs a model takes as long to import as reading a record. So where a function has the
processors for it, INIT ends while that is still being imported, and the record and the files that the first event
needs are asked for meanwhile (docs/decisions/0015-cold-start.md).
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from functions.core.names import is_model_name, parse_reference
from functions.core.registry.resolver import Resolver
from functions.core.serving.model_cache import ModelCache


class Handler(Protocol):
    """Answers an event, which reached this process at `began_ns` (`time.perf_counter_ns`) or just now."""

    def __call__(
        self, event: Mapping[str, Any], context: Any, began_ns: int | None = None
    ) -> dict[str, Any]: ...


GRACE_S = 0.03  # an event comes right after INIT, and what it asks for is on its way sooner if nothing else is done

_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer", re.ASCII)


class Ahead:
    """A handler that is still to be made: by `make`, in a thread, while the first event waits for what it asks for."""

    def __init__(self, make: Callable[[], Handler], resolver: Resolver, models: ModelCache) -> None:
        self._make = make
        self._resolver = resolver
        self._models = models
        self._handler: Handler | None = None
        self._error: BaseException | None = None
        self._begun = (
            threading.Event()
        )  # what the first event needs was asked for, or nobody knows what that is
        self._thread = threading.Thread(target=self._work, name="import", daemon=True)
        self._thread.start()

    def wait(self) -> Handler:
        """The handler, once it is made.

        Raises:
            whatever `make` raised.
        """
        self._begun.set()
        self._thread.join()
        if self._handler is None:
            raise self._error or LookupError("no handler was made")
        return self._handler

    def __call__(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        if self._handler is not None:
            return self._handler(event, context)
        began_ns = time.perf_counter_ns()
        self._begin(event)
        return self.wait()(event, context, began_ns)

    def _work(self) -> None:
        self._begun.wait(GRACE_S)
        try:
            self._handler = self._make()
        except BaseException as error:  # raised where somebody waits
            self._error = error

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Ask for what an inference will need. A guess: the handler alone decides, and says what is wrong."""
        try:
            found = _INFER.search(str(event.get("path") or event.get("rawPath") or ""))
            if found is None or not is_model_name(found[1]):
                return
            text = found[2] or _said(event.get("headers"), "x-model-version")
            text = text or _said(event.get("queryStringParameters"), "version")
            version = self._resolver.resolve(
                found[1], parse_reference(text) if text else None
            ).version
            self._models.begin(version)
        except (
            Exception
        ):  # whatever it is, the handler meets it too: it has an answer and a line for it
            return


def _said(pairs: Mapping[str, Any] | None, name: str) -> str | None:
    return next((str(value) for key, value in (pairs or {}).items() if key.lower() == name), None)
