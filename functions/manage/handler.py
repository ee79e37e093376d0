"""Lambda handler of the control plane: HTTP requests and direct invocations."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.logging import Logger

from functions.core.access.auth import Auth
from functions.core.access.gate import Gate
from functions.core.access.grants import Scope
from functions.core.errors import Forbidden, PlatformError, Unavailable
from functions.core.serving import cors
from functions.core.serving.cors import Cors
from functions.core.serving.http import HttpRequest, HttpResponse, json_response, parse_event
from functions.core.serving.request_log import bug_line
from functions.manage.keys import KeysApi
from functions.manage.operations import run_operation
from functions.manage.routes import ROOT, Routes


@dataclass(frozen=True, slots=True)
class ManageHandler:
    """Lambda handler of /api/v1, and of operations invoked with IAM.

    An HTTP request needs a key with the scope `admin`, or a signature that API Gateway has checked.
    An operation needs the permission to invoke the function.
    """

    keys: KeysApi
    routes: Routes
    auth: Auth
    gate: Gate
    cors: Cors
    logger: Logger

    def __call__(self, event: Any, context: Any) -> dict[str, Any]:
        """Answer an API Gateway event, or run an event's operation."""
        if isinstance(event, dict) and "httpMethod" in event:
            return self._answer(event).to_event()
        fields = event if isinstance(event, dict) else {}
        return self._operate(fields, context.aws_request_id)

    def _answer(self, event: dict[str, Any]) -> HttpResponse:
        request_id = str((event.get("requestContext") or {}).get("requestId") or "")
        headers = {"x-request-id": request_id, "cache-control": "no-store"}
        code, actor = None, ""
        try:
            request = parse_event(event, ROOT)
            cors.add_headers(headers, self.cors.headers(request.headers))
            if preflight := self.cors.preflight(request.method, request.headers):
                return HttpResponse(204, b"", headers | preflight)
            actor = self._authorize(request, event)
            status, text = self.routes.answer(request, actor)
            response = HttpResponse(status, text.encode(), {"content-type": "application/json"})
        except PlatformError as error:
            code = error.instance_code
            response = json_response(error.status, _document(error, request_id))
            response.headers |= error.headers
        except Exception as error:  # the edge: a bug is logged, and answered by 500
            code = "INTERNAL_ERROR"
            sys.stdout.write(bug_line(error, request_id) + "\n")
            document = {"error": "internal error", "code": code, "request_id": request_id}
            response = json_response(500, document)
        response.headers |= headers
        self._log(request_id, str(event["httpMethod"]), actor, response.status, code)
        return response

    def _authorize(self, request: HttpRequest, event: Mapping[str, Any]) -> str:
        """Return who sends an HTTP request that is permitted."""
        match self.auth:
            case Auth.KEYS:
                return f"key:{self.gate.authorize(request.headers, Scope.ADMIN).key_id}"
            case Auth.IAM:
                identity = (event.get("requestContext") or {}).get("identity") or {}
                return f"iam:{identity.get('userArn') or ''}"
        raise Forbidden(
            "keys are not managed over HTTP while the parameter Auth is none: "
            "invoke the function with IAM",
            code="AUTH_NONE",
        )

    def _operate(self, event: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        """Run an operation; return its reply, or the error as a document.

        Raises:
            Unavailable: the registry failed; the function's alarm counts it.
        """
        try:
            reply = run_operation(self.keys, event)
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


def _document(error: PlatformError, request_id: str) -> dict[str, Any]:
    return {"error": str(error), "code": error.instance_code, "request_id": request_id}
