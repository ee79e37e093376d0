"""Request in progress, with data for its reply and log line."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from functions.core.access import cors
from functions.core.errors import PlatformError
from functions.core.openai.call import LanguageCall
from functions.core.openai.errors import bug_document, error_document
from functions.core.openai.replies import Document
from functions.core.openai.routing import ROOT

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


class Exchange(LanguageCall):
    """Call in progress, with data for reply headers and log."""

    __slots__ = ("end_ns", "first", "refusal_headers", "root", "status")

    def __init__(self, context: Any, first: bool) -> None:
        super().__init__()
        self.request_id = str(getattr(context, "aws_request_id", "") or "")
        self.first = first  # the environment's first request
        self.root = ROOT
        self.refusal_headers: Mapping[str, str] = {}
        self.status = int(HTTPStatus.OK)
        self.end_ns = 0

    @property
    def cold(self) -> bool:
        """True if the request waited for a model or the environment."""
        return self.first or self.loaded

    def refuse(self, error: PlatformError) -> tuple[int, Document]:
        """Return status and document of an error."""
        self.status, self.code = error.status, error.instance_code
        self.refusal_headers = error.headers
        return error.status, self._document(error_document(error))

    def fail(self) -> tuple[int, Document]:
        """Return status and document of a bug."""
        self.status, self.code = int(HTTPStatus.INTERNAL_SERVER_ERROR), "INTERNAL_ERROR"
        return self.status, self._document(bug_document())

    def reply_headers(self, stream: bool) -> dict[str, str]:
        """Return the headers of the reply: type, request id, timing, model, CORS."""
        timing = [f"{stage};dur={ns / 1e6:.3f}" for stage, ns in self.stages_ns.items()]
        headers = {
            "content-type": EVENTS if stream else JSON,
            "cache-control": "no-cache",
            "x-request-id": self.request_id,
            "x-cold-start": "1" if self.cold else "0",
            "server-timing": ", ".join(timing) or "receive;dur=0",
            **self.refusal_headers,
        }
        if (resolved := self.resolved) is not None:
            headers["x-model-version"] = str(resolved.version.number)
            if resolved.alias is not None:
                headers["x-model-alias"] = resolved.alias
                if resolved.variant:
                    headers["x-model-variant"] = resolved.variant
        cors.add_headers(headers, self.cors_headers)
        return headers

    def _document(self, document: Document) -> Document:
        """Return an error's document in the form of the request's route."""
        if self.root == ROOT:
            return document
        error = {"error": document["error"]["message"], "code": self.code}
        return {**error, "request_id": self.request_id}
