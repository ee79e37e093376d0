"""Lambda handler of the control plane: HTTP requests and direct invocations."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aws_lambda_powertools.logging import Logger

from functions.core.access import cors
from functions.core.access.cors import Cors
from functions.core.errors import PlatformError, Unavailable
from functions.core.serving.http import (
    HttpRequest,
    HttpResponse,
    json_response,
    parse_event,
)
from functions.core.serving.request_log import bug_line
from functions.manage.caller import Caller, Entrance
from functions.manage.console.site import ROOT as CONSOLE
from functions.manage.console.site import Console
from functions.manage.openapi.pages import ROOT as PAGES
from functions.manage.openapi.pages import answer_page, is_page
from functions.manage.operations import run_operation
from functions.manage.parts import Parts
from functions.manage.repeats import Repeats
from functions.manage.route import ROOT
from functions.manage.router import Match, Router


@dataclass(frozen=True, slots=True)
class ManageHandler:
    """Lambda handler of /api/v1, and of operations invoked with IAM.

    An HTTP request needs a key with the scope of its route, or a signature that API Gateway has
    checked. An operation needs the permission to invoke the function.
    """

    parts: Parts
    router: Router
    entrance: Entrance
    repeats: Repeats
    console: Console
    cors: Cors
    logger: Logger

    def __call__(self, event: Any, context: Any) -> dict[str, Any]:
        """Answer an API Gateway event, or run an event's operation."""
        if isinstance(event, dict) and "httpMethod" in event:
            return self._answer(event, context.get_remaining_time_in_millis()).to_event()
        fields = event if isinstance(event, dict) else {}
        return self._operate(fields, context.aws_request_id)

    def _answer(self, event: dict[str, Any], remaining_ms: int) -> HttpResponse:
        request_id = str((event.get("requestContext") or {}).get("requestId") or "")
        headers = {"x-request-id": request_id, "cache-control": "no-store"}
        shown_to: dict[str, str] = {}
        code, actor = None, ""
        try:
            request = _parse(event)
            shown_to = self.cors.headers(request.headers)
            if preflight := self.cors.preflight(request.method, request.headers):
                return HttpResponse(204, b"", headers | shown_to | preflight)
            if is_page(request.path):
                response = answer_page(request)
            elif self.console.has(request.path):
                response = self.console.answer(request)
            else:
                match = self.router.match(request.method, request.path)
                caller = self.entrance.admit(match.route, request.headers, event)
                actor = caller.actor
                response = self._answer_route(match, request, caller, remaining_ms)
        except PlatformError as error:
            code = error.instance_code
            response = json_response(error.status, _document(error, request_id))
            response.headers |= error.headers
        except Exception as error:  # the edge: a bug is logged, and answered by 500
            code = "INTERNAL_ERROR"
            sys.stdout.write(bug_line(error, request_id) + "\n")
            document = {"error": "internal error", "code": code, "request_id": request_id}
            response = json_response(500, document)
        response.headers = headers | response.headers
        cors.add_headers(response.headers, shown_to)
        self._log(request_id, str(event["httpMethod"]), actor, response.status, code)
        return response

    def _answer_route(
        self, match: Match, request: HttpRequest, caller: Caller, remaining_ms: int
    ) -> HttpResponse:
        """Return a route's reply, from the store if it is a repeat."""
        return self.repeats.answer(
            request,
            caller.actor,
            partial(self.router.answer, match, request, caller),
            secrets=match.route.secrets,
            renew=match.route.renew,
            remaining_ms=remaining_ms,
        )

    def _operate(self, event: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        """Run an operation; return its reply, or the error as a document.

        Raises:
            Unavailable: the registry failed; the function's alarm counts it.
        """
        try:
            reply = run_operation(self.parts.keys, event)
        except Unavailable:
            raise
        except PlatformError as error:
            self._log(request_id, "invoke", "iam", error.status, error.instance_code)
            return _document(error, request_id)
        self._log(request_id, "invoke", "iam", 200, None)
        return reply

    def _log(self, request_id: str, method: str, actor: str, status: int, code: str | None) -> None:
        level = self.logger.error if status >= 500 else self.logger.info
        level(
            "request", request_id=request_id, method=method, actor=actor, status=status, code=code
        )


def _parse(event: Mapping[str, Any]) -> HttpRequest:
    """Return the request of an event: below /api/v1, or to a page."""
    for root in (ROOT, PAGES):
        request = parse_event(event, root)
        if f"{request.path}/".startswith(f"{root}/"):
            return request
    return parse_event(event, CONSOLE)


def _document(error: PlatformError, request_id: str) -> dict[str, Any]:
    document = {"error": str(error), "code": error.instance_code, "request_id": request_id}
    return document | error.fields
