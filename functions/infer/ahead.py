"""The first event, met before the code that answers it is there.

Importing numpy and onnxruntime takes as long as reading a record and a small model. So where a function has the
processors for it, INIT ends while they are still being imported, and the record and the files that the first event
needs are asked for meanwhile (docs/decisions/0015-cold-start.md).
"""

import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from functions.core.errors import PlatformError
from functions.core.names import is_model_name, parse_reference
from functions.core.resolution import Resolver
from functions.core.serving import ModelCache

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]
SWITCH_SECONDS = 0.0005  # instead of 5 ms: what waits for the network has little to do, and long imports beside it
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer", re.ASCII)


class Ahead:
    """A handler that is still being made: by `make`, in a thread, which begins at once."""

    def __init__(self, make: Callable[[], Handler], resolver: Resolver, models: ModelCache) -> None:
        self._make = make
        self._resolver = resolver
        self._models = models
        self._handler: Handler | None = None
        self._error: BaseException | None = None
        self._usual_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread = threading.Thread(target=self._work, name="import", daemon=True)
        self._thread.start()

    def wait(self) -> Handler:
        """The handler, once it is made.

        Raises:
            whatever `make` raised.
        """
        self._thread.join()
        sys.setswitchinterval(self._usual_s)
        if self._handler is None:
            raise self._error or LookupError("no handler was made")
        return self._handler

    def __call__(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        if self._handler is None:
            self._begin(event)
        handler = self._handler or self.wait()
        return handler(event, context)

    def _work(self) -> None:
        try:
            self._handler = self._make()
        except BaseException as error:  # raised where somebody waits
            self._error = error

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Ask for what an inference will need. A guess: the handler alone decides, and says what is wrong."""
        found = _INFER.search(str(event.get("path") or event.get("rawPath") or ""))
        if found is None or not is_model_name(found[1]):
            return
        try:
            text = found[2] or _said(event.get("headers"), "x-model-version")
            text = text or _said(event.get("queryStringParameters"), "version")
            version = self._resolver.resolve(found[1], parse_reference(text) if text else None).version
            self._models.begin(version)
        except PlatformError:
            return


def _said(pairs: Mapping[str, Any] | None, name: str) -> str | None:
    return next((str(value) for key, value in (pairs or {}).items() if key.lower() == name), None)
